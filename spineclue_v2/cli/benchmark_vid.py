"""`spineclue_benchmark_vid`: the public VID benchmark, from a detector's keypoints to levels."""
from __future__ import annotations

import argparse

DESCRIPTION = ("The VID benchmark (Buergin et al. 2023): levels for a detector's body keypoints. crossval FILE: 5-fold "
               "cross-validation; train FILE -m MODEL: train on all scans; predict FILE [-m MODEL] -o OUT.json: name the "
               "keypoints.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["crossval", "train", "predict"], help="what to do")
    parser.add_argument("file", metavar="FILE", help="landmark file (.json or .json.gz)")
    parser.add_argument("-m", default=None, metavar="MODEL",
                        help="model file: written by train, read by predict (default there: the weights of the package)")
    parser.add_argument("-o", default=None, metavar="OUT.json",
                        help="predict: the levels; crossval: the figures (default: only printed)")
    parser.add_argument("--keep_look_alikes", action="store_true",
                        help="crossval: scans that look like one patient's (the file names no patients) stay in one fold, too")
    parser.add_argument("-epochs", type=int, default=None, help="training epochs (default: those of the published figures)")
    parser.add_argument("-members", type=int, default=None, help="networks in the ensemble (default: as published)")


def run(args: argparse.Namespace) -> int:
    from ..errors import InputError

    wants = {"train": ("-m", args.m), "predict": ("-o", args.o)}
    flag, given = wants.get(args.action, ("", "given"))
    if given is None:
        raise InputError(f"spineclue_benchmark_vid {args.action} needs {flag}.")
    for flag, value in (("-epochs", args.epochs), ("-members", args.members)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, got {value}.")
    return {"crossval": _crossval, "train": _train, "predict": _predict}[args.action](args)


def _settings(args: argparse.Namespace) -> dict:
    from dataclasses import replace

    from ..vid import model as vid_model

    schedule = vid_model.Schedule()
    return {"schedule": schedule if args.epochs is None else replace(schedule, epochs=args.epochs),
            "members": args.members or vid_model.MEMBERS}


def _read_labelled(path: str) -> list:
    from ..errors import InputError
    from ..stages.geometry.vid_landmarks import read_scans
    from ..vid.scans import FOLDS

    labelled = [scan for scan in read_scans(path) if scan.names]
    if len(labelled) < 2 * FOLDS:
        raise InputError(f"VID file {path} has {len(labelled)} scans with 'truth'; training needs at least {2 * FOLDS}.")
    return labelled


def _crossval(args: argparse.Namespace) -> int:
    import time

    from ..utilities.files import write_json
    from ..vid import model as vid_model
    from ..vid import scans as vid
    from ..vid.evaluation import evaluate, report

    scans = _read_labelled(args.file)
    fold = vid.folds(scans, keep_look_alikes=args.keep_look_alikes)
    start = time.perf_counter()
    figures = evaluate(scans, vid_model.crossval(scans, **_settings(args), fold=fold))
    figures["seconds"] = time.perf_counter() - start
    print(report(figures))
    print(f"{vid.FOLDS} trainings and all answers: {figures['seconds']:.0f} s")
    if args.o:
        write_json(args.o, figures)
    return 0


def _train(args: argparse.Namespace) -> int:
    import time

    from ..vid import model as vid_model

    scans = _read_labelled(args.file)
    start = time.perf_counter()
    about = {"trained_on": f"{len(scans)} scans of a VID file"}
    vid_model.train(scans, **_settings(args), about=about).save(args.m)
    print(f"{args.m}: trained on {len(scans)} scans in {time.perf_counter() - start:.0f} s")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..stages.geometry.vid_landmarks import read_scans
    from ..utilities.files import write_json
    from ..utilities.paths import weights_folder
    from ..vid.evaluation import evaluate, report
    from ..vid.model import VidModel
    from ..vid.scans import predictions

    model = VidModel.load(Path(args.m) if args.m else weights_folder() / "vid.pth")
    scans = read_scans(args.file)
    answers = model.number(scans)
    write_json(args.o, predictions(scans, answers))
    print(f"{args.o}: {len(scans)} scans")
    figures = evaluate(scans, answers)
    if figures["scans"]:
        print(report(figures))
    return 0
