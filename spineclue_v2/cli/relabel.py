"""`spineclue_relabel`: name the vertebrae of anybody's label map, or of a list of body centres."""
from __future__ import annotations

import argparse

from ..errors import InputError
from .predict import add_model_arguments, add_source_arguments, load_model

CHOICES = ("auto", "verse", "totalsegmentator", "totalsegmentator_v1", "totalsegmentator_mr", "spineps", "totalspineseg", "moose", "cads",
           "spider", "nnunet")  # as in inference.label_source, which is slow to import

DESCRIPTION = ("Name the vertebrae of a label or instance map made by any tool, by the shape and place of its bodies, and mend its masks. "
               "Levels of known tools count as one more opinion. Or name a list of body centres (VerSe centroid JSON, CSV, 3D Slicer "
               ".mrk.json) by their places. Without -d or -m the weights that come with the package serve.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", required=True, help="label map: one value per vertebra, or one value for all that do not touch; or a "
                        "folder with one mask per structure (vertebrae_L1.nii.gz); or a list of body centres: VerSe centroid .json, .csv "
                        "with columns x, y, z (LPS mm), .mrk.json of 3D Slicer")
    parser.add_argument("-o", required=True, help="output label map (.nii.gz) with VerSe's values; OUT.json and OUT_ctd.json are written "
                        "beside it, and OUT_SCHEME.nii.gz with the source's values (of a folder: folder OUT_masks). Of a list of points: "
                        "the list with levels, same ending")
    parser.add_argument("-ct", default=None, help="the CT of the map: draws OUT.png and measures (OUT_measures.csv, OUT_measures.png, "
                        "OUT_parts.nii.gz); the names depend on it only where the model has an appearance classifier. Of a list of points: "
                        "no picture; VerSe's voxels are then those of the CT, else 1 mm")
    parser.add_argument("--from", dest="scheme", default=None, metavar="SCHEME", help="whose values the map has: " + ", ".join(CHOICES)
                        + ", or a .json that names them; nnunet reads the dataset.json of its folder. Default auto: by names in the file, "
                        "else by values and their order")
    parser.add_argument("--ignore_levels", action="store_true", help="the tool's own levels do not count")
    parser.add_argument("--ignore", type=int, nargs="+", default=[], metavar="VALUE",
                        help="values that are no vertebrae (sacrum, ribs, ...)")
    parser.add_argument("--forbid_anomalies", action="store_true", help="regular numbering only: no T13, no L6, no missing T12")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    add_source_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..inference.pipeline import Options
    from ..inference.relabel import relabel
    from ..inference.relabel_points import is_label_map, relabel_points

    options = Options(forbid_anomalies=args.forbid_anomalies)
    if is_label_map(args.i):
        result = relabel(args.i, args.o, load_model(args), options, args.ignore, args.ct, args.scheme or "auto", not args.ignore_levels)
    else:
        if args.ignore or args.scheme or args.ignore_levels:
            option = "--ignore" if args.ignore else "--from" if args.scheme else "--ignore_levels"
            raise InputError(f"{option} is about values of a label map, and {args.i} is a list of points; leave it out.")
        result = relabel_points(args.i, args.o, load_model(args), options, args.ct)
    names = " ".join(v.level or "?" for v in result.vertebrae)
    print(f"{args.o}: {names or 'no vertebra found'}")
    for row in result.extra.get("source", {}).get("levels", ()):
        if row["tool"] is None or row["tool"] != row["level"]:
            print(f"value {row['value']}: {row['tool'] or '-'} there, {row['level'] or 'no vertebra'} here")
    for note in result.notes:
        print(note)
    if result.vertebrae and not result.numbering_anchored:
        print("The numbering is not anchored: the whole sequence may be shifted up or down.")
    return 0
