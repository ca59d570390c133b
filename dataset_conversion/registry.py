"""Which public datasets can be converted, and the one function that does it.

A converter is a module here with `convert(source, output_folder, **options) -> Report | list of case names`; `phantom` makes
its own data and takes no source.
"""
from __future__ import annotations

import importlib
import inspect
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spineclue_v2.errors import InputError
from spineclue_v2.utilities import paths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converter:
    """`dataset` is the name after the id; `needs_source` is False where the data are made."""

    dataset: str
    what: str
    needs_source: bool = True


CONVERTERS = {
    "phantom": Converter("SpinePhantom", "synthetic spines (--cases, --seed)", needs_source=False),
    "phantom_mr": Converter("SpinePhantomMR", "synthetic sagittal MR (--cases, --unlabelled, --test, --contrast, --seed)",
                            needs_source=False),
    "nnunet": Converter("Spine", "any nnU-Net v2 raw dataset whose labels name vertebrae"),
    "verse19": Converter("VerSe19", "VerSe 2019, subject-based or MICCAI release (CT)"),
    "verse20": Converter("VerSe20", "VerSe 2020, subject-based or MICCAI release (CT)"),
    "ctspine1k": Converter("CTSpine1K", "CTSpine1K (CT)"),
    "totalsegmentator": Converter("TotalSegmentatorSpine", "TotalSegmentator v2, one file per structure (CT)"),
    "csi2014": Converter("CSI2014", "CSI 2014 challenge, T1..L5 (CT)"),
    "mrspineseg": Converter("MRSpineSeg", "MRSpineSeg challenge (MR)"),
    "spider": Converter("SPIDER", "SPIDER, lumbar (MR)"),
}


def convert_dataset(name: str, dataset_id: int, source: str | Path | None = None, dataset_name: str | None = None,
                    output_root: str | Path | None = None, **options: Any) -> Path:
    """Convert the public dataset `name` at `source` into `DatasetXXX_Name` of the raw folder; returns that folder.

    Runs again without harm. Options the converter does not know are an InputError.
    """
    if name not in CONVERTERS:
        raise InputError(f"There is no converter '{name}'; known: {', '.join(CONVERTERS)}.")
    converter = CONVERTERS[name]
    if not 1 <= int(dataset_id) <= 999:
        raise InputError(f"Dataset id {dataset_id} is out of range; expected 1..999.")
    if converter.needs_source and source is None:
        raise InputError(f"spineclue_convert_dataset {name} needs -i FOLDER, the downloaded dataset.")
    if source is not None and not converter.needs_source:
        raise InputError(f"spineclue_convert_dataset {name} takes no -i; it makes its own data.")
    if source is not None and not Path(source).is_dir():
        raise InputError(f"{source} is no folder; expected the downloaded dataset.")
    title = dataset_name or converter.dataset
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", title):
        raise InputError(f"Dataset name '{title}' may hold letters, digits, - and _ only.")
    root = Path(output_root) if output_root is not None else paths.raw_folder()
    target = root / f"Dataset{int(dataset_id):03d}_{title}"
    taken = [p.name for p in root.glob(f"Dataset{int(dataset_id):03d}_*") if p.name != target.name] if root.is_dir() else []
    if taken:
        raise InputError(f"Dataset id {dataset_id} is taken by {taken[0]} in {root}; choose another -d.")
    convert = importlib.import_module(f".{name}", __package__).convert
    known = inspect.signature(convert).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = [option for option in options if option not in known and not open_ended]
    if unknown:
        raise InputError(f"Converter '{name}' has no option {', '.join(unknown)}; it knows {', '.join(known)}.")
    result = convert(target, **options) if not converter.needs_source else convert(Path(source or ""), target, **options)
    logger.info("%s -> %s (%d cases)\nNext: spineclue_plan_and_preprocess -d %d --verify_dataset_integrity", name, target,
                len(result), int(dataset_id))
    return target
