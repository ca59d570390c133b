"""Where raw data, preprocessed data and results live. Environment variables are read when asked for, never at import."""
from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError

_NNUNET_VARIABLE = {"raw": "nnUNet_raw", "preprocessed": None, "results": None}


def home() -> Path:
    """`SPINECLUE_HOME`, else `~/spineclue_v2`."""
    return Path(os.environ.get("SPINECLUE_HOME") or Path.home() / "spineclue_v2").expanduser()


def folder(kind: str) -> Path:
    """Folder of `kind` in {'raw', 'preprocessed', 'results'}: `spineclue_<kind>`, for raw else `nnUNet_raw`, else inside `home()`;
    absolute, since workers elsewhere have another current folder."""
    for variable in (f"spineclue_{kind}", _NNUNET_VARIABLE[kind]):
        if variable and os.environ.get(variable):
            return Path(os.environ[variable]).expanduser().absolute()
    return (home() / kind).absolute()


def raw_folder() -> Path:
    return folder("raw")


def preprocessed_folder() -> Path:
    return folder("preprocessed")


def results_folder() -> Path:
    return folder("results")


def dataset_name(dataset: str | int, root: Path | None = None) -> str:
    """Full name `DatasetXXX_Name` for an id (501, '501') or a full name, looked up in raw, preprocessed and results.

    Raises InputError when nothing or several folders fit.
    """
    text = str(dataset)
    roots = [root] if root is not None else [raw_folder(), preprocessed_folder(), results_folder()]
    names = sorted({entry.name for base in roots if base.is_dir() for entry in base.iterdir()
                    if entry.is_dir() and re.fullmatch(r"Dataset\d{3}_.+", entry.name)})
    if re.fullmatch(r"Dataset\d{3}_.+", text):
        if text in names:
            return text
    elif text.isdigit():
        hits = [name for name in names if int(name[7:10]) == int(text)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise InputError(f"Dataset id {text} fits several folders ({', '.join(hits)}); give the full name.")
    else:
        raise InputError(f"'{text}' is no dataset; give an id such as 501 or a full name such as Dataset501_VerSe20.")
    known = ", ".join(names) or "none"
    raise InputError(f"Dataset {text} was not found in {', '.join(str(base) for base in roots)} (known: {known}); "
                     "make it with spineclue_convert_dataset, or set spineclue_raw.")


def weights_folder() -> Path:
    """The weights that come with the package, or those of the folder that `SPINECLUE_WEIGHTS` names."""
    return Path(os.environ.get("SPINECLUE_WEIGHTS") or Path(__file__).parents[1] / "weights")
