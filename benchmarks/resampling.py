"""Ways to bring an image to 1 mm: CPU seconds of one thread, and RMS in HU against the same phantom rendered at 1 mm.

    python -m benchmarks.resampling -o SCRATCH [--cases 3]     (SCRATCH: what preprocessing_vs_nnunet made there)

Ours (banded matrices, cubic), SimpleITK (linear, B-spline of order 3), torch (trilinear), nnU-Net (default, torch variant); all on the
same grid, int16 in, values limited to the stored range.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402

from benchmarks.preprocessing_vs_nnunet import EDGE, GRIDS, dataset  # noqa: E402


def ways(source: object, target: object) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """{name: int16 array on `source` -> array on `target`}; both are LPS geometries with the same corner."""
    import SimpleITK as sitk
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    from spineclue_v2.imageio.volume import Volume
    from spineclue_v2.plans.data import Data
    from spineclue_v2.preprocessing.resampling import to_network_space

    torch.set_num_threads(1)
    old, new, shape = source.spacing, target.spacing, target.shape

    def itk(array: np.ndarray, interpolator: int) -> np.ndarray:
        grid = Volume(np.zeros(shape, np.uint8), target).to_sitk()
        moving = Volume(array.astype(np.float32), source).to_sitk()
        return sitk.GetArrayFromImage(sitk.Resample(moving, grid, sitk.Transform(), interpolator, -1024.0))

    def trilinear(array: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(array.astype(np.float32))[None, None]
        return torch.nn.functional.interpolate(batch, size=shape, mode="trilinear")[0, 0].numpy()

    def nnunet(array: np.ndarray) -> np.ndarray:
        return resample_data_or_seg_to_shape(array[None].astype(np.float32), shape, old, new, False, 3, 0, None)[0]

    return {
        "ours, cubic": lambda a: to_network_space(Volume(a, source), Data(1.0)).array,
        "SimpleITK, linear": lambda a: itk(a, sitk.sitkLinear),
        "SimpleITK, B-spline 3": lambda a: itk(a, sitk.sitkBSpline),
        "torch, trilinear": trilinear,
        "nnU-Net, default": nnunet,
        "nnU-Net, torch": lambda a: resample_torch_fornnunet(a[None].astype(np.float32), shape, old, new, num_threads=1)[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder of preprocessing_vs_nnunet")
    parser.add_argument("--cases", type=int, default=3)
    args = parser.parse_args()

    import SimpleITK as sitk

    from spineclue_v2.imageio.volume import Volume, read_volume
    from spineclue_v2.plans.data import Data
    from spineclue_v2.preprocessing.resampling import network_grid

    for number, label in enumerate(GRIDS, start=1):
        rows: dict[str, list[tuple[float, float]]] = {}
        for path in sorted((args.o / "raw" / dataset(number) / "imagesTr").glob("*.nii.gz"))[:args.cases]:
            scan, truth = read_volume(path), read_volume(args.o / "reference" / "imagesTr" / path.name)
            target = network_grid(scan.geometry, Data(1.0))
            grid = Volume(np.zeros(target.shape, np.uint8), target).to_sitk()
            smooth = Volume(truth.array.astype(np.float32), truth.geometry).to_sitk()
            wanted = sitk.GetArrayFromImage(sitk.Resample(smooth, grid, sitk.Transform(), sitk.sitkBSpline))
            inner = tuple(slice(EDGE, n - EDGE) for n in target.shape)
            for name, way in ways(scan.geometry, target).items():
                started = time.process_time()
                result = np.clip(way(np.asarray(scan.array, np.int16)), -1024, 3071)
                seconds = time.process_time() - started
                rms = float(np.sqrt(np.mean((np.asarray(result, np.float32)[inner] - wanted[inner]) ** 2)))
                rows.setdefault(name, []).append((seconds, rms))
        sys.stdout.write(f"{label}, {args.cases} phantoms\n")
        for name, values in rows.items():
            seconds, rms = np.median(values, axis=0)
            sys.stdout.write(f"  {name:22s} {seconds:7.2f} s  {rms:6.2f} HU\n")


if __name__ == "__main__":
    main()
