"""From a request to a file of an upload: names, options, and bytes on the disk."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from ..anatomy.known import known_of
from ..errors import InputError
from ..export.formats import check_formats
from ..imageio.grid_checks import FILE_ENDINGS
from .jobs import Job

ENDINGS = (*(ending for ending in FILE_ENDINGS if ending not in (".mhd", ".nhdr")), ".zip", ".dcm")
OPTIONS = ("mirror", "forbid_anomalies", "lumbar", "thoracic", "also")
MAX_NAME = 120
BLOCK = 1 << 20


async def read_form(request: Request) -> FormData:
    """The multipart form of a request; HTTPException 400 where it is none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(400, "Send the scan as multipart/form-data with a field 'file' (curl: -F file=@scan.nii.gz).")
    try:
        return await request.form(max_files=2, max_fields=20, max_part_size=1 << 16)
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message}") from error


def file_of(form: FormData, *names: str) -> UploadFile:
    """The file of a form under the first of `names` that is there; HTTPException 400 where none is."""
    for name in names:
        found = form.get(name)
        if isinstance(found, UploadFile):
            return found
    raise HTTPException(400, f"The form has no file; give the scan in the field '{names[0]}'.")


async def store(upload: UploadFile, job: Job) -> None:
    """Put an uploaded file into its job under a harmless name. HTTPException 415 for the name of no scan, 400 for an empty file."""
    job.name = safe_name(upload.filename or "")
    job.upload.parent.mkdir(parents=True, exist_ok=True)

    def copy() -> int:
        with open(job.upload, "xb") as target:
            shutil.copyfileobj(upload.file, target, BLOCK)
            return target.tell()

    try:
        size = await run_in_threadpool(copy)
    except OSError as error:
        raise HTTPException(507, f"The upload cannot be stored: {error.strerror}.") from error
    finally:
        await upload.close()
    if size == 0:
        raise HTTPException(400, f"{job.name} is empty.")


def safe_name(given: str) -> str:
    """A file name of letters, digits and `._-` that ends as `given` does. HTTPException 415 for endings of no scan."""
    base = re.split(r"[/\\]", given)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", base).lstrip(".-_")
    ending = next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), None)
    if ending is None:
        raise HTTPException(415, f"{base[:80]!r} has not the name of a scan; give one of {', '.join(ENDINGS)}.")
    stem = name[:-len(ending)][:MAX_NAME] or "scan"
    return stem + name[len(name) - len(ending):]


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a prediction, from texts of a form or values of JSON. InputError for what they cannot be."""
    options: dict[str, Any] = {}
    for name in ("mirror", "forbid_anomalies"):
        text = str(given.get(name) or "false").lower()
        if text not in ("true", "false", "1", "0", "on"):
            raise InputError(f"{name} is {text[:40]!r}; expected true or false.")
        options[name] = text in ("true", "1", "on")
    for name in ("lumbar", "thoracic"):
        text = str(given.get(name) or "")
        if text and not re.fullmatch(r"\d{1,2}", text):
            raise InputError(f"{name} is {text[:40]!r}; expected a whole number.")
        options[name] = int(text) if text else None
    known_of(None, options["lumbar"], options["thoracic"])
    also = given.get("also") or ()
    options["also"] = tuple(also.split() if isinstance(also, str) else map(str, also))
    check_formats(options["also"])
    return options


def json_of(text: Any) -> dict[str, Any]:
    """The object in a form's JSON text; InputError for anything else."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"params is no JSON ({str(error)[:80]}).") from error
    if not isinstance(found, dict):
        raise InputError("params is no JSON object.")
    return found
