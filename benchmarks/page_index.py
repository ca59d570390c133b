"""How usable `index.html` is with many cases: seconds to the first paint, memory of the browser, seconds to write it.

    python -m benchmarks.page_index --cases 2000 -o FOLDER

Needs playwright and Chromium (extra `browser`). Cases and pictures are synthetic. Memory is that of all processes of the browser (shared
pages count once): with an empty page, with the index opened, and after it was scrolled through to its end.
"""
from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.utilities.files import write_json
from spineclue_v2.visualization.page.batch_index import update_index
from spineclue_v2.visualization.page.write import THUMBNAILS, write_thumbnail

LEVELS = [f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 6)]


def write_cases(folder: Path, number: int) -> None:
    """CASE.json, a page's place and a thumbnail of each case."""
    from PIL import Image

    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 255, (60, 100, 3), dtype=np.uint8)).resize((1000, 900), Image.Resampling.BICUBIC)
    noise.save(stream := io.BytesIO(), "PNG")
    (folder / THUMBNAILS).mkdir(parents=True, exist_ok=True)
    write_thumbnail(folder / THUMBNAILS / "case_0000.jpg", stream.getvalue(), True)
    for case in range(number):
        first, count = draw.integers(0, 12), draw.integers(0, 6)
        vertebrae = [{"level": level, "confidence": round(float(draw.beta(8, 1)), 4)} for level in LEVELS[first:first + count]]
        write_json(folder / f"case_{case:04d}.json", {"status": "ok" if count else "no vertebra found", "vertebrae": vertebrae,
                                                      "numbering_anchored": bool(draw.random() < 0.7 and count), "flags": []})
        (folder / f"case_{case:04d}.html").touch()
        if case:
            shutil.copyfile(folder / THUMBNAILS / "case_0000.jpg", folder / THUMBNAILS / f"case_{case:04d}.jpg")


def resident_mb(profile: Path) -> float:
    """Of all processes that were started with this profile, in MB; pages that several share count once (proportional set)."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(profile) in (process / "cmdline").read_text():
                rows = (process / "smaps_rollup").read_text().splitlines()
                total += int(next(row for row in rows if row.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):
            continue
    return total / 1000


def look(index: Path, browser: str, profile: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context: Any = playwright.chromium.launch_persistent_context(str(profile), executable_path=browser, args=["--no-sandbox"],
                                                                     viewport={"width": 1440, "height": 900})
        page = context.new_page()
        empty = resident_mb(profile)
        page.goto(index.absolute().as_uri())
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
        first = resident_mb(profile)
        started = time.perf_counter()
        page.get_by_label("Numbering").select_option("no")
        filtering = time.perf_counter() - started
        page.get_by_label("Numbering").select_option("")
        for _ in range(60):
            page.mouse.wheel(0, 4000)
            page.wait_for_timeout(50)
        scrolled = resident_mb(profile)
        context.close()
    return {"first paint s": paint, "loaded s": loaded, "filter s": filtering, "browser with an empty page MB": empty, "opened MB": first,
            "scrolled through MB": scrolled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("-o", required=True, help="folder for cases and browser profile; made anew")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    args = parser.parse_args()
    folder = Path(args.o) / "results"
    write_cases(folder, args.cases)
    started = time.perf_counter()
    index = update_index(folder, {"case_9999": "not a scan"})
    print(f"written in {time.perf_counter() - started:.2f} s, {index.stat().st_size / 1e6:.2f} MB")
    for name, value in look(index, args.browser, Path(args.o).absolute() / "profile").items():
        print(f"{name:<30} {value:8.2f}")
    print(subprocess.run([args.browser, "--version"], capture_output=True, text=True, check=False).stdout.strip())


if __name__ == "__main__":
    main()
