"""Naming the vertebrae of anybody's label map: its masks are mended, its levels count as one opinion, its voxels stay where they are."""
from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import LABEL_OF_NAME, LEVEL_INDEX, LEVELS, ORDER_INDEX, level_distance
from ..anatomy.label_schemes import RIB, SACRUM, LabelScheme
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..export.case_record import case_record
from ..export.measure_files import MEASURE_ENDINGS, export_measures
from ..export.result_flags import picture_failed, with_result_flags
from ..flags import Flag
from ..imageio.centroids import write_ctd
from ..imageio.orientation import check_same_grid, oriented_view
from ..imageio.volume import FILE_ENDINGS, ImageGrid, Volume, read_volume, write_volume
from ..preprocessing.resampling import network_grid
from ..results import SpineResult
from ..stages.base import Evidence
from ..stages.identify.tool_levels import tool_evidence
from ..utilities.files import move_files, staged_folder, write_json
from ..utilities.pictures import draw_or_say
from .bodies import Body, name_bodies, to_vertebra
from .foreign_report import decided_flag, difference_flag, level_table, mending_flags, missing_flags, unlikely_flags
from .label_source import LabelSource, read_source
from .mend import Mending, mended_bodies
from .model import Model
from .part_and_join import Measure, part_and_join
from .pipeline import Options
from .rib_ends import rib_ends
from .source_map import remove_vertebrae, source_map_path, write_source_map

MAX_BODIES = 60        # more bodies are no spine: a map of fragments, or of everything in the scan
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
TOO_FAR = 2            # levels between our names and those of a guessed scheme (median): the values are no levels of that scheme
NEXT_MM = 70.0         # between body centres of neighbours: the largest gap, and what a piece of a process lies behind its body
HANGING_MM = 20.0
SACRUM_BELOW_MM = (-10.0, 35.0)  # from the centre of the lowest lumbar body down to the top of the sacrum


@dataclass
class _Tool:
    """What the other tool says; the scheme is settled when our own classifiers have spoken."""

    source: LabelSource
    bodies: Sequence[Body]
    use_levels: bool
    sure: Sequence[bool]                     # per body: whether its value is its level (not so in parted ones)
    scheme: LabelScheme | None = None
    own: dict[int, str] = field(default_factory=dict)   # by place of the body: what our classifiers read alone

    def hint(self, row: tuple[Vertebra, ...], named: tuple[Vertebra, ...]) -> Evidence | None:
        """Evidence for the vertebrae of `row`; `named`: those of them that our classifiers name."""
        self.own = {v.hits: v.known_level for v in named}
        self.scheme = self._settled({v.hits: ORDER_INDEX[v.known_level] for v in named})
        if self.scheme is None:
            return None
        sacrum = self._sacrum_below(row[-1])
        levels = [self.level(v.hits) if self.use_levels else None for v in row]
        ribs = rib_ends([self.bodies[v.hits] for v in row], oriented_view(self.source.labels), self.scheme.values_of(RIB))
        return tool_evidence(levels, sacrum, ribs) if sacrum or ribs or any(levels) else None

    def level(self, place: int) -> str | None:
        """The tool's name of a body, where it has one."""
        return self.scheme.levels.get(self.bodies[place].value) if self.scheme is not None and self.sure[place] else None

    def _settled(self, ours: dict[int, int]) -> LabelScheme | None:
        distances = []
        for scheme in self.source.schemes:
            steps = [abs(ORDER_INDEX[scheme.levels[self.bodies[place].value]] - index) for place, index in ours.items()
                     if self.bodies[place].value in scheme.levels]
            distances.append(float(np.median(steps)) if steps else 0.0)
        if not distances or (min(distances) > TOO_FAR and not self.source.certain):
            return None
        return self.source.schemes[int(np.argmin(distances))]

    def _sacrum_below(self, last: Vertebra) -> bool | None:
        assert self.scheme is not None
        values = self.scheme.values_of(SACRUM)
        if not values:
            return None
        view = oriented_view(self.source.labels)
        heights = np.flatnonzero(np.isin(view.array, values).any(axis=(1, 2)))
        if not len(heights):
            return None
        z = float(view.geometry.world_to_index(np.array(last.known_body_centre))[0])
        drop = (z - float(heights.max())) * view.spacing[0]
        return True if SACRUM_BELOW_MM[0] <= drop <= SACRUM_BELOW_MM[1] else None


def relabel(source: str | Path, output: str | Path, model: Model, options: Options | None = None, ignore: Collection[int] = (),
            scan: str | Path | None = None, scheme: str = "auto", use_levels: bool = True) -> SpineResult:
    """Write the label map `source` with new names to `output`, `_ctd.json` and, last, `.json` beside it (as `predict` writes).

    Args:
        source: label map of any tool, or a folder with one mask per structure (`vertebrae_L1.nii.gz`).
        output: VerSe's values. Where the scheme of the source is known, the same in that scheme as `OUT_<scheme>` beside it.
        model: its classifiers name the masks.
        options: variants and classifiers.
        ignore: values that are no vertebrae, whatever the scheme says.
        scan: the CT: for the appearance classifier, the picture `.png` and HU.
        scheme: whose values they are, see `label_source.CHOICES`.
        use_levels: whether the tool's own levels count as one more classifier.

    Raises:
        InputError: an unknown scheme or one that does not fit, no label map, the output is the input, the scan lies on another grid.
    """
    started = time.perf_counter()
    source, output = Path(source), Path(output)
    base = _base(output)
    if output.exists() and output.resolve() == source.resolve():
        raise InputError(f"Cannot write {output}: it is the input; choose another name, so that the old labels stay.")
    found = read_source(source, scheme, ignore)
    _check_beside(source, found, base, str(output)[len(base):])
    labels = found.labels
    volume = _matching_scan(scan, labels.geometry, source) if scan is not None else None
    result, owners, used = relabel_map(found, model, options, ignore, volume, use_levels)
    grid = network_grid(labels.geometry, model.plans.stage("identify").data)
    result = replace(result, grid=labels.geometry, mask_grid=grid, seconds={"total": time.perf_counter() - started})
    if volume is not None and result.vertebrae:
        result = result.with_measures(volume, _sacrum(found, used))
    name = Path(base).name
    with staged_folder(output.parent, name) as made:
        result = _write(with_result_flags(result), made / output.name, found, owners, used, volume)
        write_json(made / f"{name}.json", case_record(result, model.record))
        _remove_earlier(base, found, used)
        move_files(made, output.parent, last=made / f"{name}.json")
    return result


def _sacrum(source: LabelSource, scheme: LabelScheme | None) -> Volume | None:
    """The tool's sacrum (and S1), where it has one."""
    values = [] if scheme is None else scheme.values_of(SACRUM)
    mask = np.isin(source.labels.array, values)
    return Volume(mask.astype(np.uint8), source.labels.geometry) if mask.any() else None


def _write(result: SpineResult, output: Path, source: LabelSource, owners: Sequence[tuple[Body, str]], used: LabelScheme | None,
           volume: Volume | None) -> SpineResult:
    """All files but the record, `output` and beside it; the result with what there was to say of them."""
    base = _base(output)
    labels = Volume(draw(source.labels, owners), source.labels.geometry)
    write_volume(labels, output)
    if used is not None:
        result = _with_flags(result, write_source_map(source, used, owners, base, str(output)[len(base):]))
    write_ctd(f"{base}_ctd.json", result.vertebrae, labels.geometry)
    if result.measures:
        export_measures(result, labels, output.parent, Path(base).name)
    if volume is not None:
        result = replace(result, flags=result.flags + _draw(result, volume, base))
    return result


def _remove_earlier(base: str, source: LabelSource, used: LabelScheme | None) -> None:
    """What an earlier run left: the record first, which vouches for the rest, and files that this run may not write again."""
    for ending in (".json", ".png", *MEASURE_ENDINGS):
        Path(f"{base}{ending}").unlink(missing_ok=True)
    if used is not None and source.folder:
        remove_vertebrae(source_map_path(source, used, base, ""))


def _draw(result: SpineResult, volume: Volume, base: str) -> tuple[Flag, ...]:
    """The pictures; flags that say so where one could not be drawn."""
    from ..visualization.measures_picture import write_measures_picture
    from ..visualization.report import write_report

    grid, title, flags = result.grids()[1], Path(base).name, []
    for ending, write in ((".png", write_report), *([("_measures.png", write_measures_picture)] if result.measures else [])):
        path = Path(f"{base}{ending}")
        if trouble := draw_or_say(partial(write, result, grid, volume, path, title), path.name):
            flags.append(picture_failed(trouble))
    return tuple(flags)


def relabel_map(source: LabelSource, model: Model, options: Options | None = None, ignore: Collection[int] = (),
                scan: Volume | None = None, use_levels: bool = True
                ) -> tuple[SpineResult, list[tuple[Body, str]], LabelScheme | None]:
    """The result for a map, its named bodies with their levels, and the scheme that its values follow (None: no known one)."""
    from ..stages.grade.body_heights import add_heights

    geometry, data = source.labels.geometry, model.plans.stage("identify").data
    smallest = model.plans.stage("segment").run.min_volume_ml
    bodies, slivers, done = mended_bodies(source, smallest, ignore)
    if len(bodies) > MAX_BODIES:
        raise InputError(f"The label map holds {len(bodies)} separate bodies of {smallest:g} ml and more, no spine has that many; expected "
                         "a label map of vertebrae (--ignore leaves out values of other structures).")
    view = geometry.reoriented("LPS")[0]
    bodies, done.parted, done.joined = part_and_join(bodies, view.spacing, lambda body: to_vertebra(body, view, data))
    tool = _Tool(source, bodies, use_levels, [body.value not in done.parted for body in bodies])
    result, owners = name_bodies(bodies, geometry, model, options, scan, tool.hint)
    rejected = len(bodies) - len(result.vertebrae)
    grid = network_grid(geometry, data)
    named = list(add_heights(result.vertebrae, grid, scan, geometry))
    table = [(bodies[v.hits].value, tool.level(v.hits), v.level) for v in named]
    table += [(body.value, tool.level(i), None) for i, body in enumerate(bodies) if i not in {v.hits for v in named}]
    flags = [*_scheme_flags(source, tool.scheme), *decided_flag(named, tool.own), *mending_flags(done), *missing_flags(named),
             *unlikely_flags(named, {i: bodies[v.hits].value for i, v in enumerate(named)})]
    left_over = [body for i, body in enumerate(bodies) if i not in {v.hits for v in named}]
    for body, vertebra in _continued(slivers, left_over, named, tool, lambda body: to_vertebra(body, view, data)):
        table = [row for row in table if row[0] != body.value or row[2] is not None]
        rejected -= any(body is other for other in left_over)
        named = sorted([*named, vertebra], key=lambda v: ORDER_INDEX[v.known_level])
        owners.append((body, vertebra.known_level))
        table.append((body.value, vertebra.level, vertebra.level))
    records = level_table(table)
    flags += difference_flag(records, tool.scheme.title if tool.scheme is not None else "")
    identify = {**result.extra.get("identify", {}), "rejected": rejected}
    extra = {**result.extra, "identify": identify, "source": _record(tool.scheme, source, records, done)}
    result = _with_flags(replace(result, vertebrae=tuple(named), extra=extra), flags)
    notes = (f"{rejected} bodies are no vertebra in the chosen numbering and were dropped.",) if rejected else ()
    return replace(result, notes=result.notes + notes), owners, tool.scheme


def _continued(slivers: Sequence[Body], left_over: Sequence[Body], named: Sequence[Vertebra], tool: _Tool, measure: Measure
               ) -> list[tuple[Body, Vertebra]]:
    """Bodies that our classifiers have no name for: too little of a vertebra at the scan's border, or one at the end of the row that they
    took for none. One continues the row where the tool numbers it next to the end, and it lies there."""
    out: list[tuple[Body, Vertebra]] = []
    if tool.scheme is None or not named:
        return out
    for body, cut in [*((body, True) for body in slivers), *((body, False) for body in left_over)]:
        vertebra, level = measure(body), tool.scheme.levels.get(body.value)
        for end, step in ((named[0], -1), (named[-1], 1)):
            theirs = tool.level(end.hits)
            if vertebra is None or level is None or theirs is None or not {level, theirs, end.known_level} <= set(LEVELS):
                continue
            off = np.subtract(vertebra.known_body_centre, end.known_body_centre)
            index = LEVEL_INDEX[end.known_level] + step
            # A process hangs down beside the body below.
            if (level_distance(theirs, level) == step and np.linalg.norm(off) <= NEXT_MM and -step * off[2] > -HANGING_MM
                    and 0 <= index < len(LEVELS) and not any(v.level == LEVELS[index] for _, v in out)):
                touches = cut or vertebra.touches_border
                out.append((body, replace(vertebra, level=LEVELS[index], confidence=end.confidence, touches_border=touches)))
                break
    return out


def _scheme_flags(source: LabelSource, scheme: LabelScheme | None) -> list[Flag]:
    if scheme is not None:
        how = "" if source.certain else ", by their order along the spine and by what the classifiers read; say --from if that is wrong"
        return [Flag("label_scheme", "relabel", "info", f"The values are read as those of {scheme.title}{how}.", scheme.name)]
    return [Flag("label_scheme", "relabel", "warning", "The values follow no known label scheme: every value is taken for a vertebra and "
                 "its number says nothing.", "unknown", None, "Give --from, and --ignore for values that are no vertebrae.")]


def _record(scheme: LabelScheme | None, source: LabelSource, table: list[dict[str, Any]], done: Mending) -> dict[str, Any]:
    """`extra.source` of the record."""
    return {"scheme": None if scheme is None else scheme.name, "certain": source.certain, "levels": table,
            "mended": {"moved_ml": round(done.moved_ml, 3), "dropped_ml": round(done.dropped_ml, 3), "filled_ml": round(done.filled_ml, 3),
                       "parted": done.parted, "joined": [list(pair) for pair in done.joined]}}


def _with_flags(result: SpineResult, flags: Sequence[Flag]) -> SpineResult:
    """The result with more flags, whose messages are notes as well."""
    return replace(result, flags=(*result.flags, *flags), notes=(*result.notes, *(flag.message for flag in flags)))


def draw(labels: Volume, owners: Sequence[tuple[Body, str]]) -> np.ndarray:
    """VerSe values, uint8, on the map's own grid: the voxels of the named bodies."""
    drawn = np.zeros(labels.array.shape, np.uint8)
    view = oriented_view(Volume(drawn, labels.geometry)).array  # shares memory with `drawn`
    for body, level in owners:
        view[body.box][body.mask] = LABEL_OF_NAME[level]
    return drawn


def _base(output: Path) -> str:
    """`output` without its ending."""
    for ending in WRITABLE:
        if output.name.lower().endswith(ending):
            return str(output)[:-len(ending)]
    raise InputError(f"Cannot write {output}: choose a file name that ends with {', '.join(WRITABLE)}.")


def _check_beside(source: Path, found: LabelSource, base: str, ending: str) -> None:
    """InputError where the map in the source's own values would replace the source."""
    for target in [source_map_path(found, candidate, base, ending) for candidate in found.schemes]:
        if target.exists() and target.resolve() == source.resolve():
            raise InputError(f"Cannot write {target}: it is the input; choose another name for the output, so that the old labels stay.")


def _matching_scan(scan: str | Path, geometry: ImageGrid, source: Path) -> Volume:
    scan = Path(scan)
    if scan.is_file() and not scan.name.lower().endswith(FILE_ENDINGS):
        raise InputError(f"{scan} is of no known format; expected {', '.join(FILE_ENDINGS)} or a DICOM folder.")
    volume = read_volume(scan)
    check_same_grid(volume.geometry, geometry, source.name, source)
    return volume
