"""Draws documentation/pictures/phantom_gallery.png: `python -m benchmarks.phantom_gallery [-o FILE] [--only NAME ...]`."""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import NAME_OF_LABEL, colour
from spineclue_v2.phantom import parse_pathology, sample

PANELS = {  # title: (seed, pathology as on the command line, further switches, view)
    "normal": (9910, "", {"first": "T10", "last": "L5"}, "sagittal"),
    "scoliosis 50": (9911, "scoliosis=50", {"first": "T5", "last": "L5"}, "coronal"),
    "screws and streaks": (9915, "screws=3,noise=15", {"first": "L1", "last": "L4"}, "axial screw"),
    "cement": (9913, "cement=2,old=80", {"first": "T11", "last": "L4"}, "sagittal"),
    "fracture L1 grade 3": (9914, "fracture=L1:3:wedge", {"first": "T11", "last": "L4"}, "sagittal"),
    "DISH": (9915, "dish=1", {"first": "T6", "last": "T12"}, "sagittal right"),
    "slices of 5 mm": (9916, "thick=5", {"first": "T9", "last": "L5"}, "sagittal"),
    "C1": (9917, "", {"first": "C1", "last": "C4"}, "axial C1"),
    "neck": (9917, "", {"first": "C1", "last": "T2"}, "sagittal"),
    "T13": (9918, "T13", {"first": "T11", "last": "L2"}, "coronal"),
    "L6": (9919, "L6", {"first": "L3", "last": "L6"}, "sagittal"),
    "shoulder streaks": (9920, "streaks=1.5", {"first": "C5", "last": "T4"}, "coronal"),
    "tight crop": (9921, "tight", {"spacing": None}, "sagittal"),
    "turned by 15 degrees": (9922, "oblique=15", {"first": "T11", "last": "L4"}, "coronal"),
    "randomised": (9923, "randomise", {"first": "L1", "last": "L4"}, "sagittal"),
    "no spine": (9924, "negative", {"spacing": 1.5}, "coronal"),
}
QUIET = {"spacing": 1.0, "wide": False, "variant": None, "fractures": {}, "screws": 0, "cement": 0, "oblique": 0, "streaks": 0, "dish": 0,
         "cobb": 4.0, "contrast": 80}


def panel(title: str):
    """(HU image, label image, aspect) of a panel; rows in cranio-caudal order or from front to back."""
    seed, pathology, more, view = PANELS[title]
    what = {**QUIET, **more, **parse_pathology(pathology)}
    if title == "tight crop":
        what.pop("spacing")
    if "thick" in what:
        what["spacing"] = None
    case = sample(seed, **what)
    ct, labels = case.ct, case.labels
    dz, dy, dx = case.spacing
    own = np.argwhere(labels > 0) if labels.any() else np.array([[n // 2 for n in ct.shape]])
    middle = own.mean(0).round().astype(int)
    name, _, which = view.partition(" ")
    if name == "axial":
        z = int(np.argmax((ct > 2800).sum((1, 2)))) if which == "screw" else int(round(case.centroids[which]["body"][2] / dz))
        return ct[z], labels[z], dy / dx
    bodies = np.array([c["body"] for c in case.centroids.values()]) if case.centroids else None
    if name == "sagittal":
        x = int(round(np.median(bodies[:, 0]) / dx)) - (8 if which == "right" else 0)
        return ct[::-1, :, x], labels[::-1, :, x], dz / dy
    y = int(round(np.median(bodies[:, 1]) / dy)) if bodies is not None else middle[1]
    if name == "coronal" and bodies is not None:  # follow the bodies, so that all of them show
        z = np.arange(ct.shape[0])
        order = np.argsort(bodies[:, 2])
        rows = np.rint(np.interp(z * dz, bodies[order, 2], bodies[order, 1]) / dy).astype(int).clip(0, ct.shape[1] - 1)
        return ct[z, rows][::-1], labels[z, rows][::-1], dz / dx
    return ct[::-1, y], labels[::-1, y], dz / dx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, default=Path(__file__).parents[1] / "documentation" / "pictures" / "phantom_gallery.png")
    parser.add_argument("--only", nargs="+", default=list(PANELS), choices=list(PANELS))
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(8, len(args.only))
    rows = -(-len(args.only) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 3.0 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, title in zip(axes.flat, args.only, strict=False):
        ct, labels, aspect = panel(title)
        grey = np.clip((ct.astype(float) + 250) / 1250, 0, 1)[..., None].repeat(3, 2)
        for value in set(np.unique(labels)) - {0}:
            inside = labels == value
            grey[inside] = 0.72 * grey[inside] + 0.28 * np.array(colour(NAME_OF_LABEL[int(value)])) / 255
        axis.imshow(grey, aspect=aspect, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        for value in set(np.unique(labels)) - {0}:
            y, x = np.argwhere(labels == value).mean(0)
            if (labels == value).sum() > 40:
                axis.text(x, y, NAME_OF_LABEL[int(value)], fontsize=5, color="white", ha="center", va="center")
    figure.tight_layout(pad=0.4)
    args.o.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.o, dpi=100)


if __name__ == "__main__":
    main()
