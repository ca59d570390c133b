"""Raw datasets in nnU-Net v2's format: which cases there are, what their labels are called, whose they are."""
from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..anatomy import IGNORE_NAME, IGNORED, LABEL_OF_NAME, VERTEBRA_LABELS
from ..errors import InputError
from ..utilities.files import read_json

logger = logging.getLogger(__name__)


REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")

GRADES_FILE = "grades.json"   # of a preprocessed dataset: {case: {level: Genant grade}}

OWN_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
"""nnU-Net's readers of medical volumes; the package reads the same files with its own, in any orientation."""

_SAMPLE_BYTES = 1 << 16

_SAMPLES = 16


class RawDataset:
    """A raw dataset in nnU-Net v2's format. Opening it validates dataset.json and that every image has its label.

    `image(case)` and `label(case)` are paths; read them with `volume.read_volume` and `volume.read_labels`.
    Raises InputError with what is missing, where, and what to do.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.json = _read_dataset_json(self.folder)
        self.name = self.folder.name
        self.file_ending: str = self.json["file_ending"]
        self.labels: dict[str, int] = _label_values(self.json["labels"], self.folder)
        self.verse_value = verse_values(self.labels, self.folder)
        self._files = self._referenced_files() if "dataset" in self.json else self._listed_files()
        self.cases: list[str] = sorted(self._files)
        self._check_cases()
        self.test_sets = _test_sets(self.folder)
        self.unlabelled = self._unlabelled_files()
        """case -> scan of imagesUl/: scans without labels, for the stages that learn from them."""
        self.patients = self._read_patients()

    @cached_property
    def grades(self) -> dict[str, dict[str, int]]:
        """case -> {level: Genant grade 0..3} of `gradesTr/CASE.json`, for the cases that have one; InputError names a wrong entry."""
        return {case: read_grades(path) for case in self.cases if (path := self.folder / "gradesTr" / f"{case}.json").is_file()}

    @property
    def stray_grades(self) -> list[str]:
        """Names of files of `gradesTr` that belong to no case."""
        known = {f"{case}.json" for case in self.cases}
        return sorted(path.name for path in (self.folder / "gradesTr").glob("[!.]*") if path.name not in known)

    @property
    def channel_name(self) -> str:
        """Name of the first channel, the one that is used ('CT')."""
        return str(self.json["channel_names"]["0"])

    def patient_of(self, case: str) -> str:
        """The patient of a case, also of an unlabelled one; the case itself where dataset.json does not say."""
        return str((self.json.get("patients") or {}).get(case, case))

    def image(self, case: str) -> Path:
        """Path of the scan of `case`."""
        return self._file(case)[0]

    def label(self, case: str) -> Path:
        """Path of the label map of `case`."""
        return self._file(case)[1]

    def case_digest(self, case: str) -> str:
        """sha256 (16 hex digits) that changes when the case's image or label changes; reads a sample of each file.

        A gzip stream ends with the checksum of its whole content, so the sample covers it; for other formats the time of
        the last change counts too.
        """
        digest = hashlib.sha256()
        for path in [self.unlabelled[case]] if case in self.unlabelled else self._file(case):
            digest.update(_file_digest(path).encode())
            if path.suffix != ".gz":
                digest.update(str(path.stat().st_mtime_ns).encode())
        return digest.hexdigest()[:16]

    def content_hash(self) -> str:
        """sha256 (16 hex digits) over case names, sampled file content, labels and patients, wherever the folder lies."""
        content = {"labels": self.labels, "patients": self.patients,
                   "cases": {case: [_file_digest(path) for path in self._file(case)] for case in self.cases}}
        if self.grades:  # datasets without grades keep the hash they had before there were any
            content["grades"] = self.grades
        if self.unlabelled:
            content["unlabelled"] = {case: _file_digest(path) for case, path in sorted(self.unlabelled.items())}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _file(self, case: str) -> tuple[Path, Path]:
        if case not in self._files:
            known = ", ".join(self.cases[:3])
            raise InputError(f"Case '{case}' is not in {self.folder} ({len(self.cases)} cases, e.g. {known}).")
        return self._files[case]

    def _listed_files(self) -> dict[str, tuple[Path, Path]]:
        images = self.folder / "imagesTr"
        self._check_some_are_labelled(images)
        if not images.is_dir() or not (self.folder / "labelsTr").is_dir():
            raise InputError(f"{self.folder} has no imagesTr or labelsTr folder; expected nnU-Net v2's raw format, see "
                             "spineclue_convert_dataset.")
        ending = "_0000" + self.file_ending
        cases = [entry.name[:-len(ending)] for entry in images.iterdir()
                 if entry.name.endswith(ending) and not entry.name.startswith(".")]
        return {case: (images / f"{case}{ending}", self.folder / "labelsTr" / f"{case}{self.file_ending}") for case in cases}

    def _check_some_are_labelled(self, images: Path) -> None:
        """InputError for scans without a single label: nothing is learned from these alone."""
        scans = next((place for place in (images, self.folder / "imagesUl") if any(place.glob(f"*{self.file_ending}"))), None)
        labels = self.folder / "labelsTr"
        if scans is not None and not any(labels.glob(f"*{self.file_ending}")):
            raise InputError(f"{self.folder} has scans in {scans.name} and no label map in labelsTr, and training needs some labelled "
                             f"scans; label them, or have labels to correct made by spineclue_predict -i {scans} -o {labels}.")

    def _referenced_files(self) -> dict[str, tuple[Path, Path]]:
        def place(text: str) -> Path:
            path = Path(os.path.expandvars(text))
            return path if path.is_absolute() else (self.folder / path).resolve()
        try:
            return {str(case): (place(entry["images"][0]), place(entry["label"]))
                    for case, entry in self.json["dataset"].items()}
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{self.folder / 'dataset.json'}: 'dataset' must be {{case: {{\"images\": [...], \"label\": ...}}}}."
                             ) from error

    def _unlabelled_files(self) -> dict[str, Path]:
        ending = "_0000" + self.file_ending
        found = {path.name[:-len(ending)]: path for path in sorted((self.folder / "imagesUl").glob(f"*{ending}"))
                 if not path.name.startswith(".")}
        doubled = sorted(set(found) & {*self.cases, *sum(self.test_sets.values(), [])})
        if doubled:
            raise InputError(f"{self.folder}: case '{doubled[0]}' lies in imagesUl and is a training or test case too; keep one of them.")
        return found

    def _check_cases(self) -> None:
        unsafe = [case for case in self.cases if not re.fullmatch(r"[^/\\\x00-\x1f]+", case) or case in (".", "..")]
        if unsafe:
            raise InputError(f"{self.folder / 'dataset.json'}: case {unsafe[0]!r} cannot be a file name; rename it.")
        if not self.cases:
            raise InputError(f"{self.folder} holds no training case; expected imagesTr/CASE_0000{self.file_ending} with "
                             f"labelsTr/CASE{self.file_ending}.")
        for what, which in (("image", 0), ("label map", 1)):
            missing = [case for case in self.cases if not self._files[case][which].is_file()]
            if missing:
                raise InputError(f"{self.folder}: {len(missing)} of {len(self.cases)} cases have no {what}, e.g. "
                                 f"{self._files[missing[0]][which]}; add it or remove the case.")
        if self.json["numTraining"] != len(self.cases):
            raise InputError(f"{self.folder / 'dataset.json'} says numTraining {self.json['numTraining']} but {len(self.cases)} "
                             "cases are there; correct the number or complete the dataset.")
        if len(self.json["channel_names"]) > 1:
            logger.warning("%s has %d channels; only the first (%s) is used.", self.name, len(self.json["channel_names"]),
                           self.channel_name)

    def _read_patients(self) -> dict[str, str]:
        """case -> patient of every case; empty when dataset.json names none."""
        given = self.json.get("patients") or {}
        if not isinstance(given, dict) or not all(isinstance(patient, str | int) for patient in given.values()):
            raise InputError(f"{self.folder / 'dataset.json'}: 'patients' must be {{case: patient}}.")
        unknown = sorted(set(given) - {*self.cases, *self.unlabelled, *sum(self.test_sets.values(), [])})
        if unknown:
            raise InputError(f"{self.folder / 'dataset.json'}: 'patients' names {len(unknown)} unknown cases ('{unknown[0]}').")
        return {case: str(given.get(case, case)) for case in self.cases} if given else {}


def read_grades(path: Path) -> dict[str, int]:
    """{level: Genant grade} of one case; InputError unless levels are known and grades are 0..3."""
    content = read_json(path, "grades")
    for level, grade in content.items() if isinstance(content, dict) else [("(file)", content)]:
        if LABEL_OF_NAME.get(level) not in VERTEBRA_LABELS or type(grade) is not int or not 0 <= grade <= 3:
            raise InputError(f"{path}: {level} {grade!r} is no Genant grade of a vertebra; expected {{\"T12\": 0, \"L1\": 2}} with 0..3.")
    return content


def verse_values(labels: Mapping[str, int], folder: Path | str = "the dataset") -> dict[int, int]:
    """Label value -> VerSe value, matched by name ('L1', 'vertebrae_L1', 'S1' for the sacrum); other structures become 0, nnU-Net's
    "ignore" becomes `anatomy.IGNORED`.

    Raises InputError when no name is a vertebra or two names mean the same level.
    """
    found: dict[int, int] = {}
    for name, value in labels.items():
        found[value] = IGNORED if name == IGNORE_NAME else LABEL_OF_NAME.get(_canonical_name(name), 0)
    vertebrae = [v for v in found.values() if v in VERTEBRA_LABELS]
    if not vertebrae:
        raise InputError(f"{folder}: no label is named after a vertebra (labels: {', '.join(list(labels)[:8])}); name them "
                         "C1..C7, T1..T12, L1..L5 in dataset.json.")
    doubled = {v for v in vertebrae if vertebrae.count(v) > 1}
    if doubled:
        names = [n for n in labels if LABEL_OF_NAME.get(_canonical_name(n)) in doubled]
        raise InputError(f"{folder}: the labels {', '.join(names)} mean the same vertebra; keep one name each in dataset.json.")
    return found


def _canonical_name(name: str) -> str:
    text = re.sub(r"^(vertebrae|vertebra|vert)[_\- ]*", "", name.strip(), flags=re.IGNORECASE)
    if text.upper() in LABEL_OF_NAME:
        return text.upper()
    if text.lower() in ("sacrum", "s1"):
        return "sacrum"
    return text.lower()


def _read_dataset_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"Dataset folder {folder} does not exist; make it with spineclue_convert_dataset, or set spineclue_raw.")
    path = folder / "dataset.json"
    content = read_json(path, "dataset description")
    missing = [key for key in REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; nnU-Net v2's dataset.json needs {', '.join(REQUIRED_KEYS)}.")
    if not isinstance(content["channel_names"], dict) or "0" not in content["channel_names"]:
        raise InputError(f"{path}: channel_names is {content['channel_names']!r}; expected {{\"0\": \"CT\"}}.")
    if not isinstance(content["file_ending"], str) or not content["file_ending"].startswith("."):
        raise InputError(f"{path}: file_ending is {content['file_ending']!r}; expected e.g. '.nii.gz'.")
    reader = content.get("overwrite_image_reader_writer")
    if reader and reader not in OWN_READERS:
        raise InputError(f"{path}: overwrite_image_reader_writer is {reader!r}; this package's own readers take the place of "
                         f"{', '.join(OWN_READERS)} only: convert the images to NIfTI and remove the entry.")
    return content


def _label_values(labels: Any, folder: Path) -> dict[str, int]:
    path = folder / "dataset.json"
    if not isinstance(labels, dict):
        raise InputError(f"{path}: labels is {labels!r}; expected {{\"background\": 0, \"C1\": 1, ...}}.")
    values: dict[str, int] = {}
    for name, value in labels.items():
        if isinstance(value, list):
            raise InputError(f"{path}: label '{name}' is a region ({value}); regions are not supported, give every structure a value "
                             "of its own.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{path}: label '{name}' has value {value!r}; expected one whole number per structure.")
        values[str(name)] = value
    if values.get("background") != 0:
        raise InputError(f"{path}: labels must name \"background\": 0.")
    if len(set(values.values())) != len(values):
        raise InputError(f"{path}: two labels share a value; each structure needs its own.")
    if IGNORE_NAME in values and values[IGNORE_NAME] != max(values.values()):
        raise InputError(f"{path}: label 'ignore' has value {values[IGNORE_NAME]}; nnU-Net wants the highest of all for it "
                         f"({max(values.values())}).")
    return values


def _test_sets(folder: Path) -> dict[str, list[str]]:
    """{set: cases} of test_sets.json; empty without that file."""
    path = folder / "test_sets.json"
    content = read_json(path, "test sets") if path.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(cases, list) and all(isinstance(case, str) for case in cases)
                                                for cases in content.values()):
        raise InputError(f"{path} is no list of test sets; expected {{\"public\": [case, ...], \"hidden\": [...]}}.")
    return content


def _file_digest(path: Path) -> str:
    """sha256 over size, first and last 64 KiB and evenly spaced samples of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - _SAMPLE_BYTES)
    with open(path, "rb") as file:
        for i in range(_SAMPLES + 1):
            file.seek(last * i // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES if i in (0, _SAMPLES) else 4096))
    return digest.hexdigest()
