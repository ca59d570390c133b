"""A made-up case for the tests of pages: four blocks as vertebrae in soft tissue, and a browser to look at its page."""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.flags import Flag
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.results import SpineResult

LEVELS = ("T12", "L1", "L2", "L3")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def blocks(levels: tuple[str, ...] = LEVELS, direction: np.ndarray | None = None) -> SpineResult:
    """Blocks 24 mm high, 30 mm apart, 1.5 mm voxels; none for no levels. Confidences and heights differ, one flag."""
    grid = ImageGrid((100, 60, 50), (1.5, 1.5, 1.5), (-30.0, 40.0, -200.0), np.eye(3) if direction is None else direction)
    array, vertebrae = np.full(grid.shape, 40, np.int16), []
    for number, level in enumerate(levels):
        start = (74 - 20 * number, 18 + number, 14 + 2 * number)
        array[tuple(slice(a, a + n) for a, n in zip(start, (16, 20, 22), strict=True))] = 300 + 50 * number
        middle = np.add(start, (7.5, 9.5, 10.5))
        vertebrae.append(Vertebra((0.0, 0.0, 0.0), (24.0, 30.0, 33.0), 1.0, mask=np.ones((16, 20, 22), bool), mask_start=start,
                                  level=level, confidence=0.4 + 0.199 * number, volume_ml=20.5,
                                  body_centre=tuple(map(float, grid.index_to_world(middle))),
                                  heights=BodyHeights(20.0, 18.0, 24.0, (24.0, 23.0, 24.0), "neighbours", 1, "wedge"), trabecular_hu=151.0))
    flag = Flag("thick_slices", "read", "warning", f"Slices are thick. {EVIL}", 6.0, 5.0, "Use thinner slices.")
    probabilities = zip(range(-2, 3), (0.0, 0.31, 0.6, 0.05, 0.0), strict=True)
    shifts = [{"shift": s, "levels": None if s == 2 else f"from {s}", "probability": p} for s, p in probabilities]
    alone = ["shape: T12 to L3", "geometry: T11 to L2, 4 of 4 differently"]
    others = [{"T11": 0.31, "L1": 0.001}] + [{} for _ in levels[1:]]
    extra = {"identify": {"rejected": 1, "landmarks": ["sacrum below L5 (0.97)"], "alone": alone, "shifts": shifts, "other_levels": others}}
    return SpineResult(tuple(vertebrae), False, 1.2, {"read": 0.1, "localize": 2.0, "total": 2.1}, (EVIL,), extra if levels else {},
                       flags=(flag,), grid=grid, mask_grid=grid, scan=Volume(array, grid))


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium that can draw (in software); the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds against the page; the test is skipped where it is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:120]}" for rule in axe.Axe().run(page).response["violations"]]


@contextmanager
def opened(chromium: Any, path: Path, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page of a file, and what went wrong on it so far: errors, and requests that leave the file system."""
    trouble: list[str] = []
    context = chromium.new_context(**options)
    page = context.new_page()
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else trouble.append(request.url))
    page.goto(path.as_uri())
    yield page, trouble
    context.close()
