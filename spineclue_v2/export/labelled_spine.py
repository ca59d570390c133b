"""A predicted scan as plain values: what files and pictures are made from. `results.SpineResult` can do more with it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..flags import Flag
from ..imageio.grid import ImageGrid
from ..measures.bodies import Body
from ..stages.base import NumberingBasis


@dataclass(frozen=True)
class LabelledSpine:
    """Vertebrae of one scan in cranio-caudal order, how far their numbering can be trusted, and the grids they lie on.

    Attributes:
        vertebrae: in cranio-caudal order.
        numbering_anchored: False when shifted numberings together hold more than 5 % of the posterior, and whenever no vertebra was
            found: what is not there anchors nothing.
        margin: log posterior of the best numbering minus that of its best shift by one; None where it is not known.
        seconds: seconds per step of the prediction.
        notes: warnings for the reader (thick slices, ...).
        extra: what a stage has to say besides.
        incomplete: where the spine goes on in the scan and no vertebra was found: "above", "below", "gap between X and Y".
        grid: the scan's own grid, on which label map and files are written.
        flags: what a person or a program should know before the result is used, each with a code; `notes` says the same in words.
        measures: angles, discs and bone, lists of flat records by group (`measures.records`); empty where nothing was measured.
        bodies: the bodies with end plates that the measures rest on.
        sacrum: the first sacral segment, with its mask; None where it was not looked for or not found.
        mask_grid: the network space grid that `Vertebra.mask` and `Vertebra.mask_start` lie on.
        anchored_by: "scan", "known" (what the user said) or "prior" (an earlier examination); None where the numbering is not anchored.
        known: what was given besides the scan (`source`, `given`) and the `probability` that the scan alone gives it; None: nothing.
        basis: what the numbering rests on, for numbering it again.
    """

    vertebrae: tuple[Vertebra, ...]
    numbering_anchored: bool
    margin: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    incomplete: tuple[str, ...] = ()
    grid: ImageGrid | None = None
    mask_grid: ImageGrid | None = None
    flags: tuple[Flag, ...] = ()
    anchored_by: str | None = None
    known: Mapping[str, Any] | None = None
    basis: NumberingBasis | None = field(default=None, repr=False, compare=False)
    measures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    bodies: tuple[Body, ...] = field(default=(), repr=False, compare=False)
    sacrum: Vertebra | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.vertebrae:
            object.__setattr__(self, "numbering_anchored", False)
        object.__setattr__(self, "anchored_by", (self.anchored_by or "scan") if self.numbering_anchored else None)

    def grids(self) -> tuple[ImageGrid, ImageGrid]:
        """(scan's grid, grid of the masks). Raises InputError where the result was made without them."""
        if self.grid is None or self.mask_grid is None:
            raise InputError("This result does not know the grid of its scan; make it with `grid` and `mask_grid`, as predict does.")
        return self.grid, self.mask_grid
