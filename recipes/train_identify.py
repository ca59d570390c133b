"""Identify trained on what the shipped earlier stages find: `python -m recipes.train_identify -o DIR [--cases 160] [-np 2]`.

Masks as localize and segment make them differ from true ones, and so do their centres. So: phantoms of the kinds of `train_shipped` (other
seeds), the shipped localize and segment on each, then (1) the shape network learns on from both true and found masks, (2) the geometry
classifier is trained on landmarks, made spines and found centres, (3) the appearance classifier on the CT around true and found centres,
(4) the weights of shape and geometry and the decoder's penalties are fitted on scans that trained none. A whole cycle of kinds in four is
left out for (4) and for the table. Steps that are complete are kept.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from recipes import train_shipped
from recipes.geometry_weights import read_geometry, write_geometry
from spineclue_v2 import anatomy
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.utilities.files import atomic_path, read_json, write_json

DATASET = "Dataset591_Found"
FIRST_NUMBER = 1000           # localize and segment were trained on numbers below 200 of the same seeds
STEPS = ("data", "found", "shape", "geometry", "appearance", "fit")
REPEATS = 6                   # a scan's found centres among the geometry classifier's examples
FITTED_PENALTIES = ("false_detection", "evidence")   # the rare numberings are too few here
MISSED = -4.0
"""By hand, one vertebra in fifty: what localize misses is looked for; of phantoms one in 600 stays missed, but patients have implants."""
GEOMETRY = "geometry.pth"
APPEARANCE_PLANS, APPEARANCE_EPOCHS = "AppearancePlans", 100
APPEARANCE_WEIGHT = {"cervical": 0.3, "thoracic": 0.3, "lumbar": 0.5, "none": 0.5}
"""By hand. Phantoms alone would have 0.4 to 0.8 everywhere; at the top of two real chests it is off by one, around real lumbar spines
it is not."""


@functools.cache
def shipped() -> Any:
    import torch

    from spineclue_v2.inference.model import load_shipped

    torch.set_num_threads(1)
    return load_shipped(torch.device("cpu"))


def find_case(home: Path, case: str) -> None:
    """Found vertebrae of a preprocessed phantom as `found/CASE.npz` and, named by their true masks, as a preprocessed case CASE_found."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.evaluation.instances import instance_map, match_true_names
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.inference.pipeline import segment_located
    from spineclue_v2.preprocessing.ct import vertebra_properties
    from spineclue_v2.preprocessing.files import write_blosc2
    from spineclue_v2.stages.identify.predictor import order_cranio_caudal
    from spineclue_v2.stages.localize.predictor import locate

    model, base = shipped(), home / "preprocessed"
    plans = {stage: model.plans.stage(stage) for stage in ("localize", "segment", "identify")}
    data = {stage: PreprocessedDataset(base / train_shipped.DATASET / plan.data_fingerprint) for stage, plan in plans.items()}
    volumes = {stage: Volume(np.asarray(data[stage].image(case)[:]), ImageGrid.from_json(data[stage].properties(case)["geometry"]))
               for stage in ("localize", "segment")}
    properties, truth = data["segment"].properties(case), np.asarray(data["segment"].labels(case)[:])
    found = locate(volumes["localize"], model.stages["localize"].networks, plans["localize"], model.device)
    if found:
        scan = ImageGrid.from_json(properties["source_geometry"])
        found = order_cranio_caudal(segment_located(volumes["segment"], found, model.stages["segment"].networks, plans["segment"],
                                             model.device, scan))
    names = [name or "" for name in match_true_names(found, truth)] if found else []
    target = base / DATASET / plans["identify"].data_fingerprint
    for folder in (target, home / "found"):
        folder.mkdir(parents=True, exist_ok=True)
    values = np.array([0, *(anatomy.LABEL_OF_NAME.get(name, 0) for name in names)], np.uint8)
    labels = Volume(values[instance_map(found, truth.shape)], volumes["segment"].geometry)
    write_blosc2(target / f"{case}_found_seg.b2nd", labels)
    write_json(target / f"{case}_found.json", properties | {"vertebrae": vertebra_properties(labels)})
    with atomic_path(home / "found" / f"{case}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, names=np.array(names, dtype="U4"), missed=len(properties["vertebrae"]) - sum(map(bool, names)),
                            centres=np.array([v.body_centre for v in found]).reshape(-1, 3),
                            shapes=np.array([v.mask.shape for v in found]).reshape(-1, 3),
                            **{f"mask_{i}": np.packbits(v.mask) for i, v in enumerate(found)})


def find_all(home: Path, count: int, processes: int) -> None:
    from spineclue_v2.utilities.parallel import run_tasks

    source, target = (home / "preprocessed" / name for name in (train_shipped.DATASET, DATASET))
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "SpineCLUEPlans.json", target / "SpineCLUEPlans.json")
    cases = sorted(read_json(source / "dataset.json", "dataset.json")["patients"])[:count]
    tasks = {case: (home, case) for case in cases if not (home / "found" / f"{case}.npz").exists()}
    _, failures = run_tasks(find_case, tasks, num_processes=processes if processes > 1 else 0, description="found")
    if failures:
        raise SystemExit(f"scans failed: {failures}")
    data = load_plans(source / "SpineCLUEPlans.json").stage("identify").data_fingerprint
    for case in cases:
        for name in (case, f"{case}_found"):                                     # one CT for both
            if not (target / data / f"{name}.b2nd").exists():
                os.link(source / data / f"{case}.b2nd", target / data / f"{name}.b2nd")
        for ending in (f"{case}_seg.b2nd", f"{case}.json") if not train_shipped.left_out(case) else ():  # true masks beside the found ones
            shutil.copyfile(source / data / ending, target / data / ending)
    parts = {"train": [n for case in cases if not train_shipped.left_out(case) for n in (case, f"{case}_found")],
             "val": [f"{case}_found" for case in cases if train_shipped.left_out(case)]}
    write_json(target / "splits_final.json", [parts])
    write_json(target / "dataset.json", read_json(source / "dataset.json", "dataset.json") | {
        "name": DATASET, "patients": {n: n.removesuffix("_found") for names in parts.values() for n in names}})


def found_scans(home: Path, which: bool) -> list[dict[str, Any]]:
    """What was found in the scans that are left out (`which` True), or in the others."""
    scans = []
    for path in sorted((home / "found").glob("*.npz")):
        if train_shipped.left_out(path.stem) == which:
            with np.load(path) as content:
                scan = {key: content[key] for key in ("names", "missed", "centres")}
                scan["masks"] = [np.unpackbits(content[f"mask_{i}"], count=int(np.prod(shape))).reshape(shape).astype(bool)
                                 for i, shape in enumerate(content["shapes"])]
            scans.append(scan | {"case": path.stem})
    return scans


def train_geometry(home: Path, landmark_file: Path) -> None:
    from spineclue_v2.stages.geometry.landmarks import L6, NOT_A_VERTEBRA, Landmarks
    from spineclue_v2.stages.geometry.training import train_for_pipeline

    def target(name: str) -> int:
        return NOT_A_VERTEBRA if not name else L6 if name == "L6" else anatomy.LEVEL_INDEX[anatomy.EMITTING_LEVEL[name]]

    found = [Landmarks(scan["centres"], np.array([target(str(n)) for n in scan["names"]])) for scan in found_scans(home, False)
             if len(scan["names"])]
    write_geometry(*train_for_pipeline(landmark_file, found=found * REPEATS), home / GEOMETRY)


def train_appearance(home: Path, epochs: int, device: str | None) -> None:
    from spineclue_v2.cross_validation.run_training import train

    folder = home / "preprocessed" / DATASET
    plans = load_plans(folder / "SpineCLUEPlans.json")
    plan = plans.stage("appearance")
    stages = plans.stages | {"appearance": dataclasses.replace(plan, run=dataclasses.replace(plan.run, epochs=epochs))}
    dataclasses.replace(plans, plans_name=APPEARANCE_PLANS, stages=stages).save(folder / f"{APPEARANCE_PLANS}.json")
    resume = bool(list((home / "results" / DATASET).glob("AppearanceTrainer__*/fold_0/checkpoint_latest.pth")))
    train(DATASET, "appearance", 0, plans_name=APPEARANCE_PLANS, device=device, resume=resume)


def trained_appearance(home: Path) -> Any:
    """The appearance classifier that was trained and its plans, None without one."""
    import torch

    from spineclue_v2.inference.model import load_stage

    file = appearance_file(home)
    return None if file is None else load_stage(file, "appearance", torch.device("cpu"))


def appearance_file(home: Path) -> Path | None:
    return next((home / "results" / DATASET).glob("AppearanceTrainer__*/fold_0/checkpoint_final.pth"), None)


def write_appearance(home: Path) -> None:
    """The trained classifier with its weights by region, as `appearance.pth`."""
    from spineclue_v2.model_sharing.export_model import write_shipped_stage
    from spineclue_v2.training.checkpoint import Checkpoint

    file = appearance_file(home)
    if file is not None:
        target = write_shipped_stage(file, home / "weights" / "appearance.pth")
        found = Checkpoint.load(target)
        fitted = found.meta["fitted"] | {"weight": APPEARANCE_WEIGHT, "about": {"training": "recipes.train_identify"}}
        dataclasses.replace(found, meta=found.meta | {"fitted": fitted}).save(target, half=True)


def seen_around(home: Path, scans: list[dict[str, Any]], classifier: Any) -> None:
    """Adds the appearance classifier's log-probabilities to scans with anything found."""
    import torch

    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.stages.appearance.predictor import log_probabilities

    (folder,) = {path.parent for path in (home / "preprocessed" / DATASET).glob("*/*_found.json")}
    data = PreprocessedDataset(folder)
    for scan in scans if classifier is not None else ():
        name = f"{scan['case']}_found"
        volume = Volume(np.asarray(data.image(name)[:]), ImageGrid.from_json(data.properties(name)["geometry"]))
        model, plans = classifier
        scan["appearance"] = log_probabilities(volume, scan["centres"], model, plans.stage("appearance"), torch.device("cpu"))


def evidence_rows(scans: list[dict[str, Any]], stage: Any, plan: Any, geometry: Any) -> list[Any]:
    """`EvidenceRows` of scans with anything found: shape after fusion, geometry, and appearance where it looked."""
    import torch

    from spineclue_v2.anatomy.vertebra import Vertebra
    from spineclue_v2.anatomy.vertebral_gaps import round_positions, vertebral_gaps
    from spineclue_v2.stages.geometry.predictor import evidence_of
    from spineclue_v2.stages.identify.calibration import EvidenceRows
    from spineclue_v2.stages.identify.evidence import fold_variants, shape_logs
    from spineclue_v2.stages.identify.predictor import shape_probabilities

    rows = []
    for scan in scans:
        if not len(scan["names"]):
            continue
        steps = vertebral_gaps(scan["centres"])
        vertebrae = [Vertebra(tuple(c), (0.0, 0.0, 0.0), 1.0, mask=m) for c, m in zip(scan["centres"], scan["masks"], strict=True)]
        shape, _ = shape_probabilities(vertebrae, stage, plan, torch.device("cpu"), round_positions(steps))
        logs = {"shape": shape_logs(shape), "geometry": fold_variants(evidence_of(scan["centres"], geometry))}
        logs |= {"appearance": scan["appearance"]} if "appearance" in scan else {}
        rows.append(EvidenceRows(logs, tuple(str(n) or None for n in scan["names"]), steps))
    return rows


def fitted(rows: list[Any], penalties: Any) -> tuple[dict[str, float], Any]:
    from spineclue_v2.stages.identify.calibration import fit_weights, weigh
    from spineclue_v2.stages.identify.decoder_fit import Case, fit_penalties

    weights = fit_weights(rows, penalties)
    return weights, fit_penalties([Case(weigh(r.logs, weights), r.names, r.steps) for r in rows], penalties, FITTED_PENALTIES)


def judged(rows: list[Any], missed: int, settings: Any) -> str:
    """ID-rate, scans with all levels right, anchored scans and calibration of `rows`, each named with `settings(number)` = (weights,
    penalties)."""
    from spineclue_v2.evaluation.calibration import expected_calibration_error
    from spineclue_v2.stages.identify.calibration import weigh
    from spineclue_v2.stages.identify.decoder import Decoder

    right: list[bool] = []
    confidence, whole, anchored = [], [], []
    for number, row in enumerate(rows):
        weights, penalties = settings(number)
        given = Decoder(penalties).decode(weigh(row.logs, weights), row.steps)
        hits = [name == true for name, true in zip(given.names, row.names, strict=True) if true]
        right += hits
        confidence += [c for c, true in zip(given.confidence, row.names, strict=True) if true]
        whole.append(all(hits))
        anchored.append(given.numbering_anchored)
    sure = [w for w, a in zip(whole, anchored, strict=True) if a]
    return (f"ID-rate {sum(right) / (len(right) + missed):.3f} of {len(right) + missed}, of those found {np.mean(right):.3f}; "
            f"all found named right {np.mean(whole):.3f} of {len(whole)}; anchored {len(sure)}, {len(sure) - sum(sure)} of them wrong; "
            f"ECE {expected_calibration_error(np.array(confidence), np.array(right)):.3f}")


def fit_all(home: Path) -> None:
    """Print the table and write the plan's weights and penalties, and the new weights, into DIR/weights.

    What relabels a mask without its CT has no appearance classifier: the other weights are fitted without it.
    """
    from spineclue_v2.inference.model import stage_model
    from spineclue_v2.model_sharing.export_model import write_shipped_stage
    from spineclue_v2.stages.identify.plan import Penalties
    from spineclue_v2.training.checkpoint import Checkpoint

    model, scans = shipped(), found_scans(home, True)
    missed = sum(int(scan["missed"]) for scan in scans)
    (final,) = (home / "results" / DATASET).glob("IdentifyTrainer__*/fold_0/checkpoint_final.pth")
    plans_file = final.parent.parent / "plans.json"
    plans = load_plans(plans_file)
    plan, before = plans.stage("identify"), model.plans.stage("identify")
    new = stage_model("identify", [Checkpoint.load(final)], [final], plans, model.device)
    geometry, appearance = read_geometry(home / GEOMETRY), trained_appearance(home)
    seen_around(home, scans, appearance)
    penalties = dataclasses.replace(Penalties.from_dict(before.run.decoder_penalties), missed=MISSED)
    plain = {"shape": 1.0, "geometry": 1.0, "appearance": 0.0} | {k: v for k,
                                                                  v in before.run.classifier_weights.items() if k != "appearance"}
    for what, stage, classifier in (("shipped", model.stages["identify"], model.stages["geometry"]), ("new", new, geometry)):
        rows = evidence_rows(scans, stage, before, classifier)
        for label, weights in (("without geometry", plain | {"geometry": 0.0}), ("weights of the shipped plan", plain)):
            print(f"shape and geometry {what}, {label}: {judged(rows, missed, lambda _, w=weights: (w, penalties))}")
        own = [dataclasses.replace(row, logs={k: v for k, v in row.logs.items() if k != "appearance"}) for row in rows]
        halves = [fitted([r for i, r in enumerate(own) if i % 2 != half], penalties) for half in (0, 1)]
        print(f"shape and geometry {what}, fitted on the other half: {judged(own, missed, lambda i, h=halves: h[i % 2])}")
        for weight in (0.1, 0.2, 0.3, 0.45, 1.0) if appearance is not None else ():
            enabled = plain | {"appearance": weight}
            print(f"shape and geometry {what}, weights of the shipped plan, appearance {weight}: "
                  f"{judged(rows, missed, lambda _, w=enabled: (w, penalties))}")
    weights, penalties = fitted(own, penalties)
    print("fitted on all that was left out:", weights, {name: round(getattr(penalties, name), 3) for name in FITTED_PENALTIES})
    run = dataclasses.replace(plan.run, classifier_weights=weights, decoder_penalties={k: round(v, 6) for k,
                                                                                       v in penalties.to_dict().items()})
    dataclasses.replace(plans, stages=plans.stages | {"identify": dataclasses.replace(plan, run=run)}).save(plans_file)
    print(write_shipped_stage(final, home / "weights" / "identify.pth"))
    shutil.copyfile(home / GEOMETRY, home / "weights" / GEOMETRY)
    write_appearance(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path, help="folder for the dataset, the training and the weights")
    parser.add_argument("--cases", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=16, help="of the classifier phase, 25 batches each")
    parser.add_argument("--landmarks", type=Path, help="vid_training.json.gz, for the step geometry")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("-device", default=None)
    parser.add_argument("-np", type=int, default=2)
    args = parser.parse_args()
    os.environ["SPINECLUE_HOME"] = str(args.o)
    if "data" in args.steps:
        train_shipped.make_data(args.o, args.cases, args.np, FIRST_NUMBER)
        train_shipped.describe(args.o, [])
        train_shipped.plan_and_preprocess(args.o, args.epochs / train_shipped.EPOCHS["identify"], args.np)
    if "found" in args.steps:
        find_all(args.o, args.cases, args.np)
    if "shape" in args.steps:
        from spineclue_v2.cross_validation.run_training import train

        results = list((args.o / "results" / DATASET).glob("*__identify/fold_0/checkpoint_latest.pth"))
        train(DATASET, "identify", 0, device=args.device, pretrained_weights="shipped", resume=bool(results))
    if "geometry" in args.steps:
        train_geometry(args.o, args.landmarks)
    if "appearance" in args.steps:
        train_appearance(args.o, APPEARANCE_EPOCHS, args.device)
    if "fit" in args.steps:
        fit_all(args.o)


if __name__ == "__main__":
    main()
