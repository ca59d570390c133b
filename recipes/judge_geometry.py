"""Geometry alone on held-out spines, true centres: `python -m recipes.judge_geometry DATA WORK [--weights GEOMETRY.pth]`.

WORK/geometry/fold_K.pth name the CSI and VerSe scans of fold K (centres moved by --noise mm); --weights: a file that saw none of them does.
The decoder hears geometry only, with scale, power and trust fitted on the windows of the other folds; T13, L6 and a missing T12 are
possible.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.decoder_penalties import PENALTIES
from recipes.evidence_model import fit, prepare, to_json
from recipes.evidence_windows import Window
from recipes.geometry_data import LandmarkScan
from recipes.train_geometry import FOLDS, collections
from spineclue_v2.anatomy import ORDER_INDEX

SIZES = {"3": (3, 3), "4": (4, 4), "5-7": (5, 7), "8+": (8, 99)}
LENGTHS = (3, 4, 6, 8, 12)
STARTS = 3


@dataclass
class Spine:
    """A window of a scan of a collection."""

    collection: str
    window: Window


def cuts(scan: LandmarkScan, generator: np.random.Generator) -> list[slice]:
    """The vertebrae of the whole scan, the same with S1, and up to three runs of each length."""
    n = scan.vertebrae
    out = [slice(0, n)] + ([slice(0, n + 1)] if len(scan.names) > n else [])
    for length in LENGTHS:
        starts = np.arange(n - length + 1)
        out += [slice(int(s), int(s) + length) for s in generator.permutation(starts)[:STARTS] if length < n]
    return out


def spines(model: Any, scans: Sequence[LandmarkScan], noise_mm: float, seed: int = 0) -> list[Spine]:
    from spineclue_v2.stages.geometry.predictor import evidence_of

    generator = np.random.default_rng(seed)
    out = []
    for scan in scans:
        for part in cuts(scan, generator):
            centres = scan.centres[part] + generator.normal(0, noise_mm, scan.centres[part].shape) / np.sqrt(3)
            names = tuple(name if name in ORDER_INDEX else None for name in scan.names[part])
            whole = part.start == 0 and part.stop >= scan.vertebrae
            out.append(Spine(scan.collection, Window(scan.scan, "", names, centres, whole,
                                                     evidence={"geometry": evidence_of(centres, model)})))
    return out


def decoded(own: list[Spine], rest: list[Spine]) -> list[Any]:
    from spineclue_v2.anatomy.vertebral_gaps import vertebral_gaps
    from spineclue_v2.stages.identify.plan import Penalties
    from spineclue_v2.stages.identify.trust import decode_with_trust

    known = [s.window for s in rest if s.window.regular]
    model = fit(prepare(known, {}), np.ones(len(known)), ("geometry",), False)
    print("fitted", json.dumps(to_json(model)), flush=True)
    penalties = replace(Penalties(), **PENALTIES)
    return [decode_with_trust(s.window.evidence, vertebral_gaps(s.window.centres), model, penalties) for s in own]


def table(own: list[Spine], answers: list[Any]) -> None:
    pairs = [(spine.collection, spine.window, answer) for spine, answer in zip(own, answers, strict=True)]
    for collection in ("CSI2014", "VerSe"):
        rows = [(w, a) for name, w, a in pairs if name.startswith(collection)]
        plain = [(w, a) for w, a in rows if None not in w.names]
        for kind, (low, high) in SIZES.items():
            line(f"{collection} {kind}", [(w, a) for w, a in plain if low <= len(w.names) <= high])
        line(f"{collection} whole", [(w, a) for w, a in plain if w.whole])
        line(f"{collection} whole + S1", [(w, a) for w, a in rows if None in w.names])
    for variant in ("L6", "T13"):
        chosen = [(w, a) for _, w, a in pairs if variant in w.names]
        wrong = [a for _, w, a in pairs if variant not in w.names and variant in a.names]
        line(f"scans with {variant}", chosen)
        print(f"    {variant} named so in {sum(variant in a.names for _, a in chosen)} of {len(chosen)}; wrongly in "
              f"{len(wrong)} of {len(pairs) - len(chosen)}")


def line(what: str, chosen: list[tuple[Window, Any]]) -> None:
    if not chosen:
        return
    hits = [[a == t for a, t in zip(answer.names, w.names, strict=True) if t] for w, answer in chosen]
    right, sure = np.array([all(h) for h in hits]), np.array([a.numbering_anchored for _, a in chosen])
    print(f"{what:22s} {len(chosen):5d}  named {np.mean(np.concatenate(hits)):.3f}  all right {right.mean():.3f}  "
          f"anchored {sure.mean():.3f}  anchored but wrong {(sure & ~right).mean():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the real data; holds landmarks")
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--weights", type=Path, default=None, help="a file of the geometry network that saw none of these scans")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    args = parser.parse_args()
    import torch

    from recipes.evidence_networks import load_geometry

    torch.set_num_threads(1)
    scans, fold = collections(args.data)
    parts = []
    for k in args.folds:
        model = load_geometry(args.weights or args.work / "geometry" / f"fold_{k}.pth")
        parts.append(spines(model, [s for s, f in zip(scans, fold, strict=True) if f == k], args.noise))
    own, answers = [], []
    for k, part in enumerate(parts):
        rest = [s for j, other in enumerate(parts) if j != k or len(parts) == 1 for s in other]
        own += part
        answers += decoded(part, rest)
    table(own, answers)


if __name__ == "__main__":
    main()
