"""An earlier examination of the same patient tells the levels: where it lies in the same place, or where its row of vertebrae fits.

The prior is a result of `spineclue_predict` (any of its files) or a VerSe centroid file with its label map beside it. Both scans may show
different parts of the spine; what they have in common carries the levels over.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..anatomy import NAME_OF_LABEL, ORDER_INDEX
from ..anatomy.label_boxes import label_boxes
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..export.evidence_file import ENDING
from ..export.renumbering import basis_of, with_numbering
from ..imageio.centroids import read_ctd
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume, read_labels
from ..results import SpineResult
from ..stages.identify.constraints import Constraints
from ..stages.identify.numbering import decode, number_under
from ..utilities.files import read_json
from ..utilities.triples import float_triple, int_triple
from .renumber import change_cases
from .row_match import Match, Row, match_places, match_rows
from .stored_result import read_result

SURE = 0.95              # of a registration, to carry levels over
SUFFIXES = ("_ctd.json", ENDING, ".nii.gz", ".json", ".png")


@dataclass(frozen=True)
class Prior:
    """Named vertebrae of an earlier scan. `sure`: their numbering was anchored, or said by a person."""

    row: Row
    sure: bool
    source: str


def read_prior(path: str | Path) -> Prior:
    """The earlier examination at `path`: a centroid file, a result's CASE.json or CASE.nii.gz, or a folder with one result.

    Raises InputError where nothing of the kind is there, or it names no vertebra.
    """
    path = Path(path)
    folder, name = _case(path)
    if (folder / f"{name}{ENDING}").exists() and not path.name.endswith("_ctd.json"):
        result = read_result(folder, name)
        prior = Prior(row_of(result), result.numbering_anchored, str(path))
    else:
        prior = _of_files(folder, name, path)
    if not prior.row.vertebrae:
        raise InputError(f"{path} names no vertebra, so it tells no level.")
    return prior


def renumber_by_prior(result: SpineResult, prior: Prior) -> SpineResult:
    """The result with the levels of an earlier examination of the same patient.

    Raises InputError where the rows of vertebrae do not fit, so that nothing is carried over.
    """
    basis = basis_of(result)
    match = match_to_prior(row_of(result), prior)
    positions = [i for i, name in enumerate(basis.names) if name is not None]
    free = decode(basis)
    constraints = Constraints.free(len(basis.detections))
    carried = []
    for i, j in match.pairs:
        level = prior.row.vertebrae[j].known_level
        constraints = constraints.pinned(positions[i], level)
        carried.append(level)
    carried.sort(key=ORDER_INDEX.__getitem__)
    how = "same place" if match.same_place else f"the row of vertebrae fits with confidence {match.confidence:.3f}"
    given = f"{Path(prior.source).name}, {carried[0]} to {carried[-1]}, {how}"
    numbered = number_under(basis, free, constraints, "prior", given, prior.sure)
    assert numbered.known is not None
    known = {**numbered.known, "confidence": round(match.confidence, 4), "prior_anchored": prior.sure}
    return with_numbering(result, replace(numbered, known=known))


def renumber_cases_by_prior(folder: str | Path, cases: list[str], prior: str | Path, scans: str | Path | None = None
                            ) -> dict[str, SpineResult | str]:
    """Rewrite cases of a prediction folder, all of the prior's patient; see `renumber.change_cases`."""
    earlier = read_prior(prior)
    return change_cases(folder, cases, lambda _, result: renumber_by_prior(result, earlier), scans)


def row_of(result: SpineResult) -> Row:
    """The vertebrae of a result."""
    grid, mask_grid = result.grids()
    return Row(result.vertebrae, mask_grid, max(grid.spacing))


def match_to_prior(row: Row, prior: Prior) -> Match:
    """Which vertebra is which of the prior. InputError where they lie elsewhere and the rows do not fit."""
    same = match_places(row, prior.row)
    if same is not None:
        return same
    match = match_rows(row, prior.row)
    if match is None:
        raise InputError(f"{prior.source} shows too few whole vertebrae in common with this scan to tell which is which; pin a level with "
                         "--known instead.")
    if match.confidence < SURE:
        raise InputError(f"{prior.source} does not fit this scan (confidence {match.confidence:.2f}, needed {SURE}): it may be of another "
                         "patient, or show too little in common; pin a level with --known instead.")
    return match


def _case(path: Path) -> tuple[Path, str]:
    """Folder and name of the case that `path` belongs to."""
    if path.is_dir():
        from .stored_result import stored_cases

        cases = stored_cases(path)
        if len(cases) != 1:
            raise InputError(f"{path} holds {len(cases)} results; name one of them, such as {path / cases[0]}.json.")
        return path, cases[0]
    if not path.is_file():
        raise InputError(f"Prior {path} does not exist; give an earlier result (CASE.json) or a centroid file (CASE_ctd.json).")
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.parent, path.name.removesuffix(suffix)
    raise InputError(f"{path} is no prior; expected an earlier result (CASE.json) or a centroid file (CASE_ctd.json).")


def _of_files(folder: Path, name: str, path: Path) -> Prior:
    """From the label map, and the centroids where they are there."""
    labels = folder / f"{name}.nii.gz"
    if not labels.is_file():
        raise InputError(f"{path} has no label map {labels.name} beside it, which says where its voxels lie and what the vertebrae look "
                         "like.")
    volume = read_labels(labels)
    ctd = folder / f"{name}_ctd.json"
    centres = read_ctd(ctd, volume.geometry) if ctd.is_file() else {}
    record = folder / f"{name}.json"
    sure = path.name.endswith("_ctd.json") or not record.is_file() or bool(read_json(record, "result").get("numbering_anchored"))
    return Prior(vertebrae_of(volume, centres), sure, str(path))


def vertebrae_of(labels: Volume, centres: dict[int, np.ndarray]) -> Row:
    """Vertebrae of a label map (VerSe values). `centres`: of bodies, LPS mm, by value."""
    from ..anatomy.morphology import body_centre

    view = oriented_view(labels)
    grid, last, found = view.geometry, np.array(view.array.shape) - 1, []
    for value, box in label_boxes(view.array).items():
        name = NAME_OF_LABEL.get(value, "")
        if name not in ORDER_INDEX:
            continue
        mask, start = np.ascontiguousarray(view.array[box] == value), np.array([part.start for part in box])
        centre = centres.get(value)
        if centre is None:
            centre = grid.index_to_world(start + np.array(body_centre(mask, grid.spacing)))
        border = bool((start == 0).any() or (start + mask.shape > last).any())
        place = float_triple(centre)
        found.append(Vertebra(place, float_triple(n * s for n, s in zip(mask.shape, grid.spacing, strict=True)), 1.0, mask=mask,
                              mask_start=int_triple(start), body_centre=place, touches_border=border, level=name))
    return Row(tuple(sorted(found, key=lambda v: ORDER_INDEX[v.known_level])), grid, max(labels.spacing))
