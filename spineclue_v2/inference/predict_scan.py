"""One scan in memory to one result, CT or MR: the call that the commands and the Python interface share."""
from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from ..errors import InputError
from ..export.run_files import Provenance
from ..imageio.hounsfield import checked_ct
from ..imageio.label_maps import refuse_label_map
from ..imageio.volume import Volume
from ..results import SpineResult
from .level_selection import select_levels
from .modality import check_modality
from .model import Model
from .mr_pipeline import check_mr_scan, predict_mr
from .pipeline import Options, Progress, predict_volume

logger = logging.getLogger(__name__)


def predict_scan(volume: Volume, model: Model, options: Options | None = None, progress: Progress | None = None, source: str = "",
                 seconds: Mapping[str, float] | None = None, keep_scan: bool = True) -> SpineResult:
    """The result of a scan by a model of its modality, ready to be saved.

    Args:
        volume: the scan (CT in HU), any orientation.
        model: of CT or MR.
        options: what a user may choose.
        progress: called with the stage that begins and the fraction that is done, at last with ("", 1.0). What it raises ends the
            prediction.
        source: where the scan comes from, for the record.
        seconds: of what was done before (reading).
        keep_scan: keep the voxels for the picture.

    Raises:
        InputError: an option that a model of this modality does not have, or a scan of the other modality.
    """
    options, started = options or Options(), time.perf_counter()
    what = source or "The scan"
    said = set(volume.flags)
    if model.modality == "CT":
        volume = checked_ct(volume, what, options.intensity_offset)
    else:
        refuse_label_map(volume.array, what)
    volume = replace(volume, flags=(*volume.flags, *check_modality(volume, what, model.modality, options.modality)))
    for flag in volume.flags:
        if flag not in said and flag.severity != "info":
            logger.warning("%s: %s", what, flag.message)
    if model.modality == "MR":
        check_mr_options(options)
        check_mr_scan(volume, what)
        result: SpineResult = predict_mr(volume, model, options.mirror, progress)
    else:
        result = predict_volume(volume, model, options, progress)
        if options.measures:
            result = replace(result, provenance=provenance(model, options, source)).with_measures(volume)
        result = select_levels(result, options.levels)
    before = dict(seconds or {})
    times = before | result.seconds | {"total": sum(before.values()) + time.perf_counter() - started}
    made_by = replace(provenance(model, options, source), files=volume.files)
    return replace(result, scan=volume if keep_scan else None, seconds=times, provenance=made_by)


def provenance(model: Model, options: Options, source: str) -> Provenance:
    """What the files of a run say of it."""
    return Provenance(source, model.record, model.plans, vars(options) | {"known": options.known.to_json()})


def check_mr_options(options: Options, save_probabilities: bool = False, prefix: str = "") -> None:
    """InputError for what only the vertebrae of CT know; `prefix` is "--" where options are flags of a command."""
    given = {"save_probabilities": save_probabilities, "forbid_anomalies": options.forbid_anomalies,
             "intensity_offset": options.intensity_offset is not None, "levels": bool(options.levels),
             "classifiers": set(options.classifiers) != set(Options().classifiers), "known": bool(options.known)}
    for name, wanted in given.items():
        if wanted:
            raise InputError(f"{prefix}{name} has no meaning for a model of MR, which writes labels alone; leave it out.")
