"""One scan through the stages of its modality. Nothing holds more of the scan than crops and the spine's box."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import order_cranio_caudal
from ..errors import InputError
from ..export.result_flags import with_result_flags
from ..flags import Flag
from ..imageio.orientation import oriented_view
from ..imageio.volume import THICK_SLICE_MM, Volume
from ..preprocessing.straighten import straightened
from ..results import SpineResult
from ..stages.base import Context, Evidence, Findings, Options, Stage
from ..stages.identify.numbering import check_known
from ..stages.identify.pins import check_places
from ..stages.identify.tool_levels import NAME as TOOL
from ..stages.registry import pipeline_of
from ..utilities.memory import give_back_memory
from ..utilities.triples import float_triple
from .completeness import find_incomplete, incomplete_flag
from .model import Model
from .scan_flags import scan_flags

__all__ = ["Options", "identify_masks", "predict_volume", "run_stages", "stages_of"]

Progress = Callable[[str, float], object]
"""Called with the name of the stage that begins and the fraction of stages that are done; once more with ("", 1.0) at the end."""


def run_stages(findings: Findings, model: Model, options: Options | None = None, progress: Progress | None = None,
               ) -> tuple[Findings, dict[str, float]]:
    """What all stages of the model know of a scan in the end, and the seconds that each took."""
    context = Context(model.plans, model.device, options or Options(), model.stages)
    chosen = stages_of(model)
    seconds: dict[str, float] = {}
    for number, stage in enumerate(chosen):
        if progress is not None:
            progress(stage.name, number / len(chosen))
        started = time.perf_counter()
        findings = stage.predict(findings, model.stages.get(stage.name), context)
        give_back_memory()
        seconds[stage.name] = time.perf_counter() - started
    if progress is not None:
        progress("", 1.0)
    return findings, seconds


def stages_of(model: Model) -> list[Stage]:
    """The stages that predict: those the model has networks for, and those that need none; not those that another one contains."""
    return [stage for stage in pipeline_of(model.modality)
            if (stage.name in model.stages or not stage.trainable) and stage.replaced_by not in model.stages]


def predict_volume(volume: Volume, model: Model, options: Options | None = None, progress: Progress | None = None) -> SpineResult:
    """Vertebrae of a CT (HU, any orientation) in cranio-caudal order. InputError for a model of MR."""
    if model.modality != "CT":
        raise InputError(f"This is a model of MR (stages {', '.join(model.stages)}), which does not label CT; leave -d out for the "
                         "package's own CT model, or give one that was trained on CT.")
    if options is not None:
        check_known(options.known, options.forbid_anomalies)
        check_places(options.known, volume.geometry)    # before minutes are spent
        options = _in_millimetres(options, volume)
    straight = straightened(volume)
    findings, seconds = run_stages(Findings(straight, flags=_reading_flags(volume)), model, options, progress)
    grid = findings.crop.geometry if findings.crop is not None else oriented_view(straight).geometry
    missing = find_incomplete(findings.vertebrae, straight)
    flags = (*findings.flags, incomplete_flag(missing, findings.vertebrae)) if missing else findings.flags
    notes = tuple(dict.fromkeys((*findings.notes, *(flag.message for flag in flags))))
    flags = (*flags, *scan_flags(findings.vertebrae, grid, volume))
    return with_result_flags(SpineResult(findings.vertebrae, findings.anchored, findings.margin, seconds, notes, dict(findings.extra),
                                         missing, grid=volume.geometry, mask_grid=grid, flags=flags, anchored_by=findings.anchored_by,
                                         known=findings.known, basis=findings.basis))


def _in_millimetres(options: Options, volume: Volume) -> Options:
    """Options whose pins do not count voxels, where the stages see the scan on another grid than its own."""
    if not volume.geometry.is_sheared:
        return options
    pins = tuple(replace(pin, point=float_triple(volume.geometry.index_to_world(np.array(pin.point, dtype=float)[::-1])), voxel=False)
                 if pin.voxel and pin.point is not None else pin for pin in options.known.pins)
    return replace(options, known=replace(options.known, pins=pins))


def _reading_flags(volume: Volume) -> tuple[Flag, ...]:
    thickest = max(volume.spacing)
    if thickest > THICK_SLICE_MM:
        message = f"Slices are {thickest:.1f} mm apart; results are unreliable above {THICK_SLICE_MM:.0f} mm."
        return (*volume.flags, Flag("thick_slices", "read", "warning", message, round(thickest, 2), THICK_SLICE_MM,
                                    "Use the thinnest reconstruction of the scan, or check levels and masks by eye."))
    return volume.flags


Hint = Callable[[tuple[Vertebra, ...], tuple[Vertebra, ...]], Evidence | None]
"""Given the vertebrae in cranio-caudal order, and those of them that the classifiers name: what another tool says of the levels."""


def identify_masks(vertebrae: list[Vertebra], model: Model, options: Options | None = None, scan: Volume | None = None,
                   hint: Hint | None = None) -> SpineResult:
    """Names for vertebrae whose masks are known (true masks, another tool's instances): the classifiers and the decoder alone.

    Args:
        vertebrae: in any order.
        model: with the stages that name masks.
        options: variants and classifiers.
        scan: the CT; with it the classifiers that look at the scan count too, where the model has them.
        hint: another tool's levels count too, as one more classifier. The numbering is anchored only where it is without them, and the
            same.
    """
    from ..stages.identify.predictor import add_shape

    context = Context(model.plans, model.device, options or Options(), model.stages)
    findings = Findings(scan, tuple(order_cranio_caudal(vertebrae)))
    last = findings
    for stage in stages_of(model):
        if stage.names_masks and (scan is not None or not stage.needs_scan):
            if stage.name == "identify":
                findings = add_shape(findings, model.stages["identify"], context)
            last, findings = findings, stage.predict(findings, model.stages.get(stage.name), context)
    told = None if hint is None or not last.vertebrae else hint(last.vertebrae, findings.vertebrae)
    if told is not None:
        findings = _with_hint(findings, last, told, model, context)
    return with_result_flags(SpineResult(findings.vertebrae, findings.anchored, findings.margin, extra=dict(findings.extra),
                                         basis=findings.basis))


def _with_hint(own: Findings, before: Findings, told: Evidence, model: Model, context: Context) -> Findings:
    """The findings with the other tool's levels; anchored where `own`, the findings without, are and agree."""
    stage = next(stage for stage in stages_of(model) if stage.name == "identify")
    both = stage.predict(replace(before, evidence={**before.evidence, TOOL: told}), model.stages["identify"], context)
    same = {v.body_centre: v.level for v in own.vertebrae} == {v.body_centre: v.level for v in both.vertebrae}
    return replace(both, anchored=both.anchored and own.anchored and same)
