"""`spineclue_predict`: label the vertebrae of one scan or a folder of scans."""
from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ._outputs import add_output_arguments, wanted_formats
from .renumber import add_known_arguments, add_prior_argument, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..anatomy.known import Known
    from ..inference.cases import Case
    from ..inference.model import Model, ModelSource
    from ..results import SpineResult

DESCRIPTION = ("Find, segment and name the vertebrae of CT scans, or vertebral bodies and discs of sagittal lumbar MR. "
               "Without -d or -m the weights that come with the package serve.")


CLASSIFIERS = ("shape", "geometry", "appearance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    add_source_arguments(parser)
    add_model_arguments(parser)
    add_run_arguments(parser)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-i", help="scan file, folder of scans, DICOM file or folder (at any depth), .zip of these, @LIST with one path a "
                        "line, or - for such a list on standard input")
    source.add_argument("--series-of", metavar="DIR", help="folder of scans of one patient: they are numbered jointly")
    parser.add_argument("-o", help="output folder")
    parser.add_argument("--list", action="store_true", help="show the DICOM series of the input and do nothing else")
    parser.add_argument("--series", nargs="+", default=[], metavar="UID", help="of several DICOM series these (the end of a UID is "
                        "enough), or all; default: the longest one of each folder")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-d", help="dataset id or name whose trained model to use")
    source.add_argument("-m", help="folder of a model (a results folder DatasetXXX_Name)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", default="SpineCLUEPlans", help="plans name")
    parser.add_argument("-tr", nargs="+", metavar="TRAINER", help="trainer names of localize, segment and identify, or STAGE=TRAINER for "
                        "any stages whose trainer is not the default")
    parser.add_argument("-f", nargs="+", help="folds to ensemble, default: all that are finished")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint file name")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", default="auto", choices=["ct", "mr", "auto"],
                        help="what the scans are; auto: their DICOM files say, or their values")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("--continue_prediction", "--c", action="store_true", help="skip cases that are complete")
    parser.add_argument("-num_parts", type=int, default=1, help="split the cases into this many parts ...")
    parser.add_argument("-part_id", type=int, default=0, help="... and predict this one (0..num_parts-1)")
    parser.add_argument("-np", type=int, default=0, help="processes that share the cases, one thread and one copy of the networks each; "
                        "default 0: one case after the other in this process")
    parser.add_argument("--dask", default=None, metavar="ADDRESS", help="work on the Dask cluster whose scheduler is at ADDRESS; its "
                        "workers must see the same folders")
    parser.add_argument("--save_probabilities", action="store_true", help="write CASE.npz with the level probabilities")
    parser.add_argument("--no_report", action="store_true", help="write no CASE.png, no CASE.html and no index.html")
    parser.add_argument("--no_measures", action="store_true", help="measure no angles, discs, sub-regions and bone of CT")
    parser.add_argument("--sacrum", default="yes", choices=["yes", "no"],
                        help="no: leave the first sacral segment (26) out of CASE_parts.nii.gz and of the measures")
    parser.add_argument("--forbid_anomalies", action="store_true", help="regular numbering only: no T13, no L6, no missing T12")
    parser.add_argument("--classifiers", nargs="+", default=list(CLASSIFIERS), choices=CLASSIFIERS,
                        help="classifiers of the level to use, where the model has weights for them; shape alone is the paper's method")
    parser.add_argument("--mirror", action="store_true",
                        help="average segmentation (MR: all) with its left-right mirror image (twice the time)")
    parser.add_argument("--intensity-offset", type=float, default=None, metavar="HU", help="add this to all values, e.g. -1024 where "
                        "1024 was added to HU; default: values are HU, or plainly HU + 1024")
    add_output_arguments(parser)
    add_known_arguments(parser)
    add_prior_argument(parser)
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar (there is none without a terminal, either)")
    parser.add_argument("--json", action="store_true", help="print the summary of the run as JSON instead of sentences")


def run(args: argparse.Namespace) -> int:
    from ..anatomy.known import known_by_case
    from ..anatomy.level_ranges import parse_levels
    from ..inference.cases import list_cases
    from ..inference.predict_folder import check_formats_of_cases
    from ..inference.prior import read_prior, renumber_cases_by_prior
    from ..inference.series import number_series

    # What is wrong with the call is said before seconds are spent on loading networks.
    args.i = args.i or args.series_of
    if args.list:
        return show_series(args.i)
    if args.o is None:
        raise InputError("No output folder is given; add -o FOLDER.")
    parse_levels(args.levels)
    if wanted := wanted_formats(args):
        check_formats_of_cases(wanted, list_cases(args.i, args.series))
    listed, modality = cases_and_modality(args)
    cases = [case.name for case in listed]
    known = known_by_case(args.known, args.lumbar, args.thoracic, cases)
    if [any(known.values()), args.prior is not None, args.series_of is not None].count(True) > 1:
        raise InputError("Known levels, --prior and --series-of each decide the numbering; give one of them.")
    if args.prior is not None:
        read_prior(args.prior)
    source = model_source(args, modality)
    after: Callable[[], dict[str, SpineResult | str]] | None = None
    if args.prior is not None:
        after = partial(renumber_cases_by_prior, args.o, cases, args.prior, args.i)
    elif args.series_of is not None and len(cases) > 1:
        after = partial(number_series, args.o, cases, args.i)
    return predict_and_report(args, source.load(), known, listed, source, after)


def cases_and_modality(args: argparse.Namespace) -> tuple[list[Case], str]:
    """The cases of the input, and which of the package's models they need, by --modality or by what the first of them is."""
    from ..inference.cases import list_cases
    from ..inference.modality import modality_of_cases

    said = None if args.modality == "auto" else args.modality.upper()
    if args.m is not None or args.d is not None:
        return list_cases(args.i, args.series, said), "CT"
    listed = list_cases(args.i, args.series, said or "CT")
    if said is None and args.intensity_offset is None and modality_of_cases(listed) == "MR":
        said = "MR"
        listed = list_cases(args.i, args.series, said)
    return listed, said or "CT"


def show_series(source: str) -> int:
    """Print the DICOM series and scan files behind a path."""
    from ..inference.cases import series_rows

    rows = series_rows(source)
    if not rows:
        raise InputError(f"{source} holds no DICOM series and no scan file.")
    columns = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    print("  ".join(f"{name:<{width}}" for name, width in columns.items()).rstrip())
    for row in rows:
        print("  ".join(f"{row[name]:<{width}}" for name, width in columns.items()).rstrip())
    return 0


def model_source(args: argparse.Namespace, shipped: str = "CT") -> ModelSource:
    """Which model -d, -m, -p, -tr, -f, -chk and -device choose; without -d and -m the package's own of modality `shipped`."""
    from ..inference.model import ModelSource
    from ..utilities import paths

    if args.m is None and args.d is None:
        return ModelSource(args.device, modality=shipped)
    folder = Path(args.m) if args.m else paths.results_folder() / paths.dataset_name(args.d)
    trainers = trainers_of(args)
    return ModelSource(args.device, str(folder.absolute()), tuple(args.f) if args.f else None, args.p,
                       tuple(trainers.items()) if trainers else None, args.chk)


def load_model(args: argparse.Namespace) -> Model:
    """That model, loaded."""
    return model_source(args).load()


def trainers_of(args: argparse.Namespace) -> dict[str, str] | None:
    """{stage: trainer} of -tr, in either of its forms."""
    from ..stages.registry import CORE_STAGES, stage_of

    if not args.tr:
        return None
    if all("=" in word for word in args.tr):
        found = dict(word.split("=", 1) for word in args.tr)
        for stage in found:
            stage_of(stage)
        return found
    if len(args.tr) != len(CORE_STAGES) or any("=" in word for word in args.tr):
        raise InputError(f"-tr has {' '.join(args.tr)}; expected the trainers of {', '.join(CORE_STAGES)}, or STAGE=TRAINER words.")
    return dict(zip(CORE_STAGES, args.tr, strict=True))


def predict_and_report(args: argparse.Namespace, model: Model, known: Mapping[str, Known] | None = None,
                       cases: Sequence[Case] | None = None, source: ModelSource | None = None,
                       after: Callable[[], dict[str, SpineResult | str]] | None = None) -> int:
    """Predict with a loaded model, then say where the results are, what failed and where nothing was found. Exit code 0 or 1.

    `after`: numbers the results again, unless a case failed; {case: its new result, or why it stayed as it was}.
    """
    from ..anatomy.level_ranges import parse_levels
    from ..inference.pipeline import Options
    from ..inference.predict_folder import cases_without_finding, predict
    from ..inference.run_summary import run_summary
    from ..utilities.parallel import dask_executor

    options = Options(args.forbid_anomalies, args.mirror, tuple(args.classifiers), intensity_offset=args.intensity_offset,
                      measures=not args.no_measures, sacrum=args.sacrum == "yes", levels=parse_levels(args.levels), modality=args.modality)
    scans = args.i if cases is None else cases
    with dask_executor(args.dask) if args.dask else nullcontext() as executor:
        outcome = predict(scans, args.o, model, options, continue_prediction=args.continue_prediction, num_parts=args.num_parts,
                          part_id=args.part_id, save_probabilities=args.save_probabilities, report=not args.no_report,
                          progress=not args.disable_progress_bar, executor=executor,
                          model_source=(source or model_source(args)) if args.dask or args.np else None, known=known,
                          also=wanted_formats(args), num_processes=args.np)
    failed = {name: why for name, why in outcome.items() if why}
    renumbered = after() if after is not None and not failed else {}
    if args.json:
        unchanged = {name: why for name, why in renumbered.items() if isinstance(why, str)}
        print(json.dumps(run_summary(args.o, outcome | unchanged), indent=2))
        return 1 if failed or unchanged else 0
    empty = cases_without_finding(args.o, (name for name in outcome if name not in failed))
    said = f"{len(outcome) - len(failed) - len(empty)} of {len(outcome)} scans are labelled in {args.o}"
    what = "structure" if model.modality == "MR" else "vertebra"
    print(f"{said}; no {what} was found in {len(empty)}: {', '.join(empty)}." if empty else f"{said}.")
    _say_where_to_look(args.o, [name for name in outcome if name not in failed])
    if failed:
        width = max(map(len, failed))
        print("Failed:")
        for name, why in failed.items():
            print(f"  {name:<{width}}  {why}")
    return say(renumbered) or (1 if failed else 0)


def _say_where_to_look(output: str, done: Sequence[str]) -> None:
    """The page of the one case, or the index of several; nothing where no page was written."""
    page = Path(output) / ("index.html" if len(done) > 1 else f"{''.join(done)}.html")
    if done and page.is_file():
        print(f"Look at it in a browser: {page}")
