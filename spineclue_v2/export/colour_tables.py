"""Colour tables for 3D Slicer and ITK-SNAP."""
from __future__ import annotations

from pathlib import Path

from .. import anatomy
from ..utilities.files import atomic_path

SLICER_TABLE, ITKSNAP_TABLE = "labels_slicer.ctbl", "labels_itksnap.txt"


def write_colour_tables(folder: str | Path) -> tuple[Path, Path]:
    """Colour tables of all label values for 3D Slicer and ITK-SNAP, written once per folder; returns their paths."""
    slicer, itksnap = Path(folder) / SLICER_TABLE, Path(folder) / ITKSNAP_TABLE
    rows = [(label, name, anatomy.colour(name)) for label, name in sorted(anatomy.NAME_OF_LABEL.items())]
    if not slicer.is_file():
        lines = ["# 3D Slicer colour table, VerSe label values: number name red green blue opacity", "0 background 0 0 0 0"]
        lines += [f"{label} {name} {r} {g} {b} 255" for label, name, (r, g, b) in rows]
        _write_lines(slicer, lines)
    if not itksnap.is_file():
        lines = ["# ITK-SNAP label descriptions, VerSe label values: number red green blue opacity visible mesh name",
                 '    0     0    0    0        0  0  0    "Clear Label"']
        lines += [f'{label:5d} {r:5d}{g:5d}{b:5d}        1  1  1    "{name}"' for label, name, (r, g, b) in rows]
        _write_lines(itksnap, lines)
    return slicer, itksnap


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
