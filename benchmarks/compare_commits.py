"""Two commits trained and predicted, compared number by number.

    python benchmarks/compare_commits.py run OLD NEW --data ../shared/data        both commits, then the comparison
    python benchmarks/compare_commits.py record -o RECORD --data ../shared/data   what the checkout at hand gives
    python benchmarks/compare_commits.py compare OLD_RECORD NEW_RECORD [--renames FILE] [--explained FILE]

A record holds, made by the public commands on one thread of a CPU:

    plans      plans of six fingerprints: default planner for three budgets, the paper's planner
    phantoms   four synthetic scans (C1-C4, T9-T12, L2-L5, L3-L6 with screws): digests of their voxels, label maps, centroids, grades;
               the label maps, JSON records and probabilities found in them; the figures of `spineclue_evaluate`
    real       label maps, JSON records and probabilities of real CTs (`--data`), by default and with each switch of the prediction
    relabel    names for the vertebrae of two real label maps
    demo       what `spineclue_demo` writes
    training   20 steps of every trainer on small synthetic data sets (each step an epoch of its own, so that the checkpoint holds its
               loss in full precision), sums over the weights, the validation, and predictions with these weights

`record` installs the checkout into a temporary folder beside the dependencies of the running Python; with `--python PY` it takes what
PY's environment has installed. A part is made anew with `--only plans training`.

`compare` prints each difference: file, place in it, how many values differ, the largest difference; of label maps the voxels that differ
and Dice. What differs alike in several files is one line (`--all`: one for each file). Seconds and versions are not compared. The files
of renames and of reasons are JSON:

    renames     {"keys": {"old": "new"}, "values": {..}, "places": {"old/beginning": "new/beginning"}, "files": {..}}
                or the table of keys alone
    explained   [{"file": "real/*.json", "place": "plans/weights/*", "why": "the weights were saved anew", "largest": 1e-6}, ..]
                * and ? are wildcards; `largest` (optional) is the size up to which the reason holds

Exit code 0: no difference without a reason; 1: there are some, or a record is not complete; 2: bad arguments.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: its neighbours are a package
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import commit_record
from benchmarks.record_differences import Difference, Renames, compare, condensed, read_explanations, unused


def main(argv: list[str] | None = None) -> int:
    """Run one of the three commands; returns the exit code."""
    args = build_parser().parse_args(argv)
    return args.function(args)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{record,compare,run}")
    recording = commands.add_parser("record", help="write what a commit gives into a folder")
    recording.add_argument("-o", type=Path, required=True, metavar="RECORD", help="folder of the record")
    recording.add_argument("--checkout", type=Path, default=commit_record.ROOT, help="working tree to record; default: this one")
    recording.add_argument("--python", default=None, metavar="PY", help="record what this interpreter's environment has installed instead")
    recording.set_defaults(function=record_one)
    comparing = commands.add_parser("compare", help="differences of two records")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.set_defaults(function=compare_two)
    running = commands.add_parser("run", help="record two commits of this repository and compare them")
    running.add_argument("old", help="commit, branch or tag")
    running.add_argument("new", help="commit, branch or tag")
    running.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="keep the records here")
    running.set_defaults(function=run_both)
    for command in (recording, running):
        command.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="real scans; without it no real scan is recorded")
        command.add_argument("--only", nargs="+", default=[], choices=list(commit_record.ITEMS), help="parts to record; default: all")
    for command in (comparing, running):
        command.add_argument("--renames", type=Path, default=None, metavar="FILE", help="JSON of what the new commit calls otherwise")
        command.add_argument("--explained", type=Path, default=None, metavar="FILE", help="JSON of differences that have a reason")
        command.add_argument("--all", action="store_true", help="a line for each file, also where many differ alike")
        command.add_argument("--tolerance", type=float, default=0.0, help="numbers that differ by no more are equal; default: bit by bit")
    return parser


def record_one(args: argparse.Namespace) -> int:
    checkout = None if args.python else args.checkout
    about = commit_record.record(args.o, args.python or sys.executable, checkout, args.data, _items(args))
    return complete(about)


def compare_two(args: argparse.Namespace) -> int:
    explanations = read_explanations(args.explained)
    differences = compare(args.old, args.new, Renames.read(args.renames), explanations, args.tolerance)
    print("\n".join(report(differences if args.all else condensed(differences))))
    for entry in unused(explanations, differences):
        print(f"not needed: {entry.file}: {entry.place}  [{entry.why}]")
    return int(any(not difference.reason for difference in differences))


def run_both(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="compare_commits_") as place:
        kept, codes = args.keep or Path(place) / "records", []
        for name, commit in (("old", args.old), ("new", args.new)):
            tree = Path(place) / name
            commit_record.git(commit_record.ROOT, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            try:
                codes.append(complete(commit_record.record(kept / name, checkout=tree, data=args.data, only=_items(args))))
            finally:
                commit_record.git(commit_record.ROOT, "worktree", "remove", "--force", str(tree))
        args.old, args.new = kept / "old", kept / "new"
        return max(*codes, compare_two(args))


def complete(about: dict) -> int:
    """0 when every part of a record could be made, else 1 after a line for each thing that could not."""
    failures = [f"{name}: {why}" for name, item in about["items"].items() for why in item["failures"]]
    print("\n".join(failures) if failures else f"recorded: {', '.join(about['items'])} of {about['commit']}")
    return int(bool(failures))


def report(differences: list[Difference]) -> list[str]:
    """Lines: differences without a reason, then those with one, then their numbers."""
    unexplained = [difference for difference in differences if not difference.reason]
    explained = [difference for difference in differences if difference.reason]
    lines = [difference.line() for difference in unexplained]
    if explained:
        lines += ["", "With a reason:", *(difference.line() for difference in explained)]
    reasons = Counter(difference.reason for difference in explained)
    lines += ["", f"{len(unexplained)} differences without a reason, {len(explained)} with one."]
    return lines + [f"  {count:4d}  {reason}" for reason, count in reasons.most_common()]


def _items(args: argparse.Namespace) -> list[str]:
    """The parts asked for; all, without those that need real scans where no folder of them is given."""
    return args.only or [name for name in commit_record.ITEMS if args.data is not None or name not in ("real", "relabel")]


if __name__ == "__main__":
    sys.exit(main())
