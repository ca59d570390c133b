"""The table and the page of a label check."""
from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.imageio.volume import read_labels, read_volume
from spineclue_v2.utilities.files import atomic_path
from spineclue_v2.visualization.page.case_page import FOLDER, environment

from .check import verse_labels
from .suspicion import KINDS, Suspicion

TABLE, PAGE = "label_check.csv", "label_check.html"
COLUMNS = ("case", "kind", "levels", "sure", "alarm", "message", "correction", "confirmed")
WIDEST = 1100         # pixels of a picture in the page


def write_table(found: Sequence[Suspicion], folder: str | Path) -> Path:
    """`label_check.csv`: one line per suspicion, worst first; a person writes 'yes' into `confirmed` for `--fix`."""
    path = Path(folder) / TABLE
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([s.case, s.kind, " ".join(s.levels), f"{s.sure:.2f}", "yes" if s.alarm else "no", s.message, s.correction, ""]
                         for s in found)
    return path


def write_page(raw: RawDataset, found: Sequence[Suspicion], failed: Mapping[str, str], folder: str | Path, pictures: int = 40) -> Path:
    """`label_check.html`: one file that needs no network, a block per case with its picture, for the worst `pictures` cases."""
    path = Path(folder) / PAGE
    cases = []
    for place, (case, entries) in enumerate(groupby(found, key=lambda s: s.case)):
        cases.append({"name": case, "entries": list(entries), "picture": picture(raw, case) if place < pictures else None})
    alarms = sum(any(entry.alarm for entry in block["entries"]) for block in cases)
    text = environment().get_template("label_check.html").render(
        title=raw.name, cases=cases, failed=sorted(failed.items()), total=len(raw.cases), alarms=alarms, kinds=KINDS, table=TABLE,
        style=(FOLDER / "common.css").read_text(encoding="utf-8"))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def picture(raw: RawDataset, case: str) -> str | None:
    """Labels on the scan, JPEG in base64; None where nothing is labelled or nothing can be drawn."""
    from PIL import Image

    from spineclue_v2.export.labelled_spine import LabelledSpine
    from spineclue_v2.visualization.overlay import vertebrae_of
    from spineclue_v2.visualization.report import write_report

    labels = verse_labels(read_labels(raw.label(case)), raw.verse_value).reoriented("LPS")
    vertebrae = vertebrae_of(labels)
    if not vertebrae:
        return None
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "case.png"
        write_report(LabelledSpine(vertebrae, True), labels.geometry, read_volume(raw.image(case)).reoriented("LPS"), drawn, case)
        image = Image.open(drawn).convert("RGB")
    image.thumbnail((WIDEST, WIDEST))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
