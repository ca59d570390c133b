"""Three roads to a model for scans of a new look, at equal cost: shipped as it is, fine-tuned, and from scratch.

    python -m benchmarks.fine_tune_roads -o SCRATCH [--minutes 5] [--train 10] [--test 5] [--roads fine-tuned]

Phantoms whose tissues have random intensities (`randomise` 1: the shipped weights saw none). Fine-tuning is planned by
`--from shipped`, the other road by the default planner; both get `--minutes` of one thread for all stages together, in
the shares of `SHARES`, each stage as many steps as the time of its first ones allows. Figures are of other phantoms of the same look,
through the whole prediction: vertebrae found (recall), Dice, and ID-rate. Synthetic; it says nothing of real scans.
A run that was stopped goes on in the same scratch folder: finished roads and stages are kept (`roads.json`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

NAME, TEST = "Dataset831_NewLook", "Dataset832_NewLookTest"
LOOK: dict[str, Any] = {"randomise": 1.0, "short": 5, "wide": False, "spacing": (1.5, 1.5, 1.5), "spine": True}
SHARES = {"localize": 0.2, "centres": 0.1, "segment": 0.4, "appearance": 0.13, "ribs": 0.02, "identify": 0.15}   # geometry stands in
ROADS = {"fine-tuned": "shipped", "from scratch": None}   # the weights that it starts from
STEPS = 20                   # per epoch
PROBE = 3                    # steps whose time says how many there are room for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder; becomes SPINECLUE_HOME")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one thread, for all stages of a road together")
    parser.add_argument("--train", type=int, default=10)
    parser.add_argument("--test", type=int, default=5)
    parser.add_argument("--roads", nargs="+", choices=ROADS, default=list(ROADS))
    args = parser.parse_args()
    os.environ |= {"SPINECLUE_HOME": str(args.o.resolve()), "spineclue_n_proc_DA": "0"}

    import torch

    from spineclue_v2 import SpineCLUE
    from spineclue_v2.dataset_conversion.phantom import convert
    from spineclue_v2.inference.model import load_trained
    from spineclue_v2.utilities import paths

    torch.set_num_threads(1)
    convert(args.o / "raw" / NAME, args.train, seed=831, num_processes=0, **LOOK)
    convert(args.o / "raw" / TEST, args.test, seed=990, num_processes=0, **LOOK)
    state = State(args.o / "roads.json")
    if "shipped" not in state.content:
        state.keep("shipped", measure(args.o, "shipped", SpineCLUE.from_pretrained(device="cpu").model))
    report("shipped", state.content["shipped"], 0.0)
    for road in args.roads:
        name, source = plans_name(road, args.minutes), ROADS[road]
        if name not in state.content:
            train_road(name, source, 60 * args.minutes, state)
            model = load_trained(paths.results_folder() / NAME, ["all"], torch.device("cpu"), name)
            state.keep(name, measure(args.o, name, model))
        report(road, state.content[name], sum(state.content[f"{name} {stage}"] for stage in SHARES))


class State:
    """What a run has finished, in a file: figures of roads, and CPU seconds of their stages."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(self, key: str, value: Any) -> None:
        self.content[key] = value
        self.file.write_text(json.dumps(self.content, indent=1))


def plans_name(road: str, minutes: float) -> str:
    return f"{road.title().replace(' ', '').replace('-', '')}{minutes:g}min".replace(".", "p")


def train_road(name: str, source: str | None, budget: float, state: State) -> None:
    """Plan, preprocess and train all cases (fold all) within `budget` CPU seconds; those it took go into `state`, stage by stage."""
    from spineclue_v2.cross_validation.run_training import train
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans
    from spineclue_v2.utilities import paths

    if not (paths.preprocessed_folder() / NAME / f"{name}.json").is_file():
        fingerprint_dataset(NAME, progress=False)
        plan_experiment(NAME, gpu_memory_target=1, device="cpu", plans_name=name, source=source)
    assert preprocess_plans(NAME, name, stages=list(SHARES), progress=False) == {}
    for stage, share in SHARES.items():
        if f"{name} {stage}" in state.content:
            continue
        probe = step_seconds(stage, name)
        set_epochs(stage, name, max(1, int(share * budget / probe / STEPS)))
        started = time.process_time()
        train(NAME, stage, "all", plans_name=name, device="cpu", pretrained_weights=source, validate=False)
        state.keep(f"{name} {stage}", time.process_time() - started)


def step_seconds(stage: str, name: str) -> float:
    """CPU seconds of a training step, its batch included."""
    import torch

    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.plan_files import load_plans
    from spineclue_v2.stages.registry import trainer_class
    from spineclue_v2.utilities import paths

    base = paths.preprocessed_folder() / NAME
    plans = load_plans(base / f"{name}.json")
    data = PreprocessedDataset(base / plans.stage(stage).data_fingerprint)
    trainer = trainer_class(stage)(plans, "all", data, data.cases, data.cases, base / "probe", torch.device("cpu"), workers=0)
    trainer.on_epoch_start()
    trainer.network.train()
    sampler = trainer.batch_sampler(training=True)
    times = []
    for number in range(PROBE):
        started = time.process_time()
        trainer.train_step(sampler(number))
        times.append(time.process_time() - started)
    return sorted(times)[PROBE // 2]


def set_epochs(stage: str, name: str, epochs: int) -> None:
    """Epochs of `STEPS` steps; of identify's a third is contrastive, unless its plan has no such phase."""
    import dataclasses

    from spineclue_v2.stages.plan_files import load_plans
    from spineclue_v2.utilities import paths

    file = paths.preprocessed_folder() / NAME / f"{name}.json"
    plans = load_plans(file)
    run = plans.stage(stage).run
    if stage == "identify":
        first = epochs // 3 if run.contrastive_epochs else 0
        lengths = {"contrastive_epochs": first, "classifier_epochs": epochs - first}
    else:
        lengths = {"epochs": epochs}
    plans.stages[stage] = dataclasses.replace(plans.stage(stage), run=dataclasses.replace(run, iterations_per_epoch=STEPS, **lengths))
    plans.save(file)


def measure(scratch: Path, name: str, model: Any) -> dict[str, float]:
    from spineclue_v2.evaluation.summary import evaluate
    from spineclue_v2.inference.predict_folder import predict

    out = scratch / "predicted" / name
    predict(scratch / "raw" / TEST / "imagesTr", out, model, report=False, progress=False)
    own = evaluate(scratch / "raw" / TEST / "labelsTr", out, out / "summary.json")["spineclue"]
    return {"found": own["detection"]["recall"], "Dice": own["dice"], "named": own["id_rate"]}


def report(road: str, figures: dict[str, float], seconds: float) -> None:
    sys.stdout.write(f"{road:14s}" + "".join(f"{name} {value:.3f}  " for name, value in figures.items()) + f"{seconds:.0f} CPU s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
