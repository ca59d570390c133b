"""What a writer of a further format gets to see of a result, and the segments that all of them write."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ... import anatomy
from ...anatomy.vertebra import Vertebra
from ...flags import Flag
from ...imageio.volume import Volume
from ..run_files import Provenance
from .codes import Code, code_of

GREY = (170, 170, 170)


class Exportable(Protocol):
    """The part of `results.SpineResult` that writers use."""

    @property
    def vertebrae(self) -> tuple[Vertebra, ...]: ...
    @property
    def structures(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def numbering_anchored(self) -> bool: ...
    @property
    def flags(self) -> tuple[Flag, ...]: ...
    @property
    def scan(self) -> Volume | None: ...
    @property
    def provenance(self) -> Provenance | None: ...


@dataclass(frozen=True)
class Segment:
    """One labelled structure of the label map.

    Attributes:
        name: such as "L3", in MR also "L3/L4".
        label: its value in the label map.
        colour: RGB, 0..255.
        code: the SNOMED CT code of the structure.
        centre: body centre of a vertebra, else the centroid of the mask; LPS mm.
        vertebra: what else is known of it; None for MR.
    """

    name: str
    label: int
    colour: tuple[int, int, int]
    code: Code
    centre: tuple[float, float, float]
    vertebra: Vertebra | None = None


def segments_of(result: Exportable) -> list[Segment]:
    """All structures that have voxels in the label map, in the order of `result.structures`."""
    known: dict[str, Vertebra] = {}
    for vertebra in result.vertebrae:
        if vertebra.level is not None and (vertebra.confidence or 0.0) >= (known[vertebra.level].confidence or 0.0
                                                                           if vertebra.level in known else 0.0):
            known[vertebra.level] = vertebra
    segments = []
    for row in result.structures:
        name, found = str(row["structure"]), known.get(row["structure"])
        x, y, z = (found.body_centre if found is not None else None) or row["centroid_mm"]
        segments.append(Segment(name, int(row["label"]), colour_of(name), code_of(name), (float(x), float(y), float(z)), found))
    return segments


def colour_of(name: str) -> tuple[int, int, int]:
    """Colour of a structure; a disc has that of the vertebra above, halfway to white."""
    level, _, lower = name.partition("/")
    colour = anatomy.colour(level) if level in anatomy.LABEL_OF_NAME else GREY
    return tuple((c + 255) // 2 for c in colour) if lower else colour  # type: ignore[return-value]


def scan_of(result: Exportable) -> Volume:
    """The scan of a result; ValueError where it was not kept, which `check_result` says in words before anything is written."""
    if result.scan is None:
        raise ValueError("the scan was not kept with the result")
    return result.scan
