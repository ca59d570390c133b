"""`spineclue_evaluate`: predictions against reference labels."""
from __future__ import annotations

import argparse
from typing import Any

from .. import anatomy
from ._workers import add_workers, workers

DESCRIPTION = ("Compare predicted label maps with reference label maps, case by case: detection, identification (ID-rate, VerSe "
               "id.rate, scans with all levels right), Dice, surface distances, calibration. Writes nnU-Net's summary.json with all of it "
               "under 'spineclue'.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-ref", metavar="LABELS", help="reference label maps with VerSe values: a folder (or one file); "
                        "with -d the dataset's labelsTs (labelsTr where there is none)")
    parser.add_argument("-pred", metavar="OUT", required=True, help="predictions on the same grids: a folder (or one file)")
    parser.add_argument("-o", metavar="FILE", default=None, help="where the figures go; without it OUT/summary.json")
    add_workers(parser, progress_flag=None)
    parser.add_argument("--groups", metavar="FILE.csv", default=None, help="columns case,group: repeat the figures per group")
    parser.add_argument("--centroids", choices=("mask", "body"), default="mask", help="centroids of VerSe's id.rate: of whole "
                        "masks (VerSe 2020), or body centres from CASE_ctd.json (VerSe 2019)")
    parser.add_argument("-d", metavar="DATASET", default=None, help="raw dataset (id or name) the reference and --set come from")
    parser.add_argument("--set", metavar="NAME", default=None, help="only this set of the dataset's test_sets.json")
    parser.add_argument("--by_level", action="store_true", help="print the figures of every level")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..evaluation.files import read_groups
    from ..evaluation.summary import dataset_reference, evaluate

    reference, cases = dataset_reference(args.ref, args.d, args.set)
    output = args.o
    if output is None and Path(args.pred).is_dir():
        output = Path(args.pred) / "summary.json"
    groups = read_groups(args.groups) if args.groups else None
    with workers(args) as (executor, processes):
        summary = evaluate(reference, args.pred, output, num_processes=processes, groups=groups, centroids=args.centroids,
                           executor=executor, cases=cases, progress=True)
    print("\n".join(table(summary, args.by_level)))
    if output is not None:
        print(f"\nAll figures: {output}")
    return 1 if summary["spineclue"]["failed"] else 0


def table(summary: dict[str, Any], by_level: bool = False) -> list[str]:
    """The figures of a summary as lines of text."""
    figures = summary["spineclue"]
    lines = _head(figures) + [""] + _regions(figures)
    if by_level:
        levels = {name: figures["levels"][name] for name in anatomy.ANATOMICAL_ORDER if name in figures["levels"]}
        lines += ["", *_grid("level", levels)]
    for group, part in figures.get("groups", {}).items():
        lines += ["", f"Group {group}"] + [f"  {line}" for line in _head(part) + _regions(part)]
    lines += ["", *_confidence(figures["calibration"])]
    for name, count in figures["anomalies"].items():
        if count["scans"] or count["false_alarms"]:
            lines.append(f"{name}: {count['hits']} of {count['scans']} scans right, {count['wrong_place']} in the wrong place, "
                         f"{count['missed']} missed, {count['false_alarms']} false alarms")
    for source, found in figures.get("grading", {}).items():
        lines += ["", *_grading(source, found)]
    if figures["without_prediction"]:
        lines.append(f"Without prediction (all counted as missed): {_names(figures['without_prediction'])}")
    if figures["without_reference"]:
        lines.append(f"Predictions without reference (not counted): {_names(figures['without_reference'])}")
    if figures["failed"]:
        lines += ["", f"{len(figures['failed'])} cases failed and are in none of these figures:"]
        lines += [f"  {item['case']}: {item['error']}" for item in figures["failed"]]
    return lines


def _head(figures: dict[str, Any]) -> list[str]:
    found = figures["detection"]
    return [
        f"{figures['scans']} scans, {figures['vertebrae']} reference vertebrae",
        f"Detection (Dice >= 0.5)    precision {_n(found['precision'])}  recall {_n(found['recall'])}  F1 {_n(found['f1'])}   "
        f"({found['hits']} hits, {found['missed']} missed, {found['false_positives']} false, "
        f"{found['ignored_at_border']} cut by the border and ignored)",
        f"Identification             ID-rate {_n(figures['id_rate'])}  MSE {_n(figures['mse'])}   "
        f"({figures['matched']} matched, {figures['pairs_under_dice_0.5']} of them under Dice 0.5)",
        f"VerSe                      id.rate {_n(figures['verse_id_rate'])}  d_mean {_n(figures['verse_d_mean_mm'], 2)} mm "
        f"({figures['verse_misses']} misses)",
        f"Scans with all levels right             {_n(figures['all_right_rate'])} of the scans; "
        f"{_n(figures['all_right_rate_without_false_positives'])} when false positives count too",
        f"Segmentation               Dice {_n(figures['dice'])}  NSD@1mm {_n(figures['nsd_1mm'])}   matched: "
        f"HD {_n(figures['hd_mm'], 2)} mm  HD95 {_n(figures['hd95_mm'], 2)} mm",
        f"Dice of equal labels       {_n(figures['dice_same_label_mean_over_scans'])}, mean over scans",
    ]


def _regions(figures: dict[str, Any]) -> list[str]:
    return _grid("region", {name: part for name, part in figures["regions"].items() if part["vertebrae"]})


def _grid(title: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"{title:10s}{'n':>6s}{'recall':>9s}{'ID-rate':>9s}{'MSE':>9s}{'id.rate':>9s}{'Dice':>9s}{'NSD':>9s}{'HD95 mm':>9s}"]
    for name, part in parts.items():
        values = [part[key] for key in ("recall", "id_rate", "mse", "verse_id_rate", "dice", "nsd_1mm")]
        cells = [_n(value) for value in values] + [_n(part["hd95_mm"], 2)]
        lines.append(f"{name:10s}{part['vertebrae']:6d}" + "".join(f"{cell:>9s}" for cell in cells))
    return lines


def _confidence(found: dict[str, Any]) -> list[str]:
    lines = []
    if found["vertebrae"]:
        at = found["risk_coverage"]["risk_at"]
        lines.append(f"Confidence of {found['vertebrae']} names: ECE {_n(found['ece'])}; wrong among the surest "
                     + ", ".join(f"{100 * float(share):g} %: {_n(risk)}" for share, risk in at.items()))
    flag = found["numbering_anchored"]
    if flag["scans"]:
        lines.append(f"Numbering of {flag['scans']} scans: anchored {flag['anchored_right']} right, {flag['anchored_wrong']} "
                     f"wrong; not anchored {flag['not_anchored_right']} right, {flag['not_anchored_wrong']} wrong")
    return lines


def _grading(source: str, found: dict[str, Any]) -> list[str]:
    lines = [f"Genant grades by {source}: {found['vertebrae']} vertebrae of {found['patients']} patients, "
             f"{sum(found['counts'][g] for g in '123')} of them fractured; {found['without_grade']} without a grade count as 0"]
    for what in ("per_vertebra", "per_patient"):
        figures, interval = found[what], found["interval"][what]
        named = {"macro-F1": "macro_f1", "AUC >= 1": "auc_1", "AUC >= 2": "auc_2",
                 "specificity at sensitivity 0.85": "specificity_at_sensitivity_0.85",
                 "sensitivity at specificity 0.99": "sensitivity_at_specificity_0.99"}
        cells = [f"{name} {_n(figures[key])} ({_n(interval[key][0])}-{_n(interval[key][1])})" for name, key in named.items()]
        recall = " ".join(f"{grade}: {_n(value)}" for grade, value in figures["recall"].items())
        lines.append(f"  {what.replace('_', ' '):13s}{'  '.join(cells)}  recall {recall}")
    return lines


def _n(value: float, digits: int = 3) -> str:
    return "-" if value != value else f"{value:.{digits}f}"


def _names(cases: list[str]) -> str:
    return ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
