"""What the geometry classifier adds: `python -m recipes.geometry_classifier landmarks|masks [-m GEOMETRY.pth] [-w 0 0.3 0.45]`.

landmarks: body centres of held-out phantom spines (whole, and cut to a field of view), named by a made shape classifier with and
without geometry, per region. The made classifier blurs each level over its neighbours, is off by one in about a third of single
vertebrae and leans the same way within a scan; it stands for a real one, whose training would take hours.
masks: the true masks of three VerSe scans through `relabel`, and every run of four neighbours of verse004.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from recipes.geometry_weights import read_geometry

MASKS = {"verse004": "sub-verse004_seg-vert_msk.nii.gz", "verse005": "sub-verse005_seg-vert_msk.nii.gz",
         "verse008": "sub-verse008_seg-vert_msk.nii.gz"}
RUN = 4


def made_shape_rows(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n, 24) probabilities of a classifier that is right for about two of three vertebrae."""
    lean = generator.normal(0.0, 0.45)
    middle = targets + lean + generator.normal(0.0, 0.45, len(targets))
    rows = np.exp(-0.5 * ((np.arange(24)[None] - middle[:, None]) / 0.8) ** 2)
    return rows / rows.sum(axis=1, keepdims=True)


def landmarks(classifier, weights: list[float], count: int) -> None:
    from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX, LEVELS, region
    from spineclue_v2.anatomy.vertebral_gaps import vertebral_gaps
    from spineclue_v2.stages.base import Evidence
    from spineclue_v2.stages.geometry.landmarks import L6
    from spineclue_v2.stages.geometry.predictor import evidence_of
    from spineclue_v2.stages.geometry.training import sample_spine_curves
    from spineclue_v2.stages.identify.decoder import Decoder
    from spineclue_v2.stages.identify.evidence import combine_evidence, fold_variants, shape_logs

    scans = [scan for scan in sample_spine_curves(count, seed=7_000_000) if len(scan.centres) > 2]
    alone: dict[str, list[bool]] = {}
    right: dict[tuple[float, str], list[bool]] = {}
    for number, scan in enumerate(scans):
        generator = np.random.default_rng(number)
        centres = scan.centres + generator.normal(0.0, 1.5, scan.centres.shape)
        targets = np.where(scan.targets == L6, LEVEL_INDEX["L5"], scan.targets)
        regions = [region(LEVELS[t]) for t in targets]
        evidence = {"shape": Evidence(shape_logs(made_shape_rows(targets, generator))), "geometry": evidence_of(centres, classifier)}
        for name, hit in zip(regions, fold_variants(evidence["geometry"])[:, :24].argmax(axis=1) == targets, strict=True):
            alone.setdefault(name, []).append(bool(hit))
        for weight in weights:
            logs, variants = combine_evidence(evidence, {"geometry": weight})
            named = Decoder().decode(logs, vertebral_gaps(centres), variants=variants).names
            for name, level, target in zip(regions, named, scan.targets, strict=True):
                wanted = "L6" if target == L6 else LEVELS[target]
                hit = level == wanted or (level == "T13" and wanted == EMITTING_LEVEL["T13"])
                right.setdefault((weight, name), []).append(hit)
    names = ("cervical", "thoracic", "lumbar")
    print(f"{len(scans)} held-out phantom spines, centres moved by 1.5 mm sd")
    print("geometry alone, one by one   " + "  ".join(f"{name} {np.mean(alone[name]):.3f}" for name in names))
    for weight in weights:
        print(f"shape + {weight:4.2f} geometry, decoded  " + "  ".join(f"{name} {np.mean(right[weight, name]):.3f}" for name in names))


def masks(classifier, weights: list[float], data: Path) -> None:
    from dataclasses import replace

    import torch

    from spineclue_v2.anatomy import NAME_OF_LABEL
    from spineclue_v2.imageio.volume import read_labels
    from spineclue_v2.inference.bodies import find_bodies, name_bodies
    from spineclue_v2.inference.model import load_shipped

    model = load_shipped(torch.device("cpu"))
    model.stages["geometry"] = classifier
    identify = model.plans.stage("identify")
    for weight in weights:
        plan = replace(identify, run=replace(identify.run, classifier_weights={"shape": 1.0, "geometry": weight}))
        model.plans = replace(model.plans, stages=model.plans.stages | {"identify": plan})
        for name, file in MASKS.items():
            labels = read_labels(data / file)
            bodies = sorted(find_bodies(labels, 1.0)[0], key=lambda body: body.value)
            runs = [bodies] + ([bodies[i:i + RUN] for i in range(len(bodies) - RUN + 1)] if name == "verse004" else [])
            hits = [_right(name_bodies(run, labels.geometry, model)[1], run, NAME_OF_LABEL) for run in runs]
            print(f"geometry {weight:4.2f} {name}: {hits[0]} of {len(bodies)} right", flush=True)
            if len(runs) > 1:
                whole = sum(hit == RUN for hit in hits[1:])
                print(f"    runs of {RUN}: {whole} of {len(runs) - 1} all right, {sum(hits[1:])} of {RUN * (len(runs) - 1)} vertebrae; "
                      f"right per run {hits[1:]}")


def _right(owners, run, names) -> int:
    values = {id(body) for body in run}
    return sum(id(body) in values and names[body.value] == level for body, level in owners)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["landmarks", "masks"])
    parser.add_argument("-m", type=Path, default=None, help="weights of the classifier (default: those of the package)")
    parser.add_argument("-w", type=float, nargs="+", default=[0.0, 0.3, 0.45, 0.6], help="weights of the classifier beside shape")
    parser.add_argument("-n", type=int, default=200, help="phantom spines")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ct" / "verse")
    args = parser.parse_args()
    from spineclue_v2.utilities.paths import weights_folder

    classifier = read_geometry(args.m or weights_folder() / "geometry.pth")
    if args.what == "landmarks":
        landmarks(classifier, args.w, args.n)
    else:
        masks(classifier, args.w, args.data)


if __name__ == "__main__":
    main()
