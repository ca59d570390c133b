"""Tables of the real exam from the records of its cases."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .real_cases import SEEN, Scan
from .real_scoring import Predicted, compare
from .real_windows import TRIVIAL, WINDOWS

COLUMNS = ("cases", "points", "found", "named", "named*", "all right", "false", "anchored", "anch. wrong", "contradict", "loss>20%", "s")


def report(scans: Sequence[Scan], records: Sequence[dict[str, Any]], seen: bool) -> str:
    """All tables. `seen`: the weights are those that saw some of the patients, whose rows say so."""
    base = {record["scan"]: record for record in records if record["kind"] == "whole"}
    known = {scan.name: scan for scan in scans}
    marks = {name: f"  seen ({stages})" for name, stages in SEEN.items()} if seen else {}
    lines = ["Whole scans"]
    whole = [record for record in records if record["kind"] == "whole" and known[record["scan"]].points]
    lines += scan_table(whole, known, marks)
    groups = {"all": whole, "necks_coarse": [r for r in whole if r["scan"].startswith("necks")],
              "others": [r for r in whole if not r["scan"].startswith("necks")],
              "others, not seen": [r for r in whole if not r["scan"].startswith("necks") and r["scan"] not in SEEN]}
    lines += ["", *figures_table(groups, base)]
    lines += ["", "No vertebra in view: " + ("; ".join(
        f"{known[r['scan']].short} {'nothing found' if not r['figures']['predicted'] else ' '.join(names_of(r))}"
        for r in records if known[r["scan"]].points == () and r["kind"] == "whole") or "-")]
    lines += ["Unlabelled: " + ("; ".join(f"{known[r['scan']].short} {' '.join(names_of(r))}{anchor(r)}"
                                          for r in records if known[r["scan"]].points is None and r["kind"] == "whole") or "-")]
    for title, kinds in (("Windows", WINDOWS), ("Trivial changes", TRIVIAL)):
        of = [record for record in records if record["kind"] in kinds and known[record["scan"]].points != ()]
        if not of:
            continue
        groups = {kind: [r for r in of if r["kind"] == kind] for kind in kinds} | {
            "all": of, "necks_coarse": [r for r in of if r["scan"].startswith("necks")],
            "others": [r for r in of if not r["scan"].startswith("necks")]}
        lines += ["", title, *figures_table(groups, base)]
        if kinds is TRIVIAL:
            lines += changed_lines(of, base, known)
        else:
            lines += contradiction_lines(of, base)
    lines += ["", "named*: of the vertebrae whose case shows a landmark (C1 or C2, first rib, last rib, sacrum). contradict: share of "
              "vertebrae with another name than the same scan as a whole gave them."]
    return "\n".join(lines) + "\n"


def names_of(record: dict[str, Any]) -> list[str]:
    return [f"{v['name']}{'' if v['confidence'] > 0.9 else '?'}" for v in record["vertebrae"]] or ["nothing"]


def anchor(record: dict[str, Any]) -> str:
    return ", anchored" if record["figures"]["anchored"] else ""


def scan_table(records: Sequence[dict[str, Any]], known: dict[str, Scan], marks: dict[str, str]) -> list[str]:
    lines = [f"{'scan':26s} {'points':>6s} {'found':>5s} {'named':>5s} {'false':>5s} right anchored loss>20% {'s':>5s}  names"]
    for record in records:
        f = record["figures"]
        state = "WRONG" if f["anchored_wrong"] else "yes" if f["anchored"] else "no"
        names = names_of(record)
        lines.append(f"{known[record['scan']].short:26s} {f['points']:6d} {f['found']:5d} {f['named']:5d} {len(f['false']):5d} "
                     f"{'yes' if f['all_right'] else 'no':5s} {state:8s} {len(f['heights_lost']):3d}/{f['heights']:<4d} "
                     f"{record['seconds']:5.1f}  {names[0]}..{names[-1]} {truth_and_errors(f)}{marks.get(record['scan'], '')}")
    return lines


def truth_and_errors(figures: dict[str, Any]) -> str:
    wrong = f"true=named {' '.join(figures['wrong'])}" if figures["wrong"] else ""
    return wrong + (f" false {' '.join(figures['false'])}" if figures["false"] else "")


def figures_table(groups: Mapping[str, Sequence[dict[str, Any]]], base: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"{'':18s}" + " ".join(f"{c:>11s}" for c in COLUMNS)]
    for name, records in groups.items():
        if records:
            row = sums(records, base)
            lines.append(f"{name:18s}" + " ".join(f"{row[c]:>11s}" for c in COLUMNS))
    return lines


def sums(records: Sequence[dict[str, Any]], base: dict[str, dict[str, Any]]) -> dict[str, str]:
    """One row of figures over cases, as text."""
    rows = [record["figures"] for record in records]
    answered = [row for row in rows if row["predicted"]]
    marked = [row for row in rows if row["landmark"]]
    pairs = [comparison(record, base) for record in records if record["kind"] != "whole"]
    shared = sum(pair["shared"] for pair in pairs if pair)
    return {"cases": str(len(rows)), "points": str(sum(r["points"] for r in rows)),
            "found": share(sum(r["found"] for r in rows), sum(r["points"] for r in rows)),
            "named": share(sum(r["named"] for r in rows), sum(r["levelled"] for r in rows)),
            "named*": share(sum(r["named"] for r in marked), sum(r["levelled"] for r in marked)),
            "all right": share(sum(r["all_right"] for r in rows), len(rows)), "false": str(sum(len(r["false"]) for r in rows)),
            "anchored": share(sum(r["anchored"] for r in rows), len(answered)),
            "anch. wrong": f"{sum(r['anchored_wrong'] for r in rows)}",
            "contradict": share(sum(pair["differ"] for pair in pairs if pair), shared),
            "loss>20%": share(sum(len(r["heights_lost"]) for r in rows), sum(r["heights"] for r in rows)),
            "s": f"{sum(record['seconds'] for record in records) / len(records):.1f}"}


def share(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def comparison(record: dict[str, Any], base: dict[str, dict[str, Any]]) -> dict[str, int] | None:
    """How the names of a case differ from those of its whole scan; None where that was not predicted."""
    whole = base.get(record["scan"])
    if whole is None:
        return None
    before, now = ([Predicted(v["name"], tuple(v["centre"]), v["confidence"]) for v in r["vertebrae"]] for r in (whole, record))
    return compare(before, now)


def contradiction_lines(records: Sequence[dict[str, Any]], base: dict[str, dict[str, Any]]) -> list[str]:
    """Self-contradiction among windows: names against the whole scan's, where both say that they are anchored, and in all."""
    pairs = [(record, pair) for record in records if (pair := comparison(record, base)) and pair["shared"]]
    anchored = [pair for record, pair in pairs if record["figures"]["anchored"]]
    return [f"windows that contradict their whole scan: {sum(p['differ'] > 0 for _, p in pairs)} of {len(pairs)}; "
            f"among anchored windows {sum(p['differ'] > 0 for p in anchored)} of {len(anchored)}"]


def changed_lines(records: Sequence[dict[str, Any]], base: dict[str, dict[str, Any]], known: dict[str, Scan]) -> list[str]:
    """Which trivial changes changed names or the number of vertebrae."""
    lines: list[str] = []
    changed: dict[str, int] = defaultdict(int)
    compared = [(record, pair) for record in records if (pair := comparison(record, base)) is not None]
    for record, pair in compared:
        before = len(base[record["scan"]]["vertebrae"])
        if pair["differ"] or before != len(record["vertebrae"]) or pair["new"]:
            changed["names" if pair["differ"] else "number"] += 1
            lines.append(f"  {known[record['scan']].short}, {record['kind']}: {' '.join(names_of(base[record['scan']]))} -> "
                         f"{' '.join(names_of(record))}")
    return [f"names changed by a trivial change: {changed['names']} of {len(compared)}; number of vertebrae alone: "
            f"{changed['number']}", *lines]
