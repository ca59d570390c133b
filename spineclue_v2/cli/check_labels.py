"""`spineclue_check_labels`: which labels of a dataset are wrong, worst first."""
from __future__ import annotations

import argparse
from pathlib import Path

from ._workers import add_workers, workers

DESCRIPTION = ("List labels that are probably wrong, worst first, with a picture each: numbering shifted, neighbours swapped or mixed, "
               "merged and cut vertebrae, islands, missing ones, flips, a sacrum labelled L6. --fix applies confirmed corrections "
               "to a copy.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id (501) or name")
    parser.add_argument("-m", default=None, metavar="MODEL", help="folder of the model whose numbering counts too; default: the "
                        "package's own")
    parser.add_argument("--no_model", action="store_true", help="geometry and scan alone: a shifted numbering is not found")
    parser.add_argument("-o", default=None, metavar="OUT", help="folder of label_check.csv and label_check.html, default: the preprocessed "
                        "folder of the dataset; with --fix the new dataset's folder, DatasetXXX_Name")
    parser.add_argument("--fix", default=None, metavar="FILE", help="table with 'yes' in the column confirmed: write a corrected copy of "
                        "the dataset to -o, and check nothing")
    parser.add_argument("--pictures", type=int, default=40, metavar="N", help="pictures of the N worst cases; 0: none")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.label_check.check import check_dataset
    from spineclue_v2.planning.label_check.corrections import corrected_copy, read_corrections
    from spineclue_v2.planning.label_check.report import write_page, write_table

    from ..dataset.raw import RawDataset
    from ..errors import InputError
    from ..inference.model import ModelSource, trained_files
    from ..utilities import paths

    raw = RawDataset(paths.raw_folder() / paths.dataset_name(args.d, paths.raw_folder()))
    if args.fix is not None:
        if args.o is None:
            raise InputError("--fix writes a corrected copy; say where with -o DatasetXXX_Name.")
        target = Path(args.o) if len(Path(args.o).parts) > 1 else paths.raw_folder() / args.o
        corrections = read_corrections(args.fix, raw)
        corrected_copy(raw, corrections, target)
        print(f"{target}: {sum(map(len, corrections.values()))} corrections in {len(corrections)} of {len(raw.cases)} cases")
        return 0
    if raw.channel_name != "CT":
        raise InputError(f"{raw.name} holds {raw.channel_name}; spineclue_check_labels checks vertebrae of CT.")
    if args.m is not None and not args.no_model:
        trained_files(Path(args.m), None)   # once, and not case by case in the workers
    model = None if args.no_model else ModelSource(args.device, None if args.m is None else str(Path(args.m).absolute()))
    folder = Path(args.o) if args.o is not None else paths.preprocessed_folder() / raw.name
    with workers(args) as (executor, count):
        found, failed = check_dataset(raw, model, count, executor, not args.no_pbar)
    write_page(raw, found, failed, folder, args.pictures)
    path = write_table(found, folder)
    alarms = [entry for entry in found if entry.alarm]
    for entry in alarms[:30]:
        print(f"{entry.case}  {entry.kind}  {entry.message}")
    if len(alarms) > 30:
        print(f"... and {len(alarms) - 30} more")
    print(f"{len({entry.case for entry in alarms})} of {len(raw.cases)} cases have an alarm, {len(found) - len(alarms)} notes: {path}")
    for case, why in failed.items():
        print(f"not checked: {case}: {why}")
    return 1 if failed else 0
