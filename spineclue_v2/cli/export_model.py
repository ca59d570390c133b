"""`spineclue_export_model`: a trained model as one ZIP to share, or as the weights of the package."""
from __future__ import annotations

import argparse

from .predict import add_model_arguments, trainers_of

DESCRIPTION = "Write a trained model into a ZIP: weights, plans, model card, licence and a manifest of hashes; no case or patient names."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, help="dataset id or name whose trained model to export")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", help="ZIP to write")
    target.add_argument("--shipped", metavar="DIR", help="write the files that come with the package instead: localize.pth, segment.pth "
                                                         "and identify.pth of one fold (-f), fp16")
    add_model_arguments(parser)
    parser.add_argument("--half", action="store_true", help="weights as fp16: half the size (--shipped: always)")
    parser.add_argument("-license", default=None, metavar="FILE", help="text that becomes LICENSE.txt; without it the ZIP says that no "
                                                                       "licence was stated")


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..model_sharing.export_model import export_model, write_shipped

    if args.shipped is None:
        written = [export_model(args.d, args.o, args.f, args.p, trainers_of(args), args.chk, args.half, args.license)]
    else:
        if args.license:
            raise InputError("-license belongs to the ZIP that -o writes; --shipped writes the weights alone, so leave it out.")
        if not args.f or len(args.f) != 1:
            raise InputError("--shipped writes one fold; choose it with -f.")
        written = write_shipped(args.d, args.f[0], args.shipped, args.p, trainers_of(args), args.chk)
    for path in written:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0
