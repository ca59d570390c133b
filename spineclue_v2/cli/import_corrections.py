"""`spineclue_import_corrections`: results that were corrected in 3D Slicer become training cases."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Make corrected results training cases of a dataset, with their provenance. Open CASE.seg.nrrd (spineclue_predict --also "
               "seg.nrrd) in 3D Slicer, correct it, save it, and give it here.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", required=True, help="corrected CASE.seg.nrrd, a label map of VerSe's values, or a folder of *.seg.nrrd")
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id (501) or name that the cases go into")
    parser.add_argument("-s", default=None, metavar="SCANS", help="the scan, or the folder of scans; default: imagesUl and imagesTr of the "
                        "dataset")
    parser.add_argument("--replace", action="store_true", help="replace labels of training cases; the old ones go to labelsReplaced")


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.dataset_conversion.import_corrections import find_corrections, import_correction

    from ..dataset.raw import RawDataset
    from ..errors import InputError
    from ..utilities import paths

    folder = paths.raw_folder() / paths.dataset_name(args.d, paths.raw_folder())
    corrections = find_corrections(args.i, RawDataset(folder), args.s)
    failed = {}
    for correction in corrections:
        try:
            entry = import_correction(correction, RawDataset(folder), args.replace)
        except InputError as error:
            if len(corrections) == 1:
                raise
            failed[correction.case] = str(error)
            continue
        changed = f", {entry['changed_voxels']} voxels changed" if "changed_voxels" in entry else ""
        print(f"{correction.case}: {entry['levels'][0]} to {entry['levels'][-1]}{changed}")
    for case, why in failed.items():
        print(f"failed: {case}: {why}")
    print(f"{len(corrections) - len(failed)} cases imported into {folder}; next: spineclue_plan_and_preprocess -d {args.d}")
    return 1 if failed else 0
