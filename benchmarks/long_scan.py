"""A scan of 900 mm (C1 to L5 and what lies beyond), planned, preprocessed, tiled and predicted.

    python -m benchmarks.long_scan -o SCRATCH

One phantom (seed 900) in a field of 900 mm at 1.5 x 1.5 x 2 mm becomes a raw dataset of one case; it is planned for a CPU and preprocessed,
then predicted by the shipped weights and compared with its own labels. Synthetic: it shows that length costs nothing but time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from spineclue_v2.stages.plan_files import load_plans

SEED, LENGTH_MM, SPACING = 900, 900.0, (2.0, 1.5, 1.5)
NAME = "Dataset820_Long"


def make(root: Path) -> Path:
    """The scan as a raw dataset; what the phantom's field lacks to 900 mm is added as air above and below."""
    from spineclue_v2.anatomy import dataset_labels
    from spineclue_v2.imageio.grid import ImageGrid
    from spineclue_v2.imageio.volume import Volume, write_volume
    from spineclue_v2.phantom import sample

    folder = root / "raw" / NAME
    image = folder / "imagesTr" / "long_0000.nii.gz"
    if not image.is_file():
        case = sample(SEED, first="C1", last="L5", margin=100.0, spacing=SPACING, wide=False, variant=None, fractures={}, oblique=0.0)
        lacking = max(0, round(LENGTH_MM / SPACING[0]) - case.ct.shape[0])
        pad = ((lacking // 2, lacking - lacking // 2), (0, 0), (0, 0))
        ct, labels = np.pad(case.ct, pad, constant_values=-1000), np.pad(case.labels, pad)
        geometry = ImageGrid(ct.shape, SPACING, (0.0, 0.0, 0.0), np.eye(3))
        write_volume(Volume(labels, geometry), folder / "labelsTr" / "long.nii.gz")
        write_volume(Volume(ct, geometry), image)
        content = {"channel_names": {"0": "CT"}, "labels": dataset_labels(), "numTraining": 1, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder")
    args = parser.parse_args()
    os.environ |= {"spineclue_raw": str(args.o / "raw"), "spineclue_preprocessed": str(args.o / "preprocessed")}
    folder = make(args.o)

    from spineclue_v2 import SpineCLUE
    from spineclue_v2.cli.evaluate import table
    from spineclue_v2.evaluation.summary import evaluate
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.inference.predict_folder import predict
    from spineclue_v2.planning.plan_and_preprocess import plan_and_preprocess
    from spineclue_v2.stages.localize.looks import TILE_OVERLAP_MM, tiles

    started = time.perf_counter()
    failures = plan_and_preprocess([NAME], device="cpu", progress=False)
    planned = time.perf_counter() - started
    scan = read_volume(folder / "imagesTr" / "long_0000.nii.gz")
    own = load_plans(args.o / "preprocessed" / NAME / "SpineCLUEPlans.json").stage("localize")
    model = SpineCLUE.from_pretrained(device="cpu").model
    shipped = model.plans.stage("localize")
    overlap = round(TILE_OVERLAP_MM / shipped.data.spacing_mm)
    rows = round(scan.geometry.extent_mm[0] / shipped.data.spacing_mm)
    outcome = predict(folder / "imagesTr", args.o / "predicted", model, report=False)
    spent = json.loads((args.o / "predicted" / "long.json").read_text()).get("seconds", {})
    summary = evaluate(folder / "labelsTr", args.o / "predicted", None, cases=["long"])
    tile = shipped.network.slice_size[0]
    sys.stdout.write("\n".join([
        f"{scan.geometry.extent_mm[0]:.0f} mm, {' x '.join(map(str, scan.array.shape))} voxels",
        f"planned and preprocessed in {planned:.1f} s, failed: {failures or 'none'}; slices of its own plan: "
        f"{own.network.slice_size[0]} rows of {own.data.spacing_mm:g} mm",
        f"predicted with the shipped plan in {len(tiles(0, rows, tile, overlap))} tiles of {tile} rows; seconds {spent}; failed: "
        f"{[name for name, why in outcome.items() if why] or 'none'}", *table(summary), ""]))


if __name__ == "__main__":
    main()
