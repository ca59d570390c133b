"""Options that say what is written beside the label map."""
from __future__ import annotations

import argparse

FORMAT_NAMES = ("seg.nrrd", "mrk.json", "bids", "crops", "crops_upright", "dicom_seg", "dicom_sr", "dicom_rtstruct")
"""The names in `export.formats.FORMATS`, which takes longer to import than help should."""

DICOM_OBJECTS = ("seg", "sr", "rtstruct")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--also", nargs="+", default=[], choices=FORMAT_NAMES, metavar="FORMAT",
                        help=f"write these formats, too: {', '.join(FORMAT_NAMES)}")
    parser.add_argument("--dicom", nargs="*", default=None, choices=DICOM_OBJECTS, metavar="OBJECT",
                        help="of DICOM input, write DICOM objects: seg, sr, rtstruct; without names all three")
    parser.add_argument("--bids", action="store_true", help="write derivatives/ with the names of VerSe (BIDS)")
    parser.add_argument("--crops", nargs="?", const="", default=None, choices=("", "upright"), metavar="upright",
                        help="write one CT and one mask per vertebra; with upright turned so that the spine runs along z")
    parser.add_argument("--levels", nargs="+", default=[], metavar="LEVEL", help="write these levels alone, such as T12 L1-L5; all are "
                        "found and named")


def wanted_formats(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the formats that the options ask for, each once."""
    names = list(args.also)
    if args.dicom is not None:
        names += [f"dicom_{name}" for name in args.dicom or DICOM_OBJECTS]
    names += ["bids"] * args.bids
    if args.crops is not None:
        names.append("crops_upright" if args.crops else "crops")
    return tuple(dict.fromkeys(names))
