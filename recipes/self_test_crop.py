"""The crop that `spineclue_doctor` tests itself on: L1 to L3 of a phantom whose seed no weights were trained on.

    python -m recipes.self_test_crop
"""
from __future__ import annotations

import numpy as np

from spineclue_v2.doctor.self_test import CROP, LOWEST_HU, STEP_HU
from spineclue_v2.phantom import sample

SPACING = (3.0, 2.0, 2.0)
MARGIN = np.array([3, 4, 2])


def main() -> None:
    phantom = sample(9042, first="L1", last="L3", spacing=SPACING, oblique=0, streaks=0)
    inside = np.argwhere(phantom.labels > 0)
    low = np.maximum(inside.min(0) - MARGIN, 0)
    box = tuple(slice(a, b) for a, b in zip(low, inside.max(0) + MARGIN + 1, strict=True))
    packed = np.clip(np.round((phantom.ct[box].astype(float) - LOWEST_HU) / STEP_HU), 0, 127).astype(np.uint8)
    labels = phantom.labels[box]
    np.savez_compressed(CROP, ct=packed, spacing=np.array(SPACING), labels=np.where(labels > 0, labels - 19, 0).astype(np.uint8))
    print(f"{CROP}: {packed.shape}, {CROP.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
