"""`spineclue_plot_overlay_pngs`: pictures of label maps on their scans."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Draw each label map of a raw dataset (-d), or of a folder of labels or predictions (-i, -l), on its scan: "
               "curved sagittal and coronal views, vertebrae coloured and named.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", metavar="DATASET", default=None, help="raw dataset (id or name): its imagesTr and labelsTr")
    parser.add_argument("-i", metavar="IMAGES", default=None, help="folder of scans, instead of -d")
    parser.add_argument("-l", metavar="LABELS", default=None, help="folder of label maps (or predictions) of the same names")
    parser.add_argument("-o", metavar="OUT", required=True, help="folder for the pictures")
    parser.add_argument("-np", type=int, default=None, help="worker processes; 0: this process; without it as many as fit")


def run(args: argparse.Namespace) -> int:
    from ..dataset.raw import RawDataset
    from ..errors import InputError
    from ..utilities.parallel import default_processes
    from ..utilities.paths import dataset_name, raw_folder
    from ..visualization.overlay import plot_overlays

    images, labels, values = args.i, args.l, None
    if args.d is not None:
        raw = RawDataset(raw_folder() / dataset_name(args.d, raw_folder()))
        images, labels, values = images or raw.folder / "imagesTr", labels or raw.folder / "labelsTr", raw.verse_value
    if images is None or labels is None:
        raise InputError("Give -d DATASET, or both -i IMAGES and -l LABELS.")
    processes = default_processes() if args.np is None else args.np
    drawn, failed = plot_overlays(images, labels, args.o, processes, progress=True, verse_value=values)
    print(f"{len(drawn)} pictures in {args.o}")
    for case, sentence in failed.items():
        print(f"failed: {case}: {sentence}")
    return 1 if failed else 0
