"""Any nnU-Net v2 raw dataset whose labels name vertebrae ('L1', 'vertebrae_L1', ...): the values become VerSe's."""
from __future__ import annotations

from pathlib import Path

from spineclue_v2.dataset.raw import RawDataset

from .common import Case, write_dataset


def convert(source: Path, folder: Path, num_processes: int = 0) -> list[str]:
    """Convert the raw dataset at `source` into `folder`; images are linked, labels rewritten where values differ."""
    raw = RawDataset(source)
    cases = [Case(case, raw.image(case), raw.label(case), patient=raw.patients.get(case, case), values=raw.verse_value)
             for case in raw.cases]
    kept = {key: raw.json[key] for key in ("licence", "reference", "release") if key in raw.json}
    return write_dataset(cases, folder, f"{raw.name} with VerSe label values", {}, raw.channel_name, num_processes, **kept)
