"""Which prediction file belongs to which reference file."""
from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..imageio.volume import FILE_ENDINGS

VERSE_MASK = "_seg-vert_msk"
PARTS = "_parts"
GROUP_SEPARATOR = ";"
IGNORED_ENDINGS = ("_0000", "_ct", VERSE_MASK)
"""Parts of file names that say what a file is, not which case: nnU-Net's channel, VerSe's (BIDS) image and mask."""


@dataclass(frozen=True)
class CaseFiles:
    """One case: its reference label map and, where there is one, its prediction."""

    case: str
    reference: Path
    prediction: Path | None


def stem(path: Path) -> str:
    """File name without its image ending (`a.nii.gz` -> `a`)."""
    for ending in FILE_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[:-len(ending)]
    return path.stem


def case_key(name: str) -> str:
    """What the name of a file (without its ending) says about the case: IGNORED_ENDINGS are cut off."""
    for ending in IGNORED_ENDINGS:
        name = name.removesuffix(ending)
    return name


def label_files(folder: Path) -> list[Path]:
    """Label maps of a folder, sorted; where VerSe's `*_seg-vert_msk` files are present, only those. The sub-regions `CASE_parts` that
    prediction writes beside `CASE` are none."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")
                   and entry.name.lower().endswith(FILE_ENDINGS))
    stems = {stem(entry) for entry in files}
    files = [entry for entry in files if not (stem(entry).endswith(PARTS) and stem(entry).removesuffix(PARTS) in stems)]
    masks = [entry for entry in files if stem(entry).endswith(VERSE_MASK)]
    return masks or files


def pair_files(reference: str | Path, prediction: str | Path) -> tuple[list[CaseFiles], list[str]]:
    """Pair label maps of two folders (or two single files) by name; returns the cases and the predictions nobody asked for.

    Names are compared exactly, then without nnU-Net's `_0000` and VerSe's `_ct` / `_seg-vert_msk`. A reference without prediction
    stays in the list. InputError when a path is missing, empty, or nothing at all fits.
    """
    reference, prediction = Path(reference), Path(prediction)
    for path, what in ((reference, "reference"), (prediction, "prediction")):
        if not path.exists():
            raise InputError(f"The {what} {path} does not exist.")
    if reference.is_file() != prediction.is_file():
        raise InputError(f"{reference} and {prediction} must be two label files or two folders of label files.")
    if reference.is_file():
        return [CaseFiles(stem(prediction), reference, prediction)], []
    references, predictions = label_files(reference), label_files(prediction)
    if not references:
        raise InputError(f"{reference} holds no label map ({', '.join(FILE_ENDINGS)}).")
    exact = {stem(path): path for path in predictions}
    loose: dict[str, list[Path]] = {}
    for path in predictions:
        loose.setdefault(case_key(stem(path)), []).append(path)
    cases, used = [], set()
    for path in references:
        found = exact.get(stem(path))
        if found is None:
            choices = loose.get(case_key(stem(path)), [])
            if len(choices) > 1:
                raise InputError(f"{path.name} fits several predictions ({', '.join(c.name for c in choices)}); "
                                 "keep one of them in the folder.")
            found = choices[0] if choices else None
        if found is not None:
            if found in used:
                raise InputError(f"{found.name} fits several references (one is {path.name}); keep one of them in the folder.")
            used.add(found)
        cases.append(CaseFiles(stem(found or path), path, found))
    if not used:
        raise InputError(f"No prediction in {prediction} fits a reference in {reference} (looked for {references[0].name} and "
                         f"{len(references) - 1} more); run spineclue_predict -i SCANS -o {prediction}.")
    return cases, [path.name for path in predictions if path not in used]


def read_groups(path: str | Path) -> dict[str, str]:
    """{case: group} from a CSV file with the columns `case` and `group`.

    A case that is in several groups has several rows, or ";" between the names; they come back joined by ";".
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not {"case", "group"} <= set(table.fieldnames or ()):
                raise InputError(f"{path} has the columns {', '.join(table.fieldnames or ()) or 'none'}; expected case,group.")
            groups: dict[str, list[str]] = {}
            for row in table:
                if row["case"]:
                    named = [name.strip() for name in (row["group"] or "").split(GROUP_SEPARATOR) if name.strip()]
                    groups.setdefault(row["case"].strip(), []).extend(named)
            return {case: GROUP_SEPARATOR.join(dict.fromkeys(names)) for case, names in groups.items()}
    except OSError as error:
        raise InputError(f"The table of groups {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table of groups {path} is no CSV file ({error}).") from error
