"""What a prediction gives back: values, label map, table, files, and how it looks in a notebook."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import anatomy
from .anatomy.known import KnownInput, known_of
from .anatomy.sacral_segment import first_sacral_segment
from .errors import InputError
from .export.case_files import remove_earlier, write_labels
from .export.case_record import NO_VERTEBRA, case_record, mr_case_record
from .export.columns import STRUCTURE, VERTEBRA
from .export.formats import check_result, write_formats
from .export.label_map import label_map
from .export.labelled_spine import LabelledSpine
from .export.measure_files import export_measures
from .export.renumbering import renumber
from .export.result_flags import picture_failed
from .export.run_files import Provenance, check_target, write_run_files
from .export.structures import NO_STRUCTURE, structure_records
from .export.tables import html_table, mr_rows, vertebra_rows
from .imageio.volume import Volume, write_volume
from .measures.spine import measure_spine
from .utilities.files import write_json
from .utilities.pictures import draw_or_say

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)

_DRAWING = threading.Lock()  # matplotlib's fonts and caches are shared by all figures and made for one thread


@dataclass(frozen=True)
class SpineResult(LabelledSpine):
    """A predicted CT scan. Its length is the number of vertebrae, so a result without any is false.

    `result["L3"]` is a `Vertebra`, `"L3" in result` asks whether it was found, and iterating gives the vertebrae in cranio-caudal order.

    Attributes:
        scan: the scan itself, from which the picture is drawn; None where it was not kept.
        provenance: model, plans and options, for the files.
    """

    scan: Volume | None = field(default=None, repr=False, compare=False)
    provenance: Provenance | None = field(default=None, repr=False, compare=False)

    @cached_property
    def labels(self) -> np.ndarray:
        """VerSe label values, uint8 (z, y, x) on `grid`. Drawn when first asked for; read-only, since it is kept.

        Raises InputError where the result does not know its grids.
        """
        grid, mask_grid = self.grids()
        labels = label_map(self.vertebrae, mask_grid, grid)
        labels.flags.writeable = False
        return labels

    @cached_property
    def structures(self) -> Sequence[Mapping[str, Any]]:
        """Labelled structures as records: `structure`, `kind`, `label`, `volume_ml`, `centroid_mm` (LPS), `touches_border`.

        Measured in the label map. A CT's are its vertebrae, an MR's are bodies and discs.
        """
        classes = {v.level: anatomy.LABEL_OF_NAME[v.level] for v in self.vertebrae if v.level is not None}
        return tuple(structure_records(self._label_volume(), classes))

    def __repr__(self) -> str:
        """One line; the fields of all vertebrae would fill the screen."""
        levels = ", ".join(str(v.level) for v in self.vertebrae) or "no vertebra"
        by = {"known": " by what was said", "prior": " by an earlier examination"}.get(self.anchored_by or "", "")
        return f"<{type(self).__name__}: {levels}; numbering {'' if self.numbering_anchored else 'not '}anchored{by}>"

    def __len__(self) -> int:
        return len(self.vertebrae)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.vertebrae)

    def __contains__(self, level: object) -> bool:
        return any(v.level == level for v in self.vertebrae)

    def __getitem__(self, level: str) -> Any:
        """The vertebra of a level such as "L3"; the surer one where two were given it. Raises KeyError, which names what there is."""
        found = [v for v in self.vertebrae if v.level == level]
        if not found:
            raise KeyError(f"{level!r} was not found; there are {', '.join(v.level or '?' for v in self.vertebrae) or 'no vertebrae'}")
        return max(found, key=lambda v: v.confidence or 0.0)

    def with_measures(self, scan: Volume | None = None, sacrum: Volume | None = None) -> SpineResult:
        """The same result with `measures` and `bodies`, and with the flags of what was noticed.

        Args:
            scan: the CT (HU), for the end plate of S1 and the density of bone; the one that was kept by default.
            sacrum: a mask of the sacrum, where there is one.
        """
        started, (grid, mask_grid) = time.perf_counter(), self.grids()
        first = None
        if self.basis is not None and sacrum is None and self._made_by().options.get("sacrum", True):
            first = first_sacral_segment(self.basis.names, self.basis.detections, self.basis.below)
        own = None if first is None else Volume(first.known_mask.astype(np.uint8), mask_grid.cropped(first.known_mask_start,
                                                                                                     first.known_mask.shape))
        found = measure_spine(self.vertebrae, mask_grid, grid, scan or self.scan, sacrum, own)
        notes = tuple(dict.fromkeys((*self.notes, *(flag.message for flag in found.flags))))
        seconds = self.seconds | {"measures": time.perf_counter() - started}
        flags = (*(flag for flag in self.flags if flag.stage != "measures"), *found.flags)
        return replace(self, sacrum=first, vertebrae=found.vertebrae, measures=found.records, bodies=found.bodies, flags=flags, notes=notes,
                       seconds=seconds)

    def to_dict(self) -> dict[str, Any]:
        """Content of `CASE.json`: points are LPS mm (x, y, z), `extent_mm` is (z, y, x), numbers unknown to a stage are None."""
        return case_record(self, self._made_by().model)

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per vertebra: the rows of `to_dataframe`."""
        return vertebra_rows(self.vertebrae)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per vertebra in cranio-caudal order, with the values of `CASE.json`. Columns carry their unit; points are LPS mm."""
        import pandas

        return pandas.DataFrame(self.to_rows(), columns=self._columns())

    def renumbered(self, known: KnownInput = None, *, lumbar: int | None = None, thoracic: int | None = None) -> SpineResult:
        """The same scan numbered under what you know, without a network.

        Args:
            known: pins as text, such as "L5@12.5,-30,410" (LPS mm), "L5@250,180,44:voxel" (i, j, k of the scan as it is stored), "3=L1"
                (the third vertebra of this result) or "lowest=L5"; one or several; or the name of a JSON file with them.
            lumbar: 5 or 6 lumbar vertebrae.
            thoracic: 11, 12 or 13 thoracic vertebrae.

        Nothing at all gives the numbering by the scan alone. A contradiction with the scan is a flag; see `known` and `anchored_by`.

        Raises:
            InputError: a place outside the scan or between vertebrae, pins that exclude each other, a result without evidence.
        """
        return renumber(self, known_of(known, lumbar, thoracic))

    def save(self, folder: str | Path, name: str, report: bool = True, probabilities: bool | None = False, describe: bool = True,
             also: Sequence[str] = ()) -> dict[str, Path]:
        """Write the files that `spineclue_predict` writes: the labels first, `NAME.json` last; returns {kind: path}.

        A picture that cannot be drawn costs nothing but itself: a flag in `NAME.json` says so.

        Args:
            folder: made where it is missing.
            name: of the case: `NAME.nii.gz`, `NAME_ctd.json`, `NAME.json`, ...
            report: also `NAME.png`, `NAME_measures.png`, `NAME.html` and a thumbnail, for which the scan must have been kept.
            probabilities: also `NAME.npz`, for `spineclue_ensemble`; None: leave one that is there.
            describe: also `predict_args.json` and `plans.json` of the folder.
            also: further formats, by their names in `export.formats.FORMATS`: "seg.nrrd", "mrk.json", "bids", "crops", "crops_upright",
                and of a scan that was read from DICOM "dicom_seg", "dicom_sr" and "dicom_rtstruct".

        Raises:
            InputError: the scan was not kept but a picture or crops are wanted, a format lacks a package or the DICOM files, the label map
                would replace the scan, a file cannot be written.
        """
        started, folder = time.perf_counter(), Path(folder)
        self._check_save(folder, name, report, bool(probabilities))
        check_result(also, self, name)
        files = write_run_files(folder, self._made_by()) if describe else {}
        remove_earlier(folder, name, probabilities is not None)
        files |= self._write_labels(folder, name, self._label_volume())
        if probabilities:
            files["probabilities"] = folder / f"{name}.npz"
            self._write_probabilities(files["probabilities"])
        seconds, flags = dict(self.seconds), self.flags
        if self.measures:
            files |= export_measures(self, self._label_volume(), folder, name)
            seconds["measures"] = seconds.get("measures", 0.0) + time.perf_counter() - started
        if report:
            drawing = time.perf_counter()
            for kind, picture, draw in self._pictures(folder, name):
                with _DRAWING:
                    trouble = draw_or_say(draw, picture.name)
                if trouble:
                    flags = (*flags, picture_failed(trouble))
                else:
                    files[kind] = picture
            files |= replace(self, flags=flags)._write_pages(folder, name)
            seconds["report"] = time.perf_counter() - drawing
        if also:  # after the pictures, one of which BIDS takes
            writing = time.perf_counter()
            files |= write_formats(also, self, self._label_volume(), folder, name)
            seconds["formats"] = time.perf_counter() - writing
        seconds["total"] = seconds.get("total", 0.0) + time.perf_counter() - started
        files["record"] = folder / f"{name}.json"
        write_json(files["record"], replace(self, seconds=seconds, flags=flags).to_dict())
        return files

    def without_scan(self) -> SpineResult:
        """The same result without the scan's voxels, which may be hundreds of megabytes."""
        return replace(self, scan=None)

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        anchored = "numbering anchored" if self.numbering_anchored else "numbering not anchored: the whole sequence may be shifted"
        title = f"{len(self)} vertebrae, {anchored}" if self else NO_VERTEBRA
        return html_table(title, self.to_rows(), ("level", "confidence", "x_mm", "y_mm", "z_mm", "volume_ml", "touches_border"), self.notes)

    def _columns(self) -> list[str]:
        return [column.name for column in VERTEBRA]

    def _made_by(self) -> Provenance:
        return self.provenance or Provenance()

    def _label_volume(self) -> Volume:
        return Volume(self.labels, self.grids()[0])

    def _check_save(self, folder: Path, name: str, report: bool, probabilities: bool) -> None:
        if name in ("", "..") or Path(name).name != name:
            raise InputError(f"'{name}' is no name of a case; give a file name without folder and ending, such as 'case_1'.")
        if report and self.scan is None:
            raise InputError(f"{name}.png cannot be drawn: the scan was not kept with the result; predict with keep_scan=True, or save "
                             "with report=False.")
        if source := self._made_by().source:
            check_target(folder, name, source)
        self._label_volume()  # says before anything is written that there is none

    def _draw(self, path: Path, title: str) -> None:
        from .visualization.report import write_report

        assert self.scan is not None
        write_report(self, self.grids()[1], self.scan, path, title)

    def _write_pages(self, folder: Path, name: str) -> dict[str, Path]:
        """What a person opens; whatever goes wrong with it is a warning, since labels and numbers are worth having without."""
        from .visualization.page.write import write_pages

        assert self.scan is not None
        try:
            return write_pages(folder, name, self.to_dict(), self.scan, self._label_volume())
        except Exception as error:
            logger.warning("%s.html was not written (%s: %s); everything else is complete.", name, type(error).__name__, error)
            return {}

    def _write_probabilities(self, path: Path) -> None:
        from .export.probabilities import write_probabilities

        options = self._made_by().options
        write_probabilities(self, path, options.get("classifiers", ()), bool(options.get("forbid_anomalies", False)))

    def _write_labels(self, folder: Path, name: str, labels: Volume) -> dict[str, Path]:
        return write_labels(self, folder, name, labels)

    def _pictures(self, folder: Path, name: str) -> Iterator[tuple[str, Path, Callable[[], None]]]:
        """(kind, path, how it is drawn)."""
        report, measures = folder / f"{name}.png", folder / f"{name}_measures.png"
        yield "report", report, lambda: self._draw(report, name)
        if self.measures:
            yield "measures_picture", measures, lambda: self._draw_measures(measures, name)

    def _draw_measures(self, path: Path, title: str) -> None:
        from .visualization.measures_picture import write_measures_picture

        assert self.scan is not None
        write_measures_picture(self, self.grids()[1], self.scan, path, title)


@dataclass(frozen=True)
class MRResult(SpineResult):
    """A predicted MR scan: bodies and discs by name instead of `vertebrae`, which stays empty.

    Length, iteration and `result["L4/L5"]` go by `structures`.

    Attributes:
        label_volume: label map on `grid` with the dataset's own values.
        classes: {structure: label value}, in the plan's order.
        stage: the stage that made the label map.
        orientation: of the plan, in which the picture is drawn.
    """

    label_volume: Volume | None = field(default=None, repr=False, compare=False)
    classes: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    orientation: str = "LPS"

    def __post_init__(self) -> None:
        # Of an MR it is the bodies in `extra` that are named; `vertebrae` is always empty.
        if not self.extra.get("levels"):
            object.__setattr__(self, "numbering_anchored", False)

    @cached_property
    def labels(self) -> np.ndarray:
        """The dataset's own label values, uint8 or uint16 (z, y, x) on `grid`; read-only."""
        labels = self._label_volume().array.view()
        labels.flags.writeable = False
        return labels

    @cached_property
    def structures(self) -> Sequence[Mapping[str, Any]]:
        rows = structure_records(self._label_volume(), self.classes)
        levels, discs = self.extra.get("levels", {}), self.extra.get("discs", {})
        return tuple(row | ({"confidence": levels.get(row["structure"])} if row["kind"] == "body" else discs.get(row["structure"], {}))
                     for row in rows)

    def __repr__(self) -> str:
        anchored = "" if self.numbering_anchored else "not "
        return (f"<{type(self).__name__}: {', '.join(row['structure'] for row in self.structures) or 'no structure'}; numbering {anchored}"
                "anchored>")

    def __len__(self) -> int:
        return len(self.structures)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.structures)

    def __contains__(self, name: object) -> bool:
        return any(row["structure"] == name for row in self.structures)

    def __getitem__(self, name: str) -> Any:
        """The record of a structure such as "L5" or "L4/L5". Raises KeyError, which names what there is."""
        for row in self.structures:
            if row["structure"] == name:
                return row
        raise KeyError(f"{name!r} was not found; there are {', '.join(row['structure'] for row in self.structures) or 'no structures'}")

    def to_dict(self) -> dict[str, Any]:
        return mr_case_record(self, self.structures, self.stage, self._made_by().model)

    def to_rows(self) -> list[dict[str, Any]]:
        return mr_rows(self.structures)

    def _repr_html_(self) -> str:
        title = f"{len(self)} structures" if self else NO_STRUCTURE
        return html_table(title, self.to_rows(), ("structure", "confidence", "height_mm", "volume_ml", "x_mm", "y_mm", "z_mm",
                                                      "touches_border"), self.notes)

    def _columns(self) -> list[str]:
        return [column.name for column in STRUCTURE]

    def _label_volume(self) -> Volume:
        if self.label_volume is None:
            raise InputError("This result of an MR scan has no label map.")
        return self.label_volume

    def _check_save(self, folder: Path, name: str, report: bool, probabilities: bool) -> None:
        if probabilities:
            raise InputError("probabilities has no meaning for a model of MR, which writes labels alone; leave it out.")
        super()._check_save(folder, name, report, probabilities)

    def _draw(self, path: Path, title: str) -> None:
        from .visualization.mr_report import write_mr_report

        assert self.scan is not None
        write_mr_report(self.scan, self._label_volume(), [dict(row) for row in self.structures], self.orientation, path, title)

    def _write_labels(self, folder: Path, name: str, labels: Volume) -> dict[str, Path]:
        write_volume(labels, folder / f"{name}.nii.gz")
        return {"labels": folder / f"{name}.nii.gz"}
