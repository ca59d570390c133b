"""`spineclue_measure`: angles, discs, sub-regions and bone of label maps that exist."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Measure label maps that exist: angles from end plates fitted in 3D, heights, discs, sub-regions, and with the CT density "
               "of bone. For folders that spineclue_predict or spineclue_ensemble wrote, and for label maps of any tool with VerSe's "
               "values (1..25 C1..L6, 26 sacrum, 28 T13).")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", required=True, help="label map, or a folder that spineclue_predict wrote")
    parser.add_argument("-ct", default=None, help="the CT of the label map, or the folder of the cases' CTs: for the end plate of S1, "
                                                  "density of bone and pictures")
    parser.add_argument("-o", default=None, help="output folder, default: beside the label maps")


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..inference.measure_labels import labelled_cases, measure_case

    cases = labelled_cases(args.i, args.ct)
    failed = {}
    for case in cases:
        try:
            result = measure_case(case, args.o)
        except InputError as error:
            if len(cases) == 1:
                raise
            failed[case.name] = str(error)
            continue
        given = [row for row in result.measures["alignment"] if row["value"] is not None]
        said = ", ".join(f"{row['name']} {row['value']:g} {row['unit']}" for row in given)
        print(f"{case.name}: {said or 'no angle of named levels can be given; see the table'}")
        for note in result.notes:
            print(note)
    if failed:
        width = max(map(len, failed))
        print("Failed:")
        for name, why in failed.items():
            print(f"  {name:<{width}}  {why}")
    return 1 if failed else 0
