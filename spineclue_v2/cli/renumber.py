"""`spineclue_renumber`: number predicted scans again under what you know of their levels."""
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..results import SpineResult

DESCRIPTION = ("Number the vertebrae of predicted CT scans again under what you know: a level, the number of lumbar or thoracic vertebrae, "
               "an earlier examination, or the patient's other scans. No network runs; all files of the case are rewritten.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder that spineclue_predict wrote")
    parser.add_argument("-case", nargs="+", default=None, metavar="NAME", help="only these cases, default: all")
    parser.add_argument("-i", default=None, metavar="SCANS", help="where the scans lie now, to draw the pictures again; default: where "
                        "they lay when they were predicted")
    add_known_arguments(parser)
    add_prior_argument(parser)
    parser.add_argument("--one_patient", action="store_true", help="all cases are scans of one patient: they are numbered jointly")
    parser.add_argument("--scan_alone", action="store_true", help="forget what was known: the numbering by the scan alone")


def add_known_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--known", nargs="+", default=[], metavar="PIN", help="levels you know: L5@x,y,z (LPS mm), L5@i,j,k:voxel, 3=L1 "
                        "(the third one found), lowest=L5, uppermost=C1; or a JSON file with a list of these per case")
    parser.add_argument("--lumbar", type=int, choices=(5, 6), default=None, help="the patient has so many lumbar vertebrae")
    parser.add_argument("--thoracic", type=int, choices=(11, 12, 13), default=None, help="the patient has so many thoracic vertebrae")


def add_prior_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prior", default=None, metavar="EARLIER", help="an earlier result (CASE.json) or centroid file (CASE_ctd.json, "
                        "its label map beside it) of the same patient: its levels are carried over where the rows of vertebrae fit")


def run(args: argparse.Namespace) -> int:
    from ..anatomy.known import known_by_case
    from ..inference.prior import renumber_cases_by_prior
    from ..inference.renumber import chosen_cases, renumber_folder
    from ..inference.series import number_series

    if [bool(args.known or args.lumbar or args.thoracic), args.prior is not None, args.one_patient, args.scan_alone].count(True) != 1:
        raise InputError("Give one of: what is known (--known, --lumbar, --thoracic), --prior, --one_patient, or --scan_alone, which "
                         "forgets them.")
    cases = chosen_cases(args.folder, args.case)
    if args.prior is not None:
        return say(renumber_cases_by_prior(args.folder, cases, args.prior, args.i))
    if args.one_patient:
        return say(number_series(args.folder, cases, args.i))
    return say(renumber_folder(args.folder, known_by_case(args.known, args.lumbar, args.thoracic, cases), args.i))


def say(outcome: dict[str, SpineResult | str]) -> int:
    """Print what became of each case. Exit code 1 where one failed."""
    failed = {name: why for name, why in outcome.items() if isinstance(why, str)}
    for name, result in outcome.items():
        if not isinstance(result, str):
            print(f"{name}: {result!r}")
            for flag in result.flags:
                if flag.stage == "identify":
                    print(f"  {flag.message}")
    for name, why in failed.items():
        print(f"{name}: unchanged. {why}")
    return 1 if failed else 0
