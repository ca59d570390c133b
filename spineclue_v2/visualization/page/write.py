"""The files beside CASE.png that a person opens, made from a stored or a fresh result."""
from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...imageio.volume import Volume
from ...utilities.files import atomic_path
from .case_page import write_case_page
from .preview import CT_RANGE, make_preview

THUMBNAILS = "thumbnails"
THUMBNAIL_PIXELS = (360, 400)      # (wide, high) at most: twice what a card shows, for sharp displays


def write_pages(folder: str | Path, name: str, record: Mapping[str, Any], scan: Volume, labels: Volume) -> dict[str, Path]:
    """Write `NAME.html` and `thumbnails/NAME.jpg`, with `NAME.png` in them where it is there; returns their paths.

    Args:
        folder: of the case's other files.
        name: of the case.
        record: content of CASE.json.
        scan: the scan, any orientation.
        labels: label map on the scan's grid.
    """
    folder, mr = Path(folder), "structures" in record
    drawn = folder / f"{name}.png"
    picture = drawn.read_bytes() if drawn.is_file() else None
    paths = {"page": folder / f"{name}.html"}
    write_case_page(paths["page"], record, name, make_preview(scan, labels, None if mr else CT_RANGE), picture and small_picture(picture))
    if picture is not None:
        paths["thumbnail"] = folder / THUMBNAILS / f"{name}.jpg"
        write_thumbnail(paths["thumbnail"], picture, not mr)
    return paths


def small_picture(png: bytes) -> bytes:
    """The picture with 256 colours: a third of the bytes, and no difference that an eye sees."""
    from PIL import Image

    reduced, stream = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE), io.BytesIO()
    reduced.save(stream, "PNG", optimize=False)
    return stream.getvalue()


def write_thumbnail(path: Path, png: bytes, left_half: bool) -> None:
    """A small JPEG of a case's picture; of a CT's the left half alone, which is the mid-sagittal view."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    width, height = image.size
    if left_half:
        image = image.crop((0, int(0.09 * height), width // 2, int(0.93 * height)))
    image.thumbnail(THUMBNAIL_PIXELS)
    with atomic_path(path) as temporary:
        image.save(temporary, "JPEG", quality=80)
