"""HU of bone, disc, muscle and fat: synthetic lumbar CTs beside real ones, cut out of labelled scans by one rule for both.

bone: the labels, 1 mm in from their edge; disc: a disc of 9 mm radius and 3 mm thickness half way between two bodies; muscle and
fat: voxels beside and behind the arches (12-40 mm from the midline, 5-35 mm behind the bodies' backs), 4 mm or more from labels and from
anything above 200 HU, told apart by their neighbourhood's median (fat -150..-40, muscle 0..110 HU).
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

TISSUES = ("bone", "disc", "muscle", "fat")
REAL = {"verse005": "sub-verse005", "verse008": "sub-verse008"}
LUMBAR = range(20, 25)


def tissues(ct: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """HU samples of each tissue; arrays (z, y, x) LPS."""
    from scipy.ndimage import distance_transform_edt, median_filter

    from spineclue_v2.anatomy.morphology import body_centre

    found: dict[str, list[np.ndarray]] = {t: [] for t in TISSUES}
    present = [v for v in LUMBAR if (labels == v).sum() * np.prod(spacing) > 15000]
    index = np.argwhere(np.isin(labels, present))
    box = tuple(slice(max(a - 5, 0), b + 5) for a, b in zip(index.min(0), index.max(0), strict=True))
    ct, labels = ct[box].astype(np.float32), labels[box]
    depth = distance_transform_edt(labels > 0, sampling=spacing)
    found["bone"].append(ct[np.isin(labels, present) & (depth > 1)])
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(ct.shape, spacing, strict=True)], indexing="ij"), -1)
    centres = {}
    for v in present:
        own = np.argwhere(labels == v)
        low, high = own.min(0), own.max(0) + 1
        part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == v
        centres[v] = (np.array(body_centre(part, spacing)) + low) * spacing
    for upper, lower in zip(present[:-1], present[1:], strict=True):
        if lower == upper + 1:
            axis = centres[upper] - centres[lower]
            axis /= np.linalg.norm(axis)
            away = grid - (centres[upper] + centres[lower]) / 2
            along = away @ axis
            radial = np.linalg.norm(away - along[..., None] * axis, axis=-1)
            found["disc"].append(ct[(np.abs(along) < 1.5) & (radial < 9) & (labels == 0)])
    outside = distance_transform_edt(~((labels > 0) | (ct > 200)), sampling=spacing) > 4
    middle = median_filter(ct, size=[max(1, int(round(3 / s))) for s in spacing])
    order = sorted(centres, key=lambda v: centres[v][0])
    height = np.array([centres[v][0] for v in order])
    line = [np.interp(grid[:, 0, 0, 0], height, [centres[v][k] for v in order])[:, None, None] for k in (1, 2)]
    side, behind = np.abs(grid[..., 2] - line[1]), grid[..., 1] - line[0]
    beside = outside & (side > 12) & (side < 40) & (behind > 20) & (behind < 50)
    found["muscle"].append(ct[beside & (middle > 0) & (middle < 110)])
    found["fat"].append(ct[beside & (middle > -150) & (middle < -40)])
    return {t: np.concatenate(v) if v else np.empty(0) for t, v in found.items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance (HU) that carries one distribution into the other (Wasserstein-1)."""
    q = np.linspace(0.005, 0.995, 199)
    return float(np.abs(np.quantile(a, q) - np.quantile(b, q)).mean())


def compare(data: Path, output: Path | None, count: int = 12) -> None:
    from spineclue_v2.imageio.volume import read_labels, read_volume
    from spineclue_v2.phantom import sample

    real, synthetic = {}, {}
    for name, stem in REAL.items():
        path = data / "ct" / "verse" / f"{stem}_ct.nii.gz"
        if path.exists():
            ct = read_volume(path).reoriented("LPS")
            labels = read_labels(data / "ct" / "verse" / f"{stem}_seg-vert_msk.nii.gz").reoriented("LPS")
            real[name] = tissues(ct.array, labels.array, ct.spacing)
    for seed in range(count):
        case = sample(9900 + seed, first="T12", last="L5", spacing=1.2, screws=0, cement=0, variant=None, wide=False, oblique=0)
        synthetic[f"{9900 + seed}"] = tissues(case.ct, case.labels, case.spacing)
    print("\nHU of lumbar tissues: mean, sd and percentiles 5 50 95; distance in HU (Wasserstein-1)")
    for tissue in TISSUES:
        pool = np.concatenate([s[tissue] for s in synthetic.values()])
        print(f"{tissue}:")
        for name, values in [*((n, r[tissue]) for n, r in real.items()), (f"{count} synthetic", pool)]:
            if len(values):
                five = " ".join(f"{v:.0f}" for v in np.percentile(values, (5, 50, 95)))
                print(f"    {name:14s} {values.mean():6.0f} {values.std():5.0f}   {five}")
        every = [r[tissue] for r in real.values() if len(r[tissue]) > 200]
        own = [s[tissue] for s in synthetic.values() if len(s[tissue]) > 200]
        if every and own:
            apart = [distance(a, b) for a in every for b in own]
            among = [distance(a, b) for i, a in enumerate(own) for b in own[:i]]
            between = f"; real to real {distance(*every[:2]):.0f}" if len(every) > 1 else ""
            both = np.concatenate([v[np.linspace(0, len(v) - 1, 5000).astype(int)] for v in every])
            spread = np.concatenate([v[np.linspace(0, len(v) - 1, 5000).astype(int)] for v in own])
            print(f"    distance synthetic to real: pooled {distance(spread, both):.0f}, nearest {min(apart):.0f}, "
                  f"median {np.median(apart):.0f}; synthetic to synthetic {np.median(among):.0f}{between}")
    if output is not None:
        _picture(real, synthetic, Path(output) / "phantom_hu.png")


def _picture(real: dict, synthetic: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    for axis, tissue, (low, high) in zip(axes, TISSUES, ((-200, 1200), (-100, 250), (-80, 180), (-220, 60)), strict=True):
        bins = np.linspace(low, high, 80)
        for values in synthetic.values():
            if len(values[tissue]) > 200:
                axis.hist(values[tissue], bins, density=True, histtype="step", color="0.75", lw=0.7)
        for (name, values), colour in zip(real.items(), ("tab:red", "tab:blue"), strict=False):
            axis.hist(values[tissue], bins, density=True, histtype="step", color=colour, lw=1.5, label=name)
        axis.set_title(f"{tissue} (grey: synthetic)")
        axis.set_xlabel("HU")
        axis.set_yticks([])
    axes[0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    compare(Path(__file__).resolve().parents[1].parent / "shared" / "data", Path("."))
