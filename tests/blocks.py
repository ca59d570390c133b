"""Small made-up spines for tests: a box for each body, a ring and a plate behind it, in any spacing and orientation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, dataset_labels
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume, write_volume

BODY = (16.0, 20.0, 24.0)  # mm: height, depth, width of a body
STEP = 22.0  # mm between neighbours


def spine(
    names: Sequence[str], spacing: Sequence[float] = (2.0, 2.0, 2.0), step: float = STEP, margin: float = 14.0
) -> tuple[Volume, Volume, dict[str, tuple[float, float, float]]]:
    """(CT int16, labels uint8, body centres (z, y, x) mm from the first voxel) of a straight spine, LPS, first name on top."""
    size = np.array([step * len(names) + 2 * margin - (step - BODY[0]), 68.0, 64.0])
    shape = np.round(size / spacing).astype(int)
    z, y, x = (np.arange(n) * s for n, s in zip(shape, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    labels = np.zeros(shape, np.uint8)
    centres = {}
    for i, name in enumerate(names):
        middle = (len(names) - 1 - i) * step + margin + BODY[0] / 2
        centre = (middle, 22.0, 32.0)
        tall = np.abs(z - middle)
        body = (tall <= BODY[0] / 2) & (np.abs(y - centre[1]) <= BODY[1] / 2) & (np.abs(x - 32) <= BODY[2] / 2)
        arch = (tall <= 4) & (np.hypot(y - 38, x - 32) <= 11) & (np.hypot(y - 38, x - 32) >= 7)
        spinous = (tall <= 4) & (y >= 47) & (y <= 60) & (np.abs(x - 32) <= 3)
        labels[body | arch | spinous] = LABEL_OF_NAME[name]
        centres[name] = centre
    rng = np.random.default_rng(0)
    ct = np.where(labels > 0, 400, 40) + rng.normal(0, 8, labels.shape)
    geometry = ImageGrid(tuple(int(n) for n in shape), tuple(float(s) for s in spacing), (5.0, -7.0, 11.0), np.eye(3))
    return Volume(ct.astype(np.int16), geometry), Volume(labels, geometry), centres


def write_dataset(
    folder: Path,
    cases: Mapping[str, tuple[Volume, Volume]],
    labels: Mapping[str, int] | None = None,
    ending: str = ".nii.gz",
    **extra: object,
) -> Path:
    """A raw dataset of (CT, labels) pairs; `extra` goes to dataset.json."""
    for case, (image, label) in cases.items():
        write_volume(image, folder / "imagesTr" / f"{case}_0000{ending}")
        write_volume(label, folder / "labelsTr" / f"{case}{ending}")
    content = {
        "channel_names": {"0": "CT"},
        "labels": dict(labels or dataset_labels()),
        "numTraining": len(cases),
        "file_ending": ending,
    } | extra
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def lumbar_dataset(folder: Path, count: int = 3, **extra: object) -> Path:
    """`count` cases of T12..L5 with slightly different spacings."""
    names = ["T12", "L1", "L2", "L3", "L4", "L5"]
    cases = {f"case_{i:02d}": spine(names, (2.0 + 0.1 * i, 1.5, 1.5))[:2] for i in range(count)}
    return write_dataset(folder, cases, **extra)
