"""spineclue_convert_dataset: bring a public dataset into the raw format."""
from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "Convert a public spine dataset (or make synthetic spines) into nnU-Net v2's raw format with VerSe label values."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="which dataset: phantom, nnunet, ...; an unknown name lists all")
    parser.add_argument("-i", default=None, metavar="SRC", help="folder of the downloaded dataset")
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id, 1..999")
    parser.add_argument("-name", default=None, dest="dataset_name", help="name after the id; default: the dataset's own")
    parser.add_argument("-np", type=int, default=None, help="worker processes; default: from cores and memory")
    parser.add_argument("-grades", type=Path, default=None, metavar="CSV",
                        help="verse19, verse20: table with subject, verse_label, genant_grade")
    parser.add_argument("--keep_known_errors", action="store_true",
                        help="ctspine1k, totalsegmentator: take the cases with known label errors too")
    parser.add_argument("--cases", type=int, default=None,
                        help="phantom: number of cases (default 40); phantom_mr: labelled ones (default 5)")
    parser.add_argument("--pathology", default=None, metavar="LIST", help="phantom: abnormalities of every case, for example "
                        "scoliosis=50,screws=4,fracture=L1:3:crush; an unknown one lists all")
    parser.add_argument("--seed", type=int, default=None, help="phantom, phantom_mr: seed of the first case (default 1)")
    parser.add_argument("--unlabelled", type=int, default=None, help="phantom_mr: unlabelled cases, written to imagesUl (default 40)")
    parser.add_argument("--test", type=int, default=None, help="phantom_mr: labelled test cases, written to imagesTs (default 0)")
    parser.add_argument("--contrast", default=None, help="phantom_mr: t2, t1, stir, water or fat (default t2)")


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.dataset_conversion.registry import convert_dataset

    from ..utilities.parallel import default_processes

    options = {"cases": args.cases, "seed": args.seed, "pathology": args.pathology, "grades": args.grades,
               "keep_known_errors": args.keep_known_errors or None, "unlabelled": args.unlabelled, "test": args.test,
               "contrast": args.contrast}
    if args.name == "phantom":
        options |= {"cases": 40 if args.cases is None else args.cases, "seed": 1 if args.seed is None else args.seed}
    if args.name == "phantom_mr":
        options |= {"cases": 5 if args.cases is None else args.cases, "unlabelled": 40 if args.unlabelled is None else args.unlabelled}
    given = {key: value for key, value in options.items() if value is not None}
    given["num_processes"] = default_processes() if args.np is None else args.np
    convert_dataset(args.name, args.d, args.i, args.dataset_name, **given)
    return 0
