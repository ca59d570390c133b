"""What a prediction gives back: values, label map, table, files, and how it looks in a notebook."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import anatomy
from .anatomy.vertebra import Vertebra
from .errors import InputError
from .export.case_files import export_case, remove_earlier
from .export.case_record import NO_VERTEBRA, case_record, mr_case_record
from .export.label_map import label_map
from .export.labelled_spine import LabelledSpine
from .export.run_files import Provenance, check_target, write_run_files
from .export.structures import NO_STRUCTURE, structure_records
from .export.tables import html_table, mr_rows, vertebra_rows
from .imageio.volume import Volume, write_volume
from .utilities.files import write_json

if TYPE_CHECKING:
    import pandas

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
        return f"<{type(self).__name__}: {levels}; numbering {'' if self.numbering_anchored else 'not '}anchored>"

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

    def to_dict(self) -> dict[str, Any]:
        """Content of `CASE.json`: points are LPS mm (x, y, z), `extent_mm` is (z, y, x), numbers unknown to a stage are None."""
        return case_record(self, self._made_by().model)

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per vertebra: the rows of `to_dataframe`."""
        return vertebra_rows(self.vertebrae)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per vertebra in cranio-caudal order. Columns carry their unit (`x_mm`, `volume_ml`); points are LPS mm."""
        import pandas

        return pandas.DataFrame(self.to_rows(), columns=self._columns())

    def save(self, folder: str | Path, name: str, report: bool = True, probabilities: bool = False, describe: bool = True
             ) -> dict[str, Path]:
        """Write the files that `spineclue_predict` writes, `NAME.json` last; returns {kind: path}.

        Args:
            folder: made where it is missing.
            name: of the case: `NAME.nii.gz`, `NAME_ctd.json`, `NAME.json`, ...
            report: also `NAME.png`, for which the scan must have been kept.
            probabilities: also `NAME.npz`, for `spineclue_ensemble`.
            describe: also `predict_args.json` and `plans.json` of the folder.

        Raises:
            InputError: the scan was not kept but a picture is wanted, the label map would replace the scan, a file cannot be written.
        """
        started, folder = time.perf_counter(), Path(folder)
        self._check_save(folder, name, report, probabilities)
        files = write_run_files(folder, self._made_by()) if describe else {}
        remove_earlier(folder, name)
        seconds = dict(self.seconds)
        if report:
            drawing = time.perf_counter()
            files["report"] = folder / f"{name}.png"
            with _DRAWING:
                self._draw(files["report"], name)
            seconds["report"] = time.perf_counter() - drawing
        if probabilities:
            files["probabilities"] = folder / f"{name}.npz"
            self._write_probabilities(files["probabilities"])
        seconds["total"] = seconds.get("total", 0.0) + time.perf_counter() - started
        return files | replace(self, seconds=seconds)._write_case(folder, name, self._label_volume())

    def without_scan(self) -> SpineResult:
        """The same result without the scan's voxels, which may be hundreds of megabytes."""
        return replace(self, scan=None)

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        anchored = "numbering anchored" if self.numbering_anchored else "numbering not anchored: the whole sequence may be shifted"
        title = f"{len(self)} vertebrae, {anchored}" if self else NO_VERTEBRA
        return html_table(title, self.to_rows(), ("level", "confidence", "x_mm", "y_mm", "z_mm", "volume_ml", "touches_border"), self.notes)

    def _columns(self) -> list[str]:
        return list(vertebra_rows([Vertebra((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0)])[0])

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

    def _write_probabilities(self, path: Path) -> None:
        from .export.probabilities import write_probabilities

        options = self._made_by().options
        write_probabilities(self, path, options.get("classifiers", ()), bool(options.get("forbid_anomalies", False)))

    def _write_case(self, folder: Path, name: str, labels: Volume) -> dict[str, Path]:
        return export_case(self, folder, name, self._made_by().model, labels)


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
        return list(mr_rows([{"centroid_mm": (0.0, 0.0, 0.0)}])[0])

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

    def _write_case(self, folder: Path, name: str, labels: Volume) -> dict[str, Path]:
        paths = {"labels": folder / f"{name}.nii.gz", "record": folder / f"{name}.json"}
        write_volume(labels, paths["labels"])
        write_json(paths["record"], self.to_dict())
        return paths
