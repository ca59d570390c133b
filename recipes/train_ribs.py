"""Stage ribs from real scans and phantoms: `python -m recipes.train_ribs WORK`.

WORK/real and WORK/phantoms hold coarse scans (`evidence_data`, `evidence_phantoms`, both with `--spacing 3`), as for stage centres. Writes
WORK/ribs/0.pth, 1.pth, 2.pth, each without the patients of its fold, and final.pth of all, as the package ships them; their temperature
is fitted on the rows of left-out patients. Prints how well left-out scans are named by this classifier alone. `--install WEIGHTS` puts
the last one beside the other weights.
"""
from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.evidence_data import load_scan
from spineclue_v2.anatomy import LEVEL_INDEX
from spineclue_v2.stages.ribs.data import Beside, beside, sample
from spineclue_v2.stages.ribs.features import inputs_of
from spineclue_v2.stages.ribs.groups import GROUP_OF, spread

SPACING_MM, WINDOWS_HU, THRESHOLDS_HU = 3.0, ((-160.0, 240.0), (0.0, 1000.0)), (110.0, 160.0, 220.0)
BATCH, STEPS, RATE, DECAY, JITTER_MM, VIEWS = 256, 1000, 1e-2, 1.0, 2.0, 3
DRAWN = {"neck": 0.25, "other": 0.4, "phantom": 0.35}
SUM_WEIGHT = 2.0       # of the classifier in the plain sum, beside shape 0.724, geometry 0.229 and appearance 1
EVIDENCE_MODEL: dict[str, Any] = {"scale": dict.fromkeys(("cervical", "thoracic", "lumbar"), 1.0), "power": 0.0, "trust": 0.95,
                                  "none_weight": 0.0}
"""What it is worth beside the others: chosen on 293 windows of 52 real scans (true centres moved by 2 mm), each by networks that had not
seen the patient."""


@dataclass(frozen=True)
class Case:
    """A scan: `views` with moved centres, the first of which a left-out scan is judged by."""

    name: str
    kind: str
    fold: int
    views: tuple[Beside, ...]

    @property
    def judged(self) -> Beside:
        return self.views[0]


def read_case(path: Path) -> Case:
    scan = load_scan(path)
    kind = "phantom" if scan.case.startswith("phantom_") else "neck" if scan.case.startswith("pt_") else "other"
    chosen = [k for k, name in enumerate(scan.names) if name in GROUP_OF]
    names, centres = [scan.names[k] for k in chosen], scan.centres[chosen]
    rng = np.random.default_rng([5, *map(ord, scan.case)])
    views = tuple(beside(scan.volume, names, centres, THRESHOLDS_HU, JITTER_MM, rng) for _ in range(1 if kind == "phantom" else VIEWS))
    return Case(scan.case, kind, scan.fold, views)


def shipped_plan() -> Any:
    """Plans with stage ribs alone, each number with its reason."""
    from spineclue_v2.planning.planner import PlannedValue, stage_plan
    from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, Plans

    why = "as the recipe trains it"
    values = {"data": {"spacing_mm": SPACING_MM, "windows_hu": WINDOWS_HU}, "network": {"thresholds_hu": THRESHOLDS_HU},
              "run": {"batch_size": BATCH, "epochs": STEPS // 50, "iterations_per_epoch": 50, "initial_lr": RATE, "weight_decay": DECAY,
                      "optimizer": "AdamW", "centre_jitter_mm": JITTER_MM}}
    groups = {group: {name: PlannedValue(value, why, {}) for name, value in entries.items()} for group, entries in values.items()}
    plan = stage_plan("ribs", groups["data"], groups["network"], groups["run"])
    return Plans(DEFAULT_PLANS_NAME, "SpineCLUEPlanner", "Dataset500_SpinePhantom", "", {}, {"ribs": plan})


def train(cases: Sequence[Case], steps: int = STEPS) -> torch.nn.Module:
    from spineclue_v2.stages.ribs.network import network_of_plans

    network = network_of_plans(shipped_plan())
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    scans = {kind: [view for case in cases if case.kind == kind for view in case.views] for kind in DRAWN}
    for step in range(steps):
        rng = np.random.default_rng([11, step])
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps) ** 0.9
        parts = [sample(scans[kind], round(part * BATCH), rng, augment=True) for kind, part in DRAWN.items()]
        inputs, groups = map(torch.cat, zip(*parts, strict=True))
        loss = torch.nn.functional.cross_entropy(network(inputs), groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def logits_of(network: torch.nn.Module, scan: Beside) -> torch.Tensor:
    logits: torch.Tensor = network(torch.from_numpy(inputs_of(scan.found)))
    return logits


def run_alone(probabilities: np.ndarray, names: Sequence[str]) -> tuple[bool, float]:
    """Whether the best regular run is the true one, and the true one's probability."""
    levels = np.log(probabilities @ spread() + 1e-4)
    n = len(names)
    totals = np.array([levels[np.arange(n), start + np.arange(n)].sum() for start in range(24 - n + 1)])
    true = LEVEL_INDEX[names[0]]
    return int(totals.argmax()) == true, float(np.exp(totals[true] - np.logaddexp.reduce(totals)))


def judge(left_out: Sequence[tuple[Case, torch.Tensor]], temperature: float) -> None:
    for kind in ("neck", "other"):
        rows = [(case, (logits / temperature).softmax(1).double().numpy()) for case, logits in left_out if case.kind == kind]
        log = np.concatenate([np.log(p[np.arange(len(p)), [GROUP_OF[n] for n in case.judged.names]]) for case, p in rows])
        runs = {case.name: run_alone(p, case.judged.names) for case, p in rows if len(case.judged.names) >= 3}
        print(f"{kind}: {len(log)} vertebrae, log-likelihood {log.mean():.3f}; {sum(right for right, _ in runs.values())} of {len(runs)} "
              f"scans right, others: { {name: round(p, 2) for name, (right, p) in runs.items() if not right} }", flush=True)


def export(network: torch.nn.Module, target: Path, temperature: float, left_out: str) -> None:
    """A file of weights as the package ships it (fp16)."""
    from spineclue_v2.training.checkpoint import Checkpoint
    from spineclue_v2.version import __version__

    plans = shipped_plan()
    plan = plans.stage("ribs")
    fitted = {"temperature": temperature, "weight": SUM_WEIGHT, "about": {"left_out": left_out, "recipe": "recipes.train_ribs"}}
    meta = {"stage": "ribs", "trainer": "RibsTrainer", "fold": 0, "plans": plans.to_json(), "version": __version__,
            "data_fingerprint": plan.data_fingerprint, "model_fingerprint": plan.model_fingerprint, "fitted": fitted}
    target.parent.mkdir(parents=True, exist_ok=True)
    Checkpoint(network.state_dict(), meta).save(target, half=True)


def install(file: Path, weights: Path) -> None:
    """The file beside the other weights, and `EVIDENCE_MODEL` in the plan of identify.pth; its tensors stay."""
    from spineclue_v2.stages.plan_files import plans_from_json
    from spineclue_v2.training.checkpoint import Checkpoint

    shutil.copy(file, weights / "ribs.pth")
    old = Checkpoint.load(weights / "identify.pth")
    content = plans_from_json(old.meta["plans"]).to_json()
    model = content["stages"]["identify"]["run"]["evidence_model"]["value"]
    for key, value in EVIDENCE_MODEL.items():
        model[key] = dict(model[key]) | {"ribs": value}
    plans = plans_from_json(content)
    replace(old, meta=old.meta | {"plans": plans.to_json()}).save(weights / "identify.pth", half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--install", type=Path, metavar="WEIGHTS", help="only put WORK/ribs/final.pth, and what it is worth, there")
    args = parser.parse_args()
    from spineclue_v2.training.temperature import fit_temperature

    if args.install is not None:
        install(args.work / "ribs" / "final.pth", args.install)
        return
    torch.set_num_threads(1)
    cases = [read_case(path) for part in ("real", "phantoms") for path in sorted((args.work / part).glob("[A-Za-z]*.npz"))]
    cases = [case for case in cases if case.judged.names]
    folds = sorted({case.fold for case in cases if case.kind != "phantom"})
    networks = {fold: train([case for case in cases if case.fold != fold]) for fold in folds}
    left_out = [(case, logits_of(networks[case.fold], case.judged)) for case in cases if case.kind != "phantom"]
    groups = torch.tensor([GROUP_OF[name] for case, _ in left_out for name in case.judged.names])
    temperature = float(fit_temperature(torch.cat([logits for _, logits in left_out]), groups))
    print(f"temperature {temperature:.3f}")
    judge(left_out, temperature)
    for fold, network in networks.items():
        export(network, args.work / "ribs" / f"{fold}.pth", temperature, f"fold {fold} of recipes.folds")
    export(train(cases), args.work / "ribs" / "final.pth", temperature, "none")


if __name__ == "__main__":
    main()
