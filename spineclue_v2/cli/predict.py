"""`spineclue_predict`: label the vertebrae of one scan or a folder of scans."""
from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inference.model import Model, ModelSource

DESCRIPTION = ("Find, segment and name the vertebrae of CT scans, or vertebral bodies and discs of sagittal lumbar MR. "
               "Without -d or -m the weights that come with the package serve.")


CLASSIFIERS = ("shape", "geometry", "appearance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", required=True, help="scan file, folder with a DICOM series, or folder of scans")
    parser.add_argument("-o", required=True, help="output folder")
    add_source_arguments(parser)
    add_model_arguments(parser)
    add_run_arguments(parser)


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
    parser.add_argument("--dask", default=None, metavar="ADDRESS", help="work on the Dask cluster whose scheduler is at ADDRESS; its "
                        "workers must see the same folders")
    parser.add_argument("--save_probabilities", action="store_true", help="write CASE.npz with the level probabilities")
    parser.add_argument("--no_report", action="store_true", help="write no CASE.png")
    parser.add_argument("--forbid_anomalies", action="store_true", help="regular numbering only: no T13, no L6, no missing T12")
    parser.add_argument("--classifiers", nargs="+", default=list(CLASSIFIERS), choices=CLASSIFIERS,
                        help="classifiers of the level to use, where the model has weights for them; shape alone is the paper's method")
    parser.add_argument("--mirror", action="store_true",
                        help="average segmentation (MR: all) with its left-right mirror image (twice the time)")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from ..inference.modality import modality_of_scans
    from ..inference.predict_folder import list_cases

    cases = list_cases(args.i)  # a wrong input path is said before seconds are spent on loading networks
    shipped = "CT"
    if args.d is None and args.m is None:
        shipped = modality_of_scans(case.path for case in cases) if args.modality == "auto" else args.modality.upper()
    source = model_source(args, shipped)
    return predict_and_report(args, source.load(), source)


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
    from ..errors import InputError
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


def predict_and_report(args: argparse.Namespace, model: Model, source: ModelSource | None = None) -> int:
    """Predict with a loaded model, then say where the results are, what failed and where nothing was found. Exit code 0 or 1."""
    from ..inference.pipeline import Options
    from ..inference.predict_folder import cases_without_finding, predict
    from ..utilities.parallel import dask_executor

    options = Options(args.forbid_anomalies, args.mirror, tuple(args.classifiers), args.modality)
    with dask_executor(args.dask) if args.dask else nullcontext() as executor:
        outcome = predict(args.i, args.o, model, options, args.continue_prediction, args.num_parts, args.part_id,
                          args.save_probabilities, not args.no_report, not args.disable_progress_bar, executor,
                          (source or model_source(args)) if args.dask else None)
    failed = {name: why for name, why in outcome.items() if why}
    empty = cases_without_finding(args.o, (name for name in outcome if name not in failed))
    said = f"{len(outcome) - len(failed) - len(empty)} of {len(outcome)} scans are labelled in {args.o}"
    what = "structure" if model.modality == "MR" else "vertebra"
    print(f"{said}; no {what} was found in {len(empty)}: {', '.join(empty)}." if empty else f"{said}.")
    if failed:
        width = max(map(len, failed))
        print("Failed:")
        for name, why in failed.items():
            print(f"  {name:<{width}}  {why}")
    return 1 if failed else 0
