"""Tables of what `recipes.evaluate` wrote: `python -m recipes.tables localize|boxes|segment FILE...`; weights beside weights, per
group of scans."""
from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path
from typing import Any

from .evaluate import WIDE
from .real_cases import scan_name


def group(row: dict[str, Any]) -> str:
    """necks, wide fields, scans without a vertebra, or other."""
    name = scan_name(row["scan"])
    if name.startswith("pt_"):
        return "necks_coarse"
    if name in WIDE:
        return "wide fields"
    return "negatives" if name.startswith("STS_") else "other"


def localize_table(rows: list[dict[str, Any]], per_scan: bool) -> None:
    looks = ("plan", "4mm")
    sums: dict[tuple[str, ...], list[float]] = collections.defaultdict(lambda: [0, 0, 0, 0, 0, 0])
    for row in rows:
        result = row["result"]
        for look in looks:
            if look not in result:
                continue
            r = result[look]
            keys = [(row["weights"], f"fold {row['fold']}", group(row), look), (row["weights"], "all", group(row), look)]
            if per_scan:
                keys.append((row["weights"], f"fold {row['fold']}", scan_name(row["scan"]), look))
            for key in keys:
                s = sums[key]
                s[0] += result["true"]
                s[1] += r["hits"]
                s[2] += r["found"] - r["hits"]
                s[3] += (r["score"] or 0) * r["found"]
                s[4] += r["found"]
                s[5] += 1
    print("| weights | patients | scans | look | scans | vertebrae | found | recall | false per scan | mean score |\n|" + "---|" * 10)
    ordered = sorted(sums.items(), key=lambda item: (item[0][1:], item[0][0]))
    for (name, fold, kind, look), (true, hits, false, score, found, scans) in ordered:
        print(f"| {name} | {fold} | {kind} | {look} | {scans:.0f} | {true:.0f} | {hits:.0f} | {hits / max(1, true):.3f} "
              f"| {false / scans:.2f} | {score / max(1, found):.2f} |")


def boxes_table(rows: list[dict[str, Any]], per_scan: bool) -> None:
    sums: dict[tuple[str, ...], list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for row in rows:
        keys = [(row["weights"], fold, kind) for fold in ("all", f"fold {row['fold']}") for kind in ("every", group(row))]
        for key in keys + ([(row["weights"], f"fold {row['fold']}", scan_name(row["scan"]))] if per_scan else []):
            for place, name in enumerate(("true", "found", "hits")):
                sums[key][place] += row["result"][name]
    print("| weights | patients | scans | true boxes | recall | precision | F1 |\n|" + "---|" * 7)
    for (name, fold, kind), (true, found, hits) in sorted(sums.items(), key=lambda item: (item[0][1:], item[0][0])):
        f1 = 2 * hits / max(1, true + found)
        print(f"| {name} | {fold} | {kind} | {true} | {hits / max(1, true):.3f} | {hits / max(1, found):.3f} | {f1:.3f} |")


def segment_table(rows: list[dict[str, Any]], per_scan: bool) -> None:
    sums: dict[tuple[str, ...], list[Any]] = collections.defaultdict(lambda: [0, 0, [], []])
    for row in rows:
        for level, r in row["result"].items():
            region = {"C1": "C1-C2", "C2": "C1-C2"}.get(level, {"C": "C3-C7", "T": "T", "L": "L"}[level[0]])
            keys = [(row["weights"], "all", group(row), region), (row["weights"], f"fold {row['fold']}", group(row), region),
                    (row["weights"], f"fold {row['fold']}", "all scans", "all")]
            if per_scan:
                keys.append((row["weights"], f"fold {row['fold']}", scan_name(row["scan"]), "all"))
            for key in keys:
                sums[key][0] += 1
                sums[key][1] += r.get("right", 0)
                sums[key][2] += [r["dice"]] if "dice" in r else []
                sums[key][3] += [r["clean"]] if "clean" in r else []
    print("| weights | patients | scans | region | points | right | share | clean (n) | Dice (n) |\n|" + "---|" * 9)
    for (name, fold, kind, region), (points, right, dice, clean) in sorted(sums.items(), key=lambda item: (item[0][1:], item[0][0])):
        tidy = f"{sum(clean) / len(clean):.3f} ({len(clean)})" if clean else ""
        text = f"{sum(dice) / len(dice):.3f} ({len(dice)})" if dice else ""
        print(f"| {name} | {fold} | {kind} | {region} | {points} | {right} | {right / points:.3f} | {tidy} | {text} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("localize", "boxes", "segment"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--per-scan", action="store_true")
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    rows = [row for file in args.files for row in map(json.loads, file.read_text().splitlines()) if row["fold"] in args.folds]
    {"localize": localize_table, "boxes": boxes_table, "segment": segment_table}[args.stage](rows, args.per_scan)


if __name__ == "__main__":
    main()
