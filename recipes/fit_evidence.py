"""Fit what the classifiers are worth: `python -m recipes.fit_evidence WORK [--ablate]`.

Reads WORK/rows.pkl (`evidence_rows`). Every window is judged by weights that never saw its patient, with and without each classifier.
Writes WORK/final/evidence.json, fitted on all patients.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from recipes.decoder_penalties import PENALTIES
from recipes.evidence_model import Prepared, fitted_on_all, judge, log_posteriors, prepare, to_json
from recipes.evidence_windows import Window, read_windows
from spineclue_v2.stages.base import CLASSIFIERS

LIMIT = PENALTIES["shifted_limit"]
SETS = {"all three": (CLASSIFIERS, True), "without landmarks": (CLASSIFIERS, False), "without shape": (("geometry", "appearance"), True),
        "without geometry": (("shape", "appearance"), True), "without appearance": (("shape", "geometry"), False),
        "shape": (("shape",), False), "geometry": (("geometry",), False), "appearance": (("appearance",), True)}


def left_out(windows: list[Window], use: tuple[str, ...], landmarks: bool, groups: int) -> tuple[Prepared, np.ndarray]:
    """(prepared cases in the order of `windows`, log posteriors) with weights and bias of the other patients.

    `groups` of patients are left out together; 0: one by one.
    """
    patients = sorted({w.patient for w in windows})
    parts = [patients[i::groups] for i in range(groups)] if groups else [[p] for p in patients]
    posteriors = np.zeros((len(windows), 24))
    for part in parts:
        inside = np.array([w.patient in part for w in windows])
        model = fitted_on_all([w for w, i in zip(windows, inside, strict=True) if not i], use, landmarks)
        own = prepare([w for w, i in zip(windows, inside, strict=True) if i], model.bias)
        posteriors[inside] = log_posteriors(own, model, use)
    return prepare(windows, {}), posteriors


def regions_of(windows: list[Window]) -> dict[str, np.ndarray]:
    necks = np.array([w.patient.startswith("pt_") for w in windows])
    sizes = np.array([len(w.names) for w in windows])
    return {"necks": necks, "other": ~necks, "3-4": sizes <= 4, "5-7": (sizes > 4) & (sizes < 8), "8+": sizes >= 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe; holds rows.pkl")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--groups", type=int, default=12, help="of patients left out together (0: one by one)")
    args = parser.parse_args()
    windows = [w for w in read_windows(args.work / "rows.pkl") if w.regular]
    for name, (use, landmarks) in SETS.items():
        if name != "all three" and not args.ablate:
            continue
        cases, posteriors = left_out(windows, use, landmarks, groups=args.groups)
        print(f"{name:20s} {json.dumps(judge(cases, posteriors, LIMIT))}", flush=True)
        if name == "all three":
            for part, chosen in regions_of(windows).items():
                rows = np.flatnonzero(chosen)
                print(f"    {part:16s} {json.dumps(judge(cases.take(rows), posteriors[rows], LIMIT))}", flush=True)
            for i in np.flatnonzero((posteriors.argmax(1) != cases.truth) & (1 - np.exp(posteriors.max(1)) <= LIMIT)):
                w = windows[i]
                print("    anchored but wrong:", w.scan, w.names[0], "-", w.names[-1], "as", int(posteriors[i].argmax()), "for",
                      int(cases.truth[i]), "whole" if w.whole else "", "slab" if w.slab else "",
                          round(float(np.exp(posteriors[i].max())), 3))
    values = {"evidence_model": to_json(fitted_on_all(windows)), "decoder_penalties": PENALTIES}
    target = args.work / "final" / "evidence.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(values, indent=1))
    print(json.dumps(values["evidence_model"]))


if __name__ == "__main__":
    main()
