"""Windows of real scans through the decoder with a weighted sum, and through `decode_with_trust`: `python -m recipes.judge_decoders WORK`.

Every numbering is possible here (T13, L6, no T12, missed and false detections), unlike in `fit_evidence`. The evidence model is that of the
patients that a window does not show (--groups of patients left out together). The weighted sum has the package's weights and penalties.
"""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.decoder_penalties import PENALTIES
from recipes.evidence_model import fitted_on_all
from recipes.evidence_windows import Window, read_windows
from spineclue_v2.anatomy.vertebral_gaps import vertebral_gaps
from spineclue_v2.stages.base import CLASSIFIERS


def figures(windows: list[Window], answers: list[Any]) -> str:
    if not windows:
        return "none"
    hits = [[a == t for a, t in zip(answer.names, w.names, strict=True)] for w, answer in zip(windows, answers, strict=True)]
    right = np.array([all(h) for h in hits])
    sure = np.array([a.numbering_anchored for a in answers])
    whole = np.array([w.whole for w in windows])
    return (f"windows {len(windows)}: named {np.mean(np.concatenate(hits)):.3f}, all right {right.mean():.3f}, anchored "
          f"{sure.mean():.3f}, anchored "
            f"but wrong {(sure & ~right).mean():.4f}; whole {whole.sum()}: right {(whole & right).sum()}, anchored {(whole & sure).sum()}, "
            f"anchored but wrong {(whole & sure & ~right).sum()}")


def weighted_sum(windows: list[Window]) -> list[Any]:
    import torch

    from spineclue_v2.inference.model import load_shipped
    from spineclue_v2.stages.identify.decoder import Decoder
    from spineclue_v2.stages.identify.evidence import combine_evidence
    from spineclue_v2.stages.identify.plan import Penalties

    run = load_shipped(torch.device("cpu")).plans.stage("identify").run
    decoder, out = Decoder(Penalties.from_dict(run.decoder_penalties)), []
    for window in windows:
        logs, variants = combine_evidence(window.evidence, run.classifier_weights)
        out.append(decoder.decode(logs, vertebral_gaps(window.centres), variants))
    return out


def with_trust(windows: list[Window], groups: int) -> list[Any]:
    from spineclue_v2.stages.identify.plan import Penalties
    from spineclue_v2.stages.identify.trust import decode_with_trust

    patients, penalties = sorted({w.patient for w in windows}), replace(Penalties(), **PENALTIES)
    out: list[Any] = [None] * len(windows)
    for k in range(groups):
        part = patients[k::groups]
        model = fitted_on_all([w for w in windows if w.patient not in part])
        for i, window in enumerate(windows):
            if window.patient in part:
                out[i] = decode_with_trust(window.evidence, vertebral_gaps(window.centres), model, penalties)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe; holds rows.pkl")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--every", type=int, default=1, help="judge every k-th window only")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    windows = [w for w in read_windows(args.work / "rows.pkl") if set(w.evidence) == set(CLASSIFIERS)][::args.every]
    necks = np.array([w.patient.startswith("pt_") for w in windows])
    sacrum = np.array([None in w.names for w in windows])
    for name, answers in (("weighted sum", weighted_sum(windows)), ("trust", with_trust(windows, args.groups))):
        print(f"{name:12s} {figures(windows, answers)}", flush=True)
        for part, chosen in (("necks", necks), ("other", ~necks & ~sacrum), ("with S1", sacrum)):
            rows = np.flatnonzero(chosen)
            print(f"    {part:8s} {figures([windows[i] for i in rows], [answers[i] for i in rows])}", flush=True)
        for window, answer in zip(windows, answers, strict=True):
            if window.whole and tuple(answer.names) != tuple(window.names):
                print("    whole, wrong:", window.scan, window.names[0], "-", [x for x in window.names if x][-1], "as",
                    answer.names[0], "-", answer.names[-1],
                      "anchored" if answer.numbering_anchored else "", round(answer.shifted, 3))


if __name__ == "__main__":
    main()
