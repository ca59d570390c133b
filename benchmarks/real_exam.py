"""The real exam: real scans, windows cut from them, and changes that must not matter, through the whole program.

    python -m benchmarks.real_exam -o DIR [--data ../shared/data] [--only whole windows trivial] [--scans NAME ...] [--sample N]
                                   [--folds folds.json --weights DIR/fold_{}] [--resume]

Every case depends on its name alone, so that a sample is a part of the whole exam and two versions meet the same cases. DIR gets one
JSON per case and `report.txt`. With --folds ({scan: fold}) each scan is predicted by the weights of the fold that held its patient out.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .real_cases import Scan, load_scans
from .real_report import report
from .real_scoring import name_at, score
from .real_windows import TRIVIAL, WINDOWS, Made, make

PER_KIND, PER_KIND_NECK = 6, 2         # windows of each kind and scan; the many necks are much alike
SELDOM = {"part": 2}                   # times as many of these


@dataclass(frozen=True)
class Case:
    """One prediction of the exam."""

    scan: Scan
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.scan.short}.{self.kind.replace(' ', '_')}.{self.number}"


def list_cases(scans: Sequence[Scan], only: Sequence[str]) -> list[Case]:
    """All cases in a fixed order; the negatives appear as whole scans alone."""
    cases = [Case(scan, "whole", 0) for scan in scans] if "whole" in only else []
    for scan in scans:
        if scan.points == ():
            continue
        number = PER_KIND_NECK if scan.name.startswith("necks") else PER_KIND
        if "windows" in only:
            cases += [Case(scan, kind, i) for kind in WINDOWS for i in range(number * SELDOM.get(kind, 1))]
        if "trivial" in only:
            cases += [Case(scan, kind, 0) for kind in TRIVIAL]
    return cases


def sampled(cases: Sequence[Case], number: int | None) -> list[Case]:
    """`number` of the cases, kinds in turn and within a kind by a hash of the name: always the same, and a smaller one is a part of a
    larger one."""
    if number is None:
        return list(cases)
    kinds: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: zlib.crc32(f"sample {c.name}".encode())):
        kinds.setdefault(case.kind, []).append(case)
    order = [rows[i] for i in range(max(map(len, kinds.values()), default=0)) for rows in kinds.values() if i < len(rows)]
    return order[:number]


def run_case(case: Case, image: Any, program: Any) -> dict[str, Any] | None:
    """The record of one case (plain JSON), None where the scan does not allow it."""
    made = make(image, case.scan.points, case.kind, case.name)
    if made is None:
        return None
    found = program.predict(made.image)
    names = [name_at(found["labels"], made.image, point.place) for point in made.points]
    figures = score(found["vertebrae"], found["anchored"], made.points, names, made.inside, case.scan.not_normal)
    vertebrae = [asdict(v) | {"centre": in_scan(v.centre, made)} for v in found["vertebrae"]]
    return {"scan": case.scan.name, "kind": case.kind, "number": case.number, "note": made.note, "figures": figures,
            "names": [{"true": p.name, "named": n, "inside": i, "required": p.required}
                      for p, n, i in zip(made.points, names, made.inside, strict=True)],
            "vertebrae": vertebrae, "seconds": round(found["seconds"], 2), "notes": found["notes"]}


def in_scan(place: Sequence[float], made: Made) -> list[float]:
    """A world point of the case in the world of the scan that it was made from."""
    return [round(float(v), 2) for v in (made.back @ [*place, 1.0])[:3]]


def run_cases(cases: Sequence[Case], weights: Path | None, folder: Path, resume: bool) -> None:
    """Predict cases in this process, scan by scan, one JSON each."""
    from .real_model import Program

    waiting = [case for case in cases if not (resume and (folder / f"{case.name}.json").exists())]
    if not waiting:
        return
    program, image, last = Program(weights), None, None
    for number, case in enumerate(sorted(waiting, key=lambda c: c.scan.name), start=1):
        if case.scan.name != last:
            image, last = read(case.scan.path), case.scan.name
        record = run_case(case, image, program)
        temporary = folder / f".{case.name}.json"
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / f"{case.name}.json")
        print(f"{number}/{len(waiting)} {case.name}: " + ("not possible" if record is None else
              f"{record['figures']['found']}/{record['figures']['points']} found, {record['figures']['named']} named, "
              f"{record['seconds']:.1f} s"), flush=True)


def read(path: Path) -> Any:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    return sitk.Clamp(image, sitk.sitkInt16, -32768, 32767)


def fold_of(scan: Scan, folds: dict[str, Any]) -> str:
    """The fold that held the scan's patient out. Names may be given with or without folder and ending; what is in no fold was seen by
    none, so the first serves."""
    short = {Path(name).name.removesuffix(".nii.gz"): str(fold) for name, fold in folds.items()}
    for name in (Path(scan.name).name.removesuffix(".nii.gz"), scan.short, scan.patient):
        if name in short:
            return short[name]
    return min(short.values(), default="0")


def load_records(cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """The records that are there and possible."""
    found = [json.loads(file.read_text(encoding="utf-8")) for case in cases if (file := folder / f"{case.name}.json").exists()]
    return [record for record in found if record is not None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for the records and the report")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=("whole", "windows", "trivial"), default=["whole", "windows", "trivial"])
    parser.add_argument("--scans", nargs="+", default=None, help="only scans whose path below ct/ contains one of these")
    parser.add_argument("--sample", type=int, default=None, metavar="N", help="a fixed subset of N cases (whole scans of them come on top)")
    parser.add_argument("--folds", type=Path, default=None, help="JSON {scan: fold}")
    parser.add_argument("--weights", default=None, help="folder of weights; {} stands for the fold")
    parser.add_argument("--resume", action="store_true", help="keep the records that are there")
    parser.add_argument("--report", action="store_true", help="print the tables of the records that are there, predict nothing")
    args = parser.parse_args()
    if (args.folds is not None) != ("{}" in (args.weights or "")):
        parser.error("--folds goes with --weights that has {} for the fold")
    return args


def main() -> None:
    args = arguments()
    os.nice(10)
    scans = [s for s in load_scans(args.data) if args.scans is None or any(part in s.name for part in args.scans)]
    cases = sampled(list_cases(scans, args.only), args.sample)
    folder = args.o / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    # A trivial change is compared with the unchanged scan, so a sample brings those along.
    bases = {case.scan.name: Case(case.scan, "whole", 0) for case in cases if case.kind in TRIVIAL}
    cases += [case for name, case in bases.items() if all(c.scan.name != name or c.kind != "whole" for c in cases)]
    if not args.report:
        folds = json.loads(args.folds.read_text(encoding="utf-8")) if args.folds else {}
        groups: dict[Path | None, list[Case]] = {}
        for case in cases:
            weights = Path(args.weights.format(fold_of(case.scan, folds))) if args.weights else None
            groups.setdefault(weights, []).append(case)
        for weights, group in groups.items():
            # A process per set of weights: what is loaded once per process is that set's.
            process = multiprocessing.get_context("spawn").Process(target=run_cases, args=(group, weights, folder, args.resume))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"The cases of {weights or 'the shipped weights'} ended with exit code {process.exitcode}.")
    every = list_cases(scans, ("whole", "windows", "trivial")) if args.report else cases
    wholes = [Case(scan, "whole", 0) for scan in scans]
    names = {case.name: case for case in [*every, *wholes]}
    text = report(scans, load_records(list(names.values()), folder), seen=args.weights is None)
    (args.o / "report.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
