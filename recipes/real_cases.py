"""Training cases from real scans whose vertebrae were marked by points: masks proposed by the segment network, judged by rules and by eye.

    python -m recipes.real_cases propose DATA WORK --weights WEIGHTS      # a mask per point, and what the rules say of it
    python -m recipes.real_cases show DATA WORK                           # contact sheets WORK/sheets/*.png
    python -m recipes.real_cases write DATA WORK OUT --weights WEIGHTS --corrections corrections.json

`corrections.json`: {"scan name": {"LEVEL": "why its mask is not trusted"}}; a level written "+LEVEL" is trusted although a rule says no.
Of a vertebra without a trusted mask, localize learns the place (a neighbour's mask moved there), segment leaves the place out.
"""
from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import AROUND_MM, IGNORE, shipped_plans, write_case

# From the middle of a body to the middle of its vertebra's bounding box, (z, y) mm; of C1 from the front arch.
OFFSETS = {"C1": (0, 18), "C2": (5, 17), "C3": (3, 12), "C4": (3, 13), "C5": (4, 13), "C6": (5, 13), "C7": (6, 17), "T1": (5, 21),
           "T2": (5, 21),
           "T3": (4, 21), "T4": (3, 19), "T5": (2, 19), "T6": (-2, 16), "T7": (-2, 16), "T8": (-4, 16), "T9": (-3, 17), "T10": (-1, 18),
           "T11": (-2, 18), "T12": (-3, 18), "L1": (-6, 21), "L2": (-5, 23), "L3": (-2, 25), "L4": (3, 24), "L5": (5, 20)}
VOLUME_ML = {"C1": 10, "C2": 14, "C3": 8, "C4": 8, "C5": 8.5, "C6": 9, "C7": 11, "T1": 15, "T2": 15, "T3": 16, "T4": 17, "T5": 19, "T6": 21,
             "T7": 23, "T8": 26, "T9": 28, "T10": 31, "T11": 35, "T12": 40, "L1": 48, "L2": 53, "L3": 58, "L4": 61, "L5": 63}
VOLUME_RANGE = (0.45, 2.2)      # of the usual volume of the level
NEAR_MM = {"C1": 8.0}           # a point lies in its mask or this near it; points are good to 3-5 mm
NEAR = 4.0
SHARED = 0.15                   # Dice that the masks of two neighbours may have before each voxel gets one owner
OWNED = 0.85                    # of a mask that is left once each voxel has one owner
CONNECTED = 0.9
GUESSED_LEVELS = ("T7", "T8", "T9", "T10")   # stand in for levels that cannot be told

ARCH_MM, DENS_HALF_MM, BLOB_MM = 7.5, 7.0, 22.0   # front arch of C1 from front to back; half the dens; both with the gap between

TOTALSEGMENTATOR = {27: 24, 28: 23, 29: 22, 30: 21, 31: 20, 32: 19, 33: 18}
REFERENCES: dict[str, tuple[str, dict[int, int] | None]] = {   # scan -> reference masks, their values as VerSe's
    "ct/verse/sub-verse005_ct.nii.gz": ("ct/verse/sub-verse005_seg-vert_msk.nii.gz", None),
    "ct/verse/sub-verse008_ct.nii.gz": ("ct/verse/sub-verse008_seg-vert_msk.nii.gz", None),
    "ct/tptbox/sub-ct_label-22_ct.nii.gz": ("ct/tptbox/sub-ct_seg-vert_label-22_msk.nii.gz", None),
    "ct/totalsegmentator/example_ct.nii.gz": ("ct/totalsegmentator/example_ct_lumbar_ref.nii.gz", TOTALSEGMENTATOR)}
NEGATIVE = ("ct/negative/STS_010_CT_image.nii.gz", "ct/negative/STS_019_CT_image.nii.gz")
SAME_POINTS = {"ct/by_eye/taichi_lumbar_cor.nii.gz": "ct/by_eye/taichi_lumbar_sag.nii.gz"}


@dataclass(frozen=True)
class Point:
    level: str
    place: np.ndarray   # LPS mm (x, y, z)


def scan_name(scan: str) -> str:
    """A short name without folders and endings."""
    return Path(scan).name.removesuffix(".nii.gz")


def read_points(data: Path) -> dict[str, list[Point]]:
    """scan (path below the data folder) -> points of C1..L5 in cranio-caudal order; levels that cannot be told get stand-ins."""
    found = {}
    for scan, entry in json.loads((data / "ct/points_by_eye.json").read_text()).items():
        rows = [(level or GUESSED_LEVELS[number], place) for number, (level, place) in enumerate(entry["points"])]
        found[f"ct/{scan}"] = [Point(level, np.array(place, float)) for level, place in rows if level in OFFSETS]
    return found | {scan: found[other] for scan, other in SAME_POINTS.items() if other in found}


def read_reference(data: Path, scan: str) -> Any:
    """Reference masks of a scan as a Volume of VerSe values, LPS; None where there are none."""
    from spineclue_v2.imageio.volume import Volume, read_labels

    if scan not in REFERENCES:
        return None
    path, values = REFERENCES[scan]
    labels = read_labels(data / path).reoriented("LPS")
    if values is None:
        return labels
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    return Volume(table[labels.array], labels.geometry)


def load_segment(weights: Path, plan: Any) -> Any:
    """The segment network of STAGE.pth files, ready to predict."""
    import torch

    from spineclue_v2.stages.segment.network import build_network
    from spineclue_v2.training.checkpoint import Checkpoint, load_weights

    network = build_network(plan.network, len(plan.data.windows_hu))
    load_weights(network, Checkpoint.load(weights / "segment.pth", torch.device("cpu")), weights / "segment.pth")
    return network.eval()


def masks_at(points: list[Point], volume: Any, network: Any, plan: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Foreground probability of each point's crop (z, y, x) and where the crops start (n, 3). `volume`: network space of segment."""
    import torch

    from spineclue_v2.anatomy.vertebra import Vertebra
    from spineclue_v2.stages.segment import predictor

    located = []
    for point in points:
        up, back = OFFSETS[point.level]
        place = point.place + volume.geometry.direction @ np.array([0.0, back, up])
        located.append(Vertebra(tuple(map(float, place)), (0.0, 0.0, 0.0), 1.0))
    return predictor._crops(volume, located, [network], plan, torch.device("cpu"), False)


def judged(points: list[Point], volume: Any, crops: list[np.ndarray], starts: np.ndarray, spacing: float) -> tuple[Any, dict[str, Any]]:
    """Label map (uint8, VerSe values) of all proposed masks, and per level its measures and the rules that it breaks (`faults`)."""
    from scipy.ndimage import distance_transform_edt

    from spineclue_v2.anatomy import LABEL_OF_NAME
    from spineclue_v2.anatomy.morphology import fill_holes, largest_component
    from spineclue_v2.stages.segment import predictor

    shared = predictor._shared_voxels(crops, starts)
    whole = shared.diagonal()
    dice = 2 * shared / np.maximum(1, whole[:, None] + whole[None]) - np.eye(len(points))
    owned = predictor.resolve_ownership(crops, starts)
    indices = np.round(volume.geometry.world_to_index(np.array([p.place for p in points]))).astype(int)
    shape = np.array(volume.array.shape)
    labels, report = np.zeros(volume.array.shape, np.uint8), {}
    for i, (point, mask, start) in enumerate(zip(points, owned, starts, strict=True)):
        low, high = np.maximum(start, 0), np.minimum(start + np.array(mask.shape), shape)
        inner = tuple(slice(int(a - s), int(b - s)) for a, b, s in zip(low, high, start, strict=True))
        raw = mask[inner]
        body = fill_holes(largest_component(raw)) if raw.any() else raw
        away = distance_transform_edt(~body) * spacing if body.any() else np.full(body.shape, 99.0)

        def at(index: np.ndarray, away: np.ndarray = away, low: np.ndarray = low) -> float:
            local = index - low
            return float(away[tuple(local)]) if ((local >= 0) & (local < away.shape)).all() else 99.0

        volume_ml = float(body.sum()) * spacing ** 3 / 1000
        own, others = at(indices[i]), [points[j].level for j in range(len(points)) if j != i and at(indices[j]) <= 0]
        border = bool(body.any() and ((np.argwhere(body).min(0) + low == 0) | (np.argwhere(body).max(0) + low == shape - 1)).any())
        row = {"volume_ml": round(volume_ml, 1), "point_mm": round(own, 1), "others": others,
               "dice": round(float(dice[i].max(initial=0)), 2),
               "owned": round(float(mask.sum() / max(1, whole[i])), 2), "connected": round(float(body.sum() / max(1, raw.sum())), 2),
               "border": border}
        row["faults"] = faults(point.level, row)
        report[point.level] = row
        target = labels[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
        target[body] = LABEL_OF_NAME[point.level]
    return labels, report


def faults(level: str, row: dict[str, Any]) -> list[str]:
    """The rules that a proposed mask breaks, in words."""
    share = row["volume_ml"] / VOLUME_ML[level]
    least = VOLUME_RANGE[0] / 2 if row["border"] else VOLUME_RANGE[0]
    told = {"its point lies outside": row["point_mm"] > NEAR_MM.get(level, NEAR), "holds another point": bool(row["others"]),
            f"volume {share:.2f} of the usual": not least <= share <= VOLUME_RANGE[1],
            f"overlaps a neighbour, Dice {row['dice']:.2f}": row["dice"] > SHARED,
            f"owns {row['owned']:.2f} of itself": row["owned"] < OWNED,
            f"in pieces, {row['connected']:.2f} in one": row["connected"] < CONNECTED}
    return [words for words, true in told.items() if true]


def propose(data: Path, work: Path, weights: Path) -> None:
    """WORK/proposed/NAME.npz (label map on segment's network space) and NAME.json (what the rules say) for every scan with points."""
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.preprocessing.resampling import to_network_space

    plan = shipped_plans(weights)["segment"]
    network = load_segment(weights, plan)
    (work / "proposed").mkdir(parents=True, exist_ok=True)
    for scan, points in read_points(data).items():
        target = work / "proposed" / f"{scan_name(scan)}.npz"
        if scan in REFERENCES or not points or target.with_suffix(".json").exists():
            continue
        volume = to_network_space(read_volume(data / scan), plan.data)
        crops, starts = masks_at(points, volume, network, plan)
        labels, report = judged(points, volume, crops, starts, plan.data.spacing_mm)
        np.savez_compressed(target, labels=labels)
        target.with_suffix(".json").write_text(json.dumps(report, indent=1))
        bad = {level: row["faults"] for level, row in report.items() if row["faults"]}
        print(scan, len(points), "points,", len(bad), "doubtful", bad, flush=True)


def show(data: Path, work: Path, weights: Path, per_sheet: int = 8) -> None:
    """Contact sheets: per scan a sagittal and a coronal picture along the row of points, masks outlined, doubtful ones dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [(scan, points) for scan, points in read_points(data).items() if (work / "proposed" / f"{scan_name(scan)}.json").exists()]
    (work / "sheets").mkdir(exist_ok=True)
    for number in range(0, len(names), per_sheet):
        part = names[number:number + per_sheet]
        if (work / "sheets" / f"sheet_{number // per_sheet:02d}.png").exists() and len(part) == per_sheet:
            continue
        figure, axes = plt.subplots(2, per_sheet, figsize=(3.0 * per_sheet, 10.5), squeeze=False)
        for column, (scan, points) in enumerate(part):
            draw(axes[:, column], data, work, weights, scan, points)
        for axis in axes.ravel():
            axis.axis("off")
        figure.subplots_adjust(0, 0, 1, 0.97, 0.02, 0.05)
        figure.savefig(work / "sheets" / f"sheet_{number // per_sheet:02d}.png", dpi=75)
        plt.close(figure)


def draw(axes: Any, data: Path, work: Path, weights: Path, scan: str, points: list[Point]) -> None:
    """The two pictures of one scan."""
    from spineclue_v2.anatomy import LABEL_OF_NAME
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.preprocessing.resampling import to_network_space

    volume = to_network_space(read_volume(data / scan), shipped_plans(weights)["segment"].data)
    labels = np.load(work / "proposed" / f"{scan_name(scan)}.npz")["labels"]
    report = json.loads((work / "proposed" / f"{scan_name(scan)}.json").read_text())
    index = volume.geometry.world_to_index(np.array([p.place for p in points]))
    order = np.argsort(index[:, 0])
    rows = np.arange(max(0, int(index[:, 0].min()) - 25), min(volume.array.shape[0], int(index[:, 0].max()) + 25))
    for axis, plane in zip(axes, (2, 1), strict=True):
        at = np.clip(np.round(np.interp(rows, index[order, 0], index[order, plane])).astype(int), 0, volume.array.shape[plane] - 1)
        cut, marks = ((a[rows, :, at] if plane == 2 else a[rows, at, :])[::-1] for a in (volume.array, labels))
        other = 1 if plane == 2 else 2
        low, high = max(0, int(index[:, other].min()) - (25 if plane == 2 else 40)), int(index[:, other].max()) + (55 if plane == 2 else 40)
        cut, marks = cut[:, low:high], marks[:, low:high]
        axis.imshow(cut, cmap="gray", vmin=-200, vmax=700, aspect="equal")
        for k, point in enumerate(points):
            mask = marks == LABEL_OF_NAME[point.level]
            colour, doubt = ("tab:red", "tab:cyan", "tab:green", "tab:orange")[k % 4], bool(report[point.level]["faults"])
            if mask.any():
                axis.contour(mask, [0.5], colors=[colour], linewidths=2.0 if doubt else 1.0, linestyles="dotted" if doubt else "solid")
            x, y = index[k, other] - low, rows[-1] - index[k, 0]
            axis.plot(x, y, "+", color=colour, markersize=6)
            axis.text(1, y, point.level + ("?" if doubt else ""), color=colour, fontsize=9)
    axes[0].set_title(scan_name(scan)[:24], fontsize=9)


def write(data: Path, work: Path, out: Path, weights: Path, corrections: dict[str, dict[str, str]]) -> dict[str, dict[str, int]]:
    """Training cases real_NAME in OUT/localize and OUT/segment; returns how many vertebrae of each scan have a trusted mask."""
    from spineclue_v2.imageio.volume import Volume, read_volume
    from spineclue_v2.preprocessing.resampling import labels_to_network_space, to_network_space

    plans, counts = shipped_plans(weights), {}
    points = read_points(data)
    for scan in [*dict.fromkeys([*points, *REFERENCES, *NEGATIVE])]:
        name, image = scan_name(scan), read_volume(data / scan)
        if name in ("STS_002_CT_image",):
            continue   # arches of L4 and L5 in view, their bodies not
        fine = to_network_space(image, plans["segment"].data)
        reference = read_reference(data, scan)
        if scan in NEGATIVE:
            whole = weight_by_region = np.zeros(fine.array.shape, np.uint8)
        elif reference is not None:
            whole = weight_by_region = labels_to_network_space(reference, fine.geometry, None).array
        else:
            proposed = np.load(work / "proposed" / f"{name}.npz")["labels"]
            report = json.loads((work / "proposed" / f"{name}.json").read_text())
            good = trusted_levels(report, corrections.get(name, {}))
            whole, weight_by_region = completed(proposed, points[scan], good, fine.geometry)
            if {"C1", "C2"} <= set(good):
                weight_by_region = with_dens(weight_by_region, points[scan], fine.geometry)
                whole = np.where(np.isin(weight_by_region, (0, IGNORE)), whole, weight_by_region).astype(np.uint8)
            counts[name] = {"points": len(points[scan]), "trusted": len(good)}
        write_case(out / "localize", f"real_{name}", image, Volume(whole, fine.geometry), plans["localize"].data)
        if weight_by_region.any():
            write_case(out / "segment", f"real_{name}", fine, Volume(weight_by_region, fine.geometry), plans["segment"].data, AROUND_MM)
    return counts


def trusted_levels(report: dict[str, Any], corrections: dict[str, str]) -> list[str]:
    """Levels whose proposed mask is learnt from: no rule broken, or trusted by eye; and not rejected by eye."""
    return [level for level, row in report.items() if level not in corrections and (not row["faults"] or f"+{level}" in corrections)]


def completed(proposed: np.ndarray, points: list[Point], good: list[str], geometry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Label maps for localize (every point has a mask, the untrusted a neighbour's moved to their point) and for segment (`IGNORE`
    there)."""
    from spineclue_v2.anatomy import LABEL_OF_NAME

    value = {p.level: LABEL_OF_NAME[p.level] for p in points}
    whole = np.where(np.isin(proposed, [value[level] for level in good]), proposed, 0).astype(np.uint8)
    weight_by_region = whole.copy()
    index = {p.level: np.round(geometry.world_to_index(p.place[None])[0]).astype(int) for p in points}
    usual = [p.level for p in points]
    shape = np.array(whole.shape)
    for point in points:
        if point.level in good:
            continue
        weight_by_region[(proposed == value[point.level]) & (whole == 0)] = IGNORE
        near = sorted((level for level in good if level not in ("C1", "C2")), key=lambda o: abs(usual.index(o) - usual.index(point.level)))
        if not near:
            continue
        moved = np.argwhere(whole == value[near[0]]) + index[point.level] - index[near[0]]
        moved = moved[((moved >= 0) & (moved < shape)).all(1)]
        free = moved[whole[tuple(moved.T)] == 0]
        whole[tuple(free.T)] = value[point.level]
        weight_by_region[tuple(free[weight_by_region[tuple(free.T)] == 0].T)] = IGNORE
    return whole, weight_by_region


def with_dens(labels: np.ndarray, points: list[Point], geometry: Any) -> np.ndarray:
    """The label map with the dens given from C1 to C2: in coarse scans the network takes both for one bright blob.

    In the midline what lies behind the front arch (`ARCH_MM` from the blob's front) and is connected with C2 is dens. The voxels where
    the two meet are `IGNORE`.
    """
    from scipy.ndimage import binary_dilation

    from spineclue_v2.anatomy import LABEL_OF_NAME
    from spineclue_v2.anatomy.morphology import largest_component

    places = {p.level: geometry.world_to_index(p.place[None])[0] for p in points}
    atlas, axis = LABEL_OF_NAME["C1"], LABEL_OF_NAME["C2"]
    if not {"C1", "C2"} <= set(places) or not (labels == atlas).any() or not (labels == axis).any():
        return labels
    spacing = geometry.spacing[0]
    first, middle = labels == atlas, (places["C1"][2] + places["C2"][2]) / 2
    dens = np.zeros(labels.shape, bool)
    for z, x in np.argwhere(first.any(1)):
        if abs(x - middle) * spacing > DENS_HALF_MM:
            continue
        column = np.flatnonzero(first[z, :, x])
        column = column[column - column[0] < BLOB_MM / spacing]   # behind it lies the canal, then the rear arch
        if (column[-1] - column[0] + 1) * spacing >= ARCH_MM + 3:
            dens[z, column[column - column[0] >= ARCH_MM / spacing], x] = True
    second = largest_component(dens | (labels == axis))
    dens &= second
    result = labels.copy()
    result[dens] = axis
    border = binary_dilation(result == axis) & (result == atlas) & binary_dilation(dens, iterations=2)
    result[border] = IGNORE
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("propose", "show", "write"))
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--corrections", type=Path)
    args = parser.parse_args()
    if args.step == "propose":
        propose(args.data, args.work, args.weights)
    elif args.step == "show":
        show(args.data, args.work, args.weights)
    else:
        read = json.loads(args.corrections.read_text()) if args.corrections else {}
        counts = write(args.data, args.work, args.out, args.weights, read)
        print(json.dumps(counts), sum(c["trusted"] for c in counts.values()), "of", sum(c["points"] for c in counts.values()))


if __name__ == "__main__":
    main()
