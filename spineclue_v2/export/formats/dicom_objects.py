"""What our DICOM objects have in common: who made them, codes, identifiers, writing."""
from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from ...utilities.files import atomic_path
from .codes import Code

MANUFACTURER = "spineclue_v2"
PRIVATE_SCHEME = "99SPINECLUE"
"""Designator of the codes that DICOM and SNOMED CT have no term for; "99" marks private ones (PS3.3 8.2)."""

SERIES_NUMBERS = {"seg": 9001, "sr": 9002, "rtstruct": 9003}  # beyond those that scanners give, so that viewers list them last


def code_item(code: Code) -> Any:
    """A SNOMED CT code as highdicom takes it."""
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, "SCT", code.meaning)


def tracking_uid(series: str, name: str) -> Any:
    """The same UID for the same structure of the same series in every object and every run, so that they can be brought together."""
    from pydicom.uid import UID

    # A UUID in decimals below 2.25 needs no root of our own (PS3.5 B.2); version 5 is a hash of the name.
    return UID(f"2.25.{uuid5(NAMESPACE_OID, f'{MANUFACTURER} {series} {name}').int}")


def save_object(dataset: Any, path: Path) -> Path:
    """Write a dataset by rename; InputError where it cannot be written."""
    with atomic_path(path) as temporary:
        try:
            dataset.save_as(temporary, enforce_file_format=True)
        except OSError as error:
            if error.errno is None:  # pydicom wraps what the file system says
                raise OSError(errno.EIO, str(error)) from error
            raise
    return path
