"""Evidence of every fold: `python -m recipes.evidence_folds WORK --folds folds.json` writes WORK/folds/K/evidence.json.

Fitted without the patients of fold K, for measuring on them.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from recipes.decoder_penalties import PENALTIES
from recipes.evidence_model import fitted_on_all, to_json
from recipes.evidence_windows import read_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe; holds rows.pkl")
    parser.add_argument("--folds", required=True, type=Path)
    args = parser.parse_args()
    fold_of = json.loads(args.folds.read_text())["patients"]
    windows = read_windows(args.work / "rows.pkl")
    for fold in sorted(set(fold_of.values())):
        rest = [w for w in windows if fold_of[w.patient] != fold]
        values = {"evidence_model": to_json(fitted_on_all(rest)), "decoder_penalties": PENALTIES}
        target = args.work / "folds" / str(fold) / "evidence.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values, indent=1))
        print(fold, len(rest), json.dumps(values["evidence_model"]["scale"]), flush=True)


if __name__ == "__main__":
    main()
