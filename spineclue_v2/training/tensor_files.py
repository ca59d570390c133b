"""Tensors with a JSON description in one file that loads without unpickling."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..utilities.files import atomic_path


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON string by rename; `load_weights` reads them without unpickling anything else."""
    with atomic_path(path) as temporary:
        torch.save({"tensors": dict(tensors), "description": json.dumps(description, sort_keys=True)}, temporary)


def load_weights(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of `kind`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Weights {path} do not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description = json.loads(content["description"])
        found = description["kind"]
    except Exception as error:  # torch raises many kinds for broken or foreign files
        raise InputError(f"{path} is not a file of a {kind} ({type(error).__name__}).") from error
    if found != kind:
        raise InputError(f"{path} holds a {found}, expected a {kind}.")
    return content["tensors"], description
