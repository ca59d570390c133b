"""The Python interface: `SpineCLUE.from_pretrained().predict("scan.nii.gz")`."""
from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from .anatomy.known import Known, KnownInput, known_of
from .errors import InputError
from .imageio.convert import Scan, describe, to_volume
from .imageio.modality import MODALITIES
from .imageio.volume import Volume
from .inference.model import Model, load_shipped, load_trained
from .inference.pipeline import Options, Progress
from .inference.predict_scan import predict_scan
from .inference.prior import read_prior, renumber_by_prior
from .results import SpineResult
from .stages.base import CLASSIFIERS
from .utilities import paths

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PredictOptions(TypedDict, total=False):
    """The options of `SpineCLUE.predict`, by name."""

    spacing: Sequence[float] | None
    affine: ArrayLike | None
    forbid_anomalies: bool
    mirror: bool
    classifiers: Collection[str]
    modality: str
    progress: Progress | None
    keep_scan: bool
    intensity_offset: float | None
    known: KnownInput
    lumbar: int | None
    thoracic: int | None
    prior: str | Path | None


class SpineCLUE:
    """A loaded model of CT or MR. Any number of threads may call one object; each call gives what it would give alone.

    Attributes:
        model: the networks of every stage and fold with their plans.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"<SpineCLUE for {self.modality}: {self.model.source}; stages {', '.join(self.model.stages)}; on {self.model.device}>"

    @classmethod
    def from_pretrained(cls, source: str | Path | int | None = None, folds: Sequence[int | str] | None = None,
                        device: str | None = None, modality: str = "ct") -> SpineCLUE:
        """Load a model.

        Args:
            source: None for the weights that come with the package; the id or name of a dataset whose results hold a trained or
                installed model; or the folder of a model.
            folds: to average over; None: every fold that all stages have finished.
            device: "cuda", "cpu" or "mps"; None: the best there is.
            modality: of the package's own weights, "ct" or "mr"; a model of `source` knows its own.

        Raises:
            InputError: nothing trained is there, a fold is not finished, the device is not there.
        """
        from .training.device import resolve_device

        where = resolve_device(device)
        if source is None:
            if folds is not None:
                raise InputError("The weights that come with the package have no folds; leave folds out, or give the source of a model.")
            if modality.upper() not in MODALITIES:
                raise InputError(f"The modality of a model is given as {modality!r}; expected ct or mr.")
            return cls(load_shipped(where, modality.upper()))
        folder = Path(str(source))
        if str(source).isdigit() or (len(folder.parts) == 1 and not folder.is_dir()):
            folder = paths.results_folder() / paths.dataset_name(str(source))
        return cls(load_trained(folder, list(folds) if folds is not None else None, where))

    @property
    def modality(self) -> str:
        """"CT" or "MR": what the model was trained for."""
        return self.model.modality

    def predict(self, scan: Scan, *, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None,
                forbid_anomalies: bool = False, mirror: bool = False, classifiers: Collection[str] = CLASSIFIERS, modality: str = "auto",
                progress: Progress | None = None, keep_scan: bool = True, known: KnownInput = None, lumbar: int | None = None,
                thoracic: int | None = None, prior: str | Path | None = None, intensity_offset: float | None = None) -> SpineResult:
        """Find, segment and name the vertebrae of a CT, or the bodies and discs of an MR.

        Args:
            scan: a path (NIfTI, NRRD, MetaImage, DICOM file or folder, `.zip`), a `Volume`, a SimpleITK image, a nibabel image, or a numpy
                array with `spacing` or `affine`. CT in Hounsfield units. For one of several DICOM series read it first:
                `read_volume(folder, series=UID)`.
            spacing: of an array that is indexed (z, y, x), with z towards the head, y towards the back and x towards the patient's left:
                millimetres in this order.
            affine: of an array: 4 x 4 from indices, in the order of the array's axes, to RAS millimetres (nibabel's convention).
            forbid_anomalies: CT: regular numbering only, no T13, no L6, no missing T12.
            mirror: average with the left-right mirror image (CT: segmentation; MR: all), in twice the time.
            classifiers: CT: of the level, out of "shape", "geometry" and "appearance", where the model has weights for them.
            modality: what the scan is, "ct" or "mr"; "auto": what it looks like, and an InputError where that is not what the model labels.
            progress: called as `progress(stage, fraction)`: with "read", with the name of each stage that begins, and with ("", 1.0) at
                the end. An exception that it raises ends the prediction.
            keep_scan: keep the voxels with the result, from which `save` draws the picture.
            intensity_offset: CT: added to all values; None: they are HU, or plainly HU + 1024, which a flag says.
            known: CT: levels you know, `lumbar` and `thoracic` numbers of vertebrae: see `SpineResult.renumbered`.
            prior: CT: an earlier result or centroid file of the same patient, whose levels are carried over where the rows fit.

        Returns:
            A `SpineResult` with label map, records, table and files. Without a vertebra it is empty and its numbering is not anchored.

        Raises:
            InputError: no usable 3D scan, a bare array without grid, or an option that a model of this modality does not have.
        """
        started = time.perf_counter()
        options = _options(forbid_anomalies, mirror, classifiers, known_of(known, lumbar, thoracic))
        options = replace(options, modality=modality, intensity_offset=intensity_offset)
        if prior is not None and options.known:
            raise InputError("Known levels and a prior each decide the numbering; give one of them.")
        earlier = None if prior is None else read_prior(prior)
        if progress is not None:
            progress("read", 0.0)
        volume = to_volume(scan, spacing, affine, self.modality)
        read = {"read": time.perf_counter() - started}
        result = predict_scan(volume, self.model, options, progress, describe(scan), read, keep_scan)
        return result if earlier is None else renumber_by_prior(result, earlier)

    def predict_many(self, scans: Iterable[Scan], **options: Unpack[PredictOptions]) -> Iterator[tuple[Scan, SpineResult | Exception]]:
        """Predict scans one by one: an iterator of (scan, result), or (scan, exception) where one failed; the others go on.

        Each scan is taken from `scans` only when its turn comes, so a generator keeps one in memory. `options` are those of `predict`;
        `spacing` or `affine` then holds for every array. InputError of an option that is wrong for all is raised at once.
        """
        known = known_of(options.get("known"), options.get("lumbar"), options.get("thoracic"))
        _options(options.get("forbid_anomalies", False), options.get("mirror", False), options.get("classifiers", CLASSIFIERS), known)
        return self._predict_many(scans, options)

    def _predict_many(self, scans: Iterable[Scan], options: PredictOptions) -> Iterator[tuple[Scan, SpineResult | Exception]]:
        for scan in scans:
            try:
                outcome: SpineResult | Exception = self.predict(scan, **options)
            except Exception as error:  # whatever is wrong with one scan, the others are worth having
                outcome = error
            yield scan, outcome

    @staticmethod
    def label_map(result: SpineResult, volume: Volume) -> np.ndarray:
        """Label map of a result on the grid of `volume`, uint8 (z, y, x). Deprecated: a result draws its own, `result.labels`."""
        from .export.label_map import label_map

        warnings.warn("SpineCLUE.label_map(result, volume) is deprecated; use result.labels.", DeprecationWarning, stacklevel=2)
        return label_map(result.vertebrae, result.grids()[1], volume.geometry)


def _options(forbid_anomalies: bool, mirror: bool, classifiers: Collection[str], known: Known) -> Options:
    """What the caller chose. InputError for classifiers that do not exist."""
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    unknown = [name for name in names if name not in CLASSIFIERS]
    if unknown or not names:
        found = f"are unknown: {', '.join(map(str, unknown))}" if unknown else "are none"
        raise InputError(f"The classifiers asked for {found}; give some of {', '.join(CLASSIFIERS)}.")
    return Options(bool(forbid_anomalies), bool(mirror), names, known)
