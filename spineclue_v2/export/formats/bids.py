"""BIDS derivatives with the file names of VerSe: `derivatives/sub-X/sub-X_seg-vert_msk.nii.gz` and its neighbours."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

from ...errors import InputError
from ...imageio.centroids import write_ctd
from ...imageio.volume import Volume, write_volume
from ...utilities.files import atomic_path, write_json
from ...version import __version__
from .base import Exportable

DESCRIPTION = "dataset_description.json"
_ENTITY = re.compile(r"[a-zA-Z]+-[a-zA-Z0-9]+")
_SUFFIXES = ("ct", "T1w", "T2w", "bold", "PD")


def write_bids(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """Mask, centroids and, where the picture was drawn, snapshot of a case; `dataset_description.json` once. Returns the mask's path."""
    root = folder / "derivatives"
    mask, centroids, snapshot = bids_files(folder, case)
    if not (root / DESCRIPTION).is_file():
        write_json(root / DESCRIPTION, {
            "Name": "Vertebrae", "BIDSVersion": "1.9.0", "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "spineclue_v2", "Version": __version__}]})
    write_volume(labels, mask)
    write_ctd(centroids, result.vertebrae, labels.geometry)
    picture = folder / f"{case}.png"
    if picture.is_file():
        with atomic_path(snapshot) as temporary:
            shutil.copyfile(picture, temporary)
    return mask


def bids_files(folder: Path, case: str) -> tuple[Path, Path, Path]:
    """Mask, centroids and snapshot of a case."""
    stem = folder / "derivatives" / bids_subject(case) / bids_stem(case)
    mask, centroids, snapshot = (stem.with_name(f"{stem.name}_seg-{ending}") for ending in ("vert_msk.nii.gz", "subreg_ctd.json",
                                                                                           "vert_snp.png"))
    return mask, centroids, snapshot


def bids_stem(case: str) -> str:
    """`sub-verse500_dir-ax` of "sub-verse500_dir-ax_ct"; "Case 1" becomes `sub-Case1`. BIDS labels are letters and digits."""
    parts = case.split("_")
    if len(parts) > 1 and parts[-1] in _SUFFIXES:
        parts = parts[:-1]
    if parts[0].startswith("sub-") and all(_ENTITY.fullmatch(part) for part in parts):
        return "_".join(parts)
    return "sub-" + re.sub("[^a-zA-Z0-9]", "", "_".join(parts).removeprefix("sub-"))


def bids_subject(case: str) -> str:
    """`sub-verse500` of the same."""
    return bids_stem(case).split("_")[0]


def check_bids_names(cases: list[str]) -> None:
    """InputError when a case has no letter or digit, or two would be written into the same files."""
    owner: dict[str, str] = {}
    for case in cases:
        stem = bids_stem(case)
        if stem == "sub-":
            raise InputError(f"Case '{case}' has no letter or digit, of which BIDS makes a subject's name; rename the scan.")
        if stem in owner:
            raise InputError(f"Cases '{owner[stem]}' and '{case}' would both become {stem} in BIDS; rename one of the scans.")
        owner[stem] = case
