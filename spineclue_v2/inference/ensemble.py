"""Several predictions of the same scans as one: `spineclue_predict --save_probabilities` with different models, then this.

Vertebrae of the members are matched by their body centres; one that at least half of the members found stays. Its mask is where the
mean of the members' mask probabilities (of those that found it) reaches 0.5, voxels between neighbours going to the higher one; its
level probabilities are the members' mean, and the decoder judges the spine anew by the mean of what all classifiers of each member said.
"""
from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..anatomy.morphology import fill_holes, largest_component
from ..anatomy.vertebra import Vertebra, on_the_masks_side, vertebra_from_record
from ..errors import InputError
from ..evaluation.matching import match_by_centroid
from ..export.case_files import export_case, remove_earlier
from ..export.label_map import interpolated, target_box
from ..export.probabilities import write_probabilities
from ..export.result_flags import with_result_flags
from ..imageio.volume import ImageGrid, read_labels
from ..results import SpineResult
from ..stages.identify.plan import IdentifyRun
from ..stages.plan_files import load_plans
from ..utilities.files import read_json
from ..utilities.triples import box_slices, float_triple, int_triple
from .pipeline import Options

logger = logging.getLogger(__name__)

SAME_MM = 12.0  # body centres of one vertebra found twice lie nearer; those of neighbours lie farther (13 mm and more)


class OtherOptions(InputError):
    """Members were predicted with other options: no case of these folders can be merged."""


class Member(NamedTuple):
    """One prediction of a scan: vertebrae with mask and level probabilities, the grid of their masks, what was asked for."""

    vertebrae: list[Vertebra]
    geometry: ImageGrid
    options: Options


def ensemble(inputs: Sequence[str | Path], output: str | Path, save_probabilities: bool = False) -> dict[str, str | None]:
    """Merge the prediction folders `inputs` into `output`; {case: None or why it failed}.

    InputError when fewer than two folders are given, a case of one is missing in another, or members were predicted with different
    classifiers or numberings allowed. The decoder's penalties are those of the first folder's plans.json.
    """
    folders = [Path(folder) for folder in inputs]
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("An ensemble needs at least two different folders of predictions after -i.")
    cases = [_cases(folder) for folder in folders]
    lacking = sorted(cases[0].union(*cases[1:]) - cases[0].intersection(*cases[1:]))
    if lacking:
        where = next(folder for folder, own in zip(folders, cases, strict=True) if lacking[0] not in own)
        raise InputError(f"{where} has no saved probabilities of case '{lacking[0]}' ({len(lacking)} cases lack them somewhere); predict "
                         "it there with --save_probabilities.")
    plans = load_plans(folders[0] / "plans.json")
    outcome: dict[str, str | None] = {}
    for case in sorted(cases[0]):
        try:
            _ensemble_case(case, folders, Path(output), plans.stage("identify").run, save_probabilities)
            outcome[case] = None
        except OtherOptions:
            raise
        except InputError as error:
            outcome[case] = str(error)
    if save_probabilities and None in outcome.values():
        plans.save(Path(output) / "plans.json")  # what merging the result further asks for
    return outcome


def _cases(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise InputError(f"Folder {folder} does not exist; give folders that spineclue_predict --save_probabilities wrote.")
    found = {file.stem for file in folder.glob("*.npz") if (folder / f"{file.stem}.json").is_file() and not file.name.startswith(".")}
    if not found:
        raise InputError(f"{folder} holds no saved probabilities (CASE.npz beside CASE.json); predict with --save_probabilities.")
    return found


def _ensemble_case(case: str, folders: list[Path], output: Path, run: IdentifyRun, save_probabilities: bool) -> None:
    members = [read_member(folder / f"{case}.npz") for folder in folders]
    scans = [read_labels(folder / f"{case}.nii.gz").geometry for folder in folders]
    for folder, scan in zip(folders[1:], scans[1:], strict=True):
        if not scans[0].same_grid(scan):
            raise InputError(f"{folder / case}.nii.gz lies on another grid than {folders[0] / case}.nii.gz: these are not predictions of "
                             "the same scan.")
    options = members[0].options
    for folder, member in zip(folders[1:], members[1:], strict=True):
        if member.options != options:
            raise OtherOptions(f"Case '{case}' was predicted with other --classifiers or --forbid_anomalies in {folder} than in "
                               f"{folders[0]}; predict it with the same ones to merge it.")
    vertebrae, geometry = merge([(member.vertebrae, member.geometry) for member in members])
    result = replace(named(vertebrae, run.decoder_penalties, options.forbid_anomalies), grid=scans[0], mask_grid=geometry)
    records = [read_json(folder / f"{case}.json", "prediction") for folder in folders]
    if run.evidence_model and not all(record.get("numbering_anchored") for record in records):
        # Saved rows are sums: what the evidence model knows of classifiers that err for a whole scan is no longer in them.
        result = replace(result, numbering_anchored=False)
    remove_earlier(output, case)
    if save_probabilities:
        write_probabilities(result, output / f"{case}.npz", options.classifiers, options.forbid_anomalies)
    result = with_result_flags(result)
    export_case(result, output, case, {"name": "ensemble", "members": [record.get("plans", {}) for record in records]})


def read_member(file: Path) -> Member:
    """What `write_probabilities` wrote; InputError when `file` is none of ours."""
    try:
        with np.load(file, allow_pickle=False) as content:
            record = json.loads(str(content["record"]))
            rows, evidence = content["probabilities"], content["log_probabilities"]
            vertebrae = []
            for i, values in enumerate(record["vertebrae"]):
                soft = content[f"mask_{i}"]
                vertebrae.append(vertebra_from_record(values, mask=soft >= 128, mask_probability=soft, probabilities=rows[i],
                                                      log_probabilities=evidence[i]))
            options = Options(bool(record["options"]["forbid_anomalies"]), classifiers=tuple(record["options"]["classifiers"]))
            return Member(vertebrae, ImageGrid.from_json(record["geometry"]), options)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise InputError(f"{file} holds no saved probabilities of this version ({type(error).__name__}); predict again with "
                         "--save_probabilities.") from error


def merge(members: Sequence[tuple[list[Vertebra], ImageGrid]]) -> tuple[list[Vertebra], ImageGrid]:
    """Vertebrae that at least half of the members found, without level, and the grid of their masks (the first member's, extended)."""
    groups: list[list[tuple[Vertebra, ImageGrid]]] = []
    for vertebrae, geometry in members:
        centres = [np.mean([v.known_body_centre for v, _ in group], axis=0) for group in groups]
        partner = {j: i for i, j in match_by_centroid(centres, [v.known_body_centre for v in vertebrae], SAME_MM)}
        for number, vertebra in enumerate(vertebrae):
            if number in partner:
                groups[partner[number]].append((vertebra, geometry))
            else:
                groups.append([(vertebra, geometry)])
    groups = [group for group in groups if 2 * len(group) >= len(members)]
    base = members[0][1]
    if not groups:
        return [], base
    corners = np.concatenate([_corners(vertebra, own, base) for group in groups for vertebra, own in group])
    low = np.floor(corners.min(0)).astype(int) - 1
    grid = base.cropped(low, np.ceil(corners.max(0)).astype(int) + 2 - low)
    best, owner = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.uint8)
    means = [_mean_mask(group, grid) for group in groups]
    for number, (total, start) in enumerate(means, start=1):
        box = box_slices(start, total.shape)
        wins = (total >= 0.5) & (total > best[box])
        best[box][wins], owner[box][wins] = total[wins], number
    merged = [_merge(group, owner == number, total, start, grid)
              for number, (group, (total, start)) in enumerate(zip(groups, means, strict=True), start=1)]
    return [vertebra for vertebra in merged if vertebra is not None], grid


def _corners(vertebra: Vertebra, own: ImageGrid, base: ImageGrid) -> np.ndarray:
    """Corners of the mask's box as (8, 3) indices of `base`."""
    first = np.array(vertebra.known_mask_start)
    pairs = np.stack([first, first + vertebra.known_mask.shape], axis=1)
    ends = np.stack(np.meshgrid(*pairs, indexing="ij"), axis=-1).reshape(-1, 3)
    return base.world_to_index(own.index_to_world(ends))


def _mean_mask(group: list[tuple[Vertebra, ImageGrid]], grid: ImageGrid) -> tuple[np.ndarray, np.ndarray]:
    """Mean mask probability of the members of one vertebra on a box of `grid`, and the box's first index."""
    boxes = [box for vertebra, own in group if (box := target_box(vertebra, own, grid)) is not None]
    low, high = np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)
    total = np.zeros(high - low, np.float32)
    for vertebra, own in group:
        total += interpolated(vertebra, own, grid, low, high)
    return total / len(group), low


def _merge(group: list[tuple[Vertebra, ImageGrid]], mask: np.ndarray, probability: np.ndarray, start: np.ndarray,
            grid: ImageGrid) -> Vertebra | None:
    """The group as one vertebra: `mask` on the whole of `grid`, mean `probability` on a box of it that begins at `start`."""
    if not mask.any():
        return None
    inside = np.argwhere(mask)
    first, last = inside.min(0), inside.max(0) + 1
    mask = fill_holes(largest_component(mask[box_slices(first, last - first)]))
    soft = probability[box_slices(first - start, last - first)]
    own = [vertebra for vertebra, _ in group]

    def mean(name: str) -> Any:
        """Of the members that know it, else None."""
        known = [value for v in own if (value := getattr(v, name)) is not None]
        if not known:
            return None
        value = np.mean(known, axis=0)
        return tuple(map(float, value)) if isinstance(known[0], tuple) else value if value.ndim else float(value)

    means = {name: mean(name) for name in ("box_centre", "body_centre", "score", "probabilities", "uncertainty", "trabecular_hu",
                                           "grade_probabilities", "combined_grade_probabilities")}
    log_mean = np.logaddexp.reduce([v.known_log_probabilities for v in own], axis=0) - np.log(len(own))
    known = [v.variant_log_probabilities for v in own if v.variant_log_probabilities is not None]
    variants = None
    if known:
        t13, l6 = np.log(np.mean(np.exp(known), axis=0))
        variants = float(t13), float(l6)
    voxel = float(np.prod(grid.spacing))
    return replace(own[0], **means, log_probabilities=log_mean, variant_log_probabilities=variants, mask=mask,
                   mask_start=int_triple(first), mask_probability=on_the_masks_side(soft, mask),
                   mask_centroid=float_triple(grid.index_to_world(np.argwhere(mask).mean(0) + first)),
                   extent=float_triple(n * s for n, s in zip(mask.shape, grid.spacing, strict=True)), hits=sum(v.hits for v in own),
                   volume_ml=float(mask.sum()) * voxel / 1000, touches_border=any(v.touches_border for v in own),
                   level=None, confidence=None, heights=None, height_doubt=None)


def named(vertebrae: list[Vertebra], penalties: dict[str, float], forbid_anomalies: bool = False) -> SpineResult:
    """The decoder's verdict on merged vertebrae, by the mean of their members' log-probabilities."""
    from ..anatomy.vertebral_gaps import order_cranio_caudal, vertebral_gaps
    from ..stages.identify.decoder import Decoder
    from ..stages.identify.plan import Penalties

    if not vertebrae:
        return SpineResult((), False)
    vertebrae = order_cranio_caudal(vertebrae)
    steps = vertebral_gaps(np.array([v.known_body_centre for v in vertebrae]))
    decoder = Decoder(Penalties.from_dict(penalties), forbid_anomalies)
    unknown = (float("nan"), float("nan"))
    variants = np.array([v.variant_log_probabilities or unknown for v in vertebrae])
    numbering = decoder.decode(np.array([v.known_log_probabilities for v in vertebrae]), steps, variants)
    kept = tuple(replace(v, level=name, confidence=float(c)) for v, name, c in
                 zip(vertebrae, numbering.names, numbering.confidence, strict=True) if name is not None)
    return SpineResult(kept, numbering.numbering_anchored and bool(kept), numbering.margin,
                       extra={"identify": {"rejected": len(vertebrae) - len(kept)}})
