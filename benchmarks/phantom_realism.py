"""Is the synthetic spine like real ones? `python -m benchmarks.phantom_realism [--data ../shared/data] [--parts shapes hu ...]`.

Draws 60 subjects and holds volumes, sizes, spacing, fields of view, overlaps and HU against the tables that the phantom was built from
and against real masks and CTs, where they are at hand. Shapes need no CT: about three minutes of one core; `hu` paints twelve CTs.
"""
from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.rigid_overlap import Solid, mean_lumbar, real_masks, rigid_dice, solid
from spineclue_v2.anatomy import LEVELS
from spineclue_v2.phantom import sampling, shapes, spine, tables
from spineclue_v2.phantom.canvas import Canvas
from spineclue_v2.phantom.fields import distance_fields

STEP = 1.5
ADULT = 1 / 0.95**3
"""Volume of the mean adult per volume of the mean woman (lengths of women are 0.907 of those of men)."""
WOMEN = {"C3": 8.3, "C4": 8.7, "C5": 9.0, "C6": 9.4, "C7": 11.3}
VOLUMES = {level: v * ADULT for level, v in WOMEN.items()} | {
    "T2": 16.8, "T3": 18.6, "T4": 18.4, "T5": 20.8, "T6": 24.0, "T7": 26.7, "T8": 27.7, "T9": 30.2, "T10": 33.3, "T11": 36.2, "T12": 40.5,
    "L2": 55.4, "L3": 60.5, "L4": 61.5, "L5": 60.3}
"""cm3: C3-C7 mean of 38 women, brought to the mean adult; T2-T8 a stylised thorax; T9-T12 that and one VerSe mask; L2-L5 the mean of
87 patients and that mask."""
SIZES = {  # quantity: (parameter, factor, levels' coefficient of variation in the morphometry table: neck, chest, lumbar spine)
    "body width": ("wm", 1, (0.081, 0.080, 0.081)), "body depth": ("dm", 1, (0.079, 0.080, 0.080)),
    "front height": ("ha", 1, (0.074, 0.075, 0.075)), "back height": ("hp", 1, (0.075, 0.075, 0.075)),
    "canal width": ("cw", 1, (0.091, 0.090, 0.089)), "canal depth": ("cd", 1, (0.110, 0.110, 0.110)),
    "pedicle width": ("pw", 1, (0.183, 0.182, 0.183)), "transverse span": ("tx", 2, (0.074, 0.075, 0.075)),
    "spinous length": ("sl", 1, (0.102, 0.101, 0.101))}
REGIONS = {"C": LEVELS[2:7], "T": LEVELS[7:19], "L": LEVELS[19:]}
SPACING = {  # mean, sd mm of the distance of whole-mask centroids to the next level below, VerSe training scans
    "C1": (17.10, 2.07), "C2": (18.45, 1.59), "C3": (15.87, 2.00), "C4": (16.06, 1.85), "C5": (16.10, 1.51), "C6": (17.72, 1.61),
    "C7": (18.78, 1.22), "T1": (20.90, 1.71), "T2": (22.23, 1.52), "T3": (22.31, 1.48), "T4": (22.82, 1.41), "T5": (23.47, 1.47),
    "T6": (24.04, 1.56), "T7": (24.33, 1.50), "T8": (24.86, 1.51), "T9": (25.68, 1.59), "T10": (27.59, 1.77), "T11": (29.83, 1.86),
    "T12": (32.00, 2.36), "L1": (33.39, 2.38), "L2": (34.14, 2.46), "L3": (33.82, 2.66), "L4": (31.66, 2.69)}
NEIGHBOURS = ("C3", "C4", "C5", "T7", "T9", "L2", "L3")
"""Upper levels of the neighbouring pairs whose overlap was measured on real spines (0.81-0.91)."""
FRACTURED = {("verse004", "L1"), ("verse008", "L2")}


def subject_solids(seed: int, keep_field: bool = True) -> tuple[spine.Subject, dict[str, Solid]]:
    """A default subject without fractures, and its whole spine as signed distances at STEP mm, joint spaces cut."""
    subject = spine.draw_subject(np.random.default_rng([77, seed]), None, None, {}, float(np.random.default_rng(seed).uniform() ** 2))
    centres = np.array([v.centre for v in subject.placed])
    low, high = centres.min(0) - 75, centres.max(0) + 75
    for v in subject.placed:
        v.centre = v.centre - low
    shape = tuple(int(n) for n in np.ceil((high - low)[::-1] / STEP))
    canvas = Canvas(shape, (STEP,) * 3, (0.0,) * 3, 0.5, torch.Generator().manual_seed(seed))
    solids = {}
    for v, box, field in distance_fields(canvas, subject, canvas.generator):
        corner = np.array([s.start for s in box])[::-1] * STEP
        whole = solid(v.name, field.clamp(-8, 8), STEP, v.rotation, v.centre - corner)
        solids[v.name] = whole if keep_field else replace(whole, points=whole.centroid[None], field=field[:0])
    return subject, solids


def verdict(ok: bool) -> str:
    return "ok" if ok else "FAILS"


def volumes(spines: list[dict[str, Solid]], real: dict[str, dict[str, Solid]]) -> None:
    print("\nVolumes, cm3 (limit 10 % of the table)\nlevel   ours  (sd)  table    off   women  real masks")
    for level in LEVELS:
        own = np.array([s[level].volume for s in spines])
        seen = " ".join(f"{m[level].volume:.1f}" for c, m in real.items() if level in m and (c, level) not in FRACTURED)
        table = VOLUMES.get(level)
        off = f"{table:6.1f} {own.mean() / table - 1:+6.1%}" if table else "     -      -"
        women = f"{own.mean() / WOMEN[level] - 1:+6.1%}" if level in WOMEN else "     -"
        mark = verdict(abs(own.mean() / table - 1) <= 0.1) if table else ""
        print(f"{level:5s} {own.mean():6.1f} ({own.std(ddof=1):4.1f}) {off}  {women}  {seen or '-':22s} {mark}")


def sizes(count: int) -> None:
    print(f"\nSpread of sizes over {count} subjects, ratio of coefficients of variation to the table's (limit 0.85..1.15)")
    rng = np.random.default_rng(5)
    drawn = [spine.draw_subject(rng, None, None, {}, 0.0) for _ in range(count)]
    for name, (key, factor, table) in SIZES.items():
        row = []
        for levels, expected in zip(REGIONS.values(), table, strict=True):
            values = np.array([[s.find(n).params[key] * s.scale * factor for n in levels] for s in drawn])
            row.append(float(np.sqrt((values.std(0, ddof=1) ** 2 / values.mean(0) ** 2).mean())) / expected)
        print(f"{name:16s} " + "  ".join(f"{r} {v:.2f}" for r, v in zip(REGIONS, row, strict=True)),
              verdict(all(0.85 <= v <= 1.15 for v in row)))


def spacing(subjects: list[spine.Subject], spines: list[dict[str, Solid]]) -> None:
    print("\nSpacing of whole-mask centroids, mm (limits: mean 5 %; SD ratio 0.85..1.15 per region)")
    print("pair    ours  (sd)   table (sd)   ratio of sd")
    ratios = {}
    for upper, lower in itertools.pairwise(LEVELS):
        gaps = []
        for subject, own in zip(subjects, spines, strict=True):
            a, b = (subject.find(n).centre + subject.find(n).rotation @ own[n].centroid.numpy() for n in (upper, lower))
            gaps.append(np.linalg.norm(a - b))
        mean, sd = np.mean(gaps), np.std(gaps, ddof=1)
        table = SPACING[upper]
        ratios.setdefault("C1" if upper == "C1" else upper[0], []).append(sd / table[1])
        print(f"{upper + '-' + lower:8s}{mean:5.1f} ({sd:4.2f})  {table[0]:5.1f} ({table[1]:4.2f})  {sd / table[1]:.2f}  "
              f"{'' if abs(mean / table[0] - 1) <= 0.05 else f'mean off {mean / table[0] - 1:+.0%}'}")
    for region, values in ratios.items():
        ratio = float(np.sqrt(np.mean(np.square(values))))
        print(f"    {region}: ratio of SDs {ratio:.2f} {verdict(0.85 <= ratio <= 1.15)}")


def fields_of_view(count: int) -> None:
    drawn: dict[tuple[str, str], float] = {}
    for seed in range(count):
        first, last, _ = sampling._levels(np.random.default_rng([3, seed]), dict(sampling.DEFAULTS))
        drawn[first, last] = drawn.get((first, last), 0) + 1 / count
    total = sum(row[2] for row in tables.FOV)
    table = {(a, b): n / total for a, b, n in tables.FOV}
    distance = 0.5 * sum(abs(drawn.get(k, 0) - table.get(k, 0)) for k in drawn.keys() | table.keys())
    print(f"\nFields of view: total variation distance of {count} drawn ones to the table of 167 scans {distance:.3f}")


def overlaps(spines: list[dict[str, Solid]], real: dict[str, dict[str, Solid]], pairs: int) -> None:
    print(f"\nDice after rigid alignment, {pairs} pairs (limits: neighbours of one spine 0.81-0.91, one level of two people 0.74-0.87)")
    print("level   with next (sd)   real              two subjects (sd)   real")
    for i, level in enumerate(LEVELS):
        below = LEVELS[i + 1] if i + 1 < len(LEVELS) else None
        next_real = [rigid_dice(m[level], m[below]) for c, m in real.items() if below and level in m and below in m
                     and not {(c, level), (c, below)} & FRACTURED]
        pair_real = [rigid_dice(real[a][level], real[b][level], (-15, 0, 15)) for a, b in itertools.combinations(real, 2)
                     if level in real[a] and level in real[b] and not {(a, level), (b, level)} & FRACTURED]
        same = [rigid_dice(spines[k][level], spines[(k + 1) % len(spines)][level]) for k in range(pairs)]
        neighbour = [rigid_dice(spines[k][level], spines[k][below]) for k in range(pairs)] if below else [np.nan]
        marks = [verdict(0.81 <= np.mean(neighbour) <= 0.91) if level in NEIGHBOURS else "", verdict(0.74 <= np.mean(same) <= 0.87)]
        print(f"{level:5s}  {np.mean(neighbour):.3f} ({np.std(neighbour):.3f}) {marks[0]:6s} {_list(next_real):18s} "
              f"{np.mean(same):.3f} ({np.std(same):.3f}) {marks[1]:6s} {_list(pair_real)}", flush=True)


def _list(values: list[float]) -> str:
    return " ".join(f"{v:.2f}" for v in values) or "-"


def mean_shape(level: str) -> Solid:
    """The level's mean parameters on a grid of 1 mm, both halves."""
    p = shapes.template(level)
    q, _ = shapes.local_points(level, p)
    half = shapes.half_distance(level, p, q)
    return solid(level, torch.cat([half.flip(2)[..., :-1], half], 2), shapes.STEP)


def against_real(real: dict[str, dict[str, Solid]], mesh: dict[str, Solid]) -> None:
    print("\nDice of mean shapes to real ones, rigid (limits: lumbar 0.82, T9-T12 0.78, fractures aside); grown: by one factor per scan")
    means: dict[str, list[tuple[float, float]]] = {}
    for case, found in {**real, "mean of 87": mesh}.items():
        whole = [n for n in found if (case, n) not in FRACTURED]
        factor = float(np.mean([(found[n].volume / mean_shape(n).volume) ** (1 / 3) for n in whole]))
        for level in found:
            plain, grown = (rigid_dice(mean_shape(level), found[level], (-25, 0, 25), f) for f in (1.0, factor))
            mark = "fracture" if level not in whole else verdict(plain >= (0.82 if level[0] == "L" else 0.78))
            if level in whole:
                means.setdefault("lumbar" if level[0] == "L" else "T9-T12", []).append((plain, grown))
            print(f"{case:12s} {level:4s} {plain:.3f}  x{factor:.2f}: {grown:.3f}  volume {mean_shape(level).volume:.1f} / "
                  f"{found[level].volume:.1f}  {mark}", flush=True)
    for region, values in means.items():
        plain, grown = np.mean(values, 0)
        print(f"mean of {len(values)} {region}: {plain:.3f}, grown {grown:.3f} {verdict(plain >= (0.82 if region == 'lumbar' else 0.78))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1].parent / "shared" / "data")
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=["shapes", "overlap", "real", "hu"], choices=["shapes", "overlap", "real", "hu"])
    parser.add_argument("-o", type=Path, default=None, help="folder for the histogram picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    real = real_masks(args.data / "ct" / "verse") if (args.data / "ct" / "verse").is_dir() else {}
    if {"shapes", "overlap"} & set(args.parts):
        drawn = [subject_solids(seed, keep_field=seed <= args.pairs) for seed in range(args.subjects)]
        spines = [s for _, s in drawn]
        if "shapes" in args.parts:
            volumes(spines, real)
            sizes(600)
            spacing([s for s, _ in drawn], spines)
            fields_of_view(3000)
        if "overlap" in args.parts:
            overlaps(spines, real, args.pairs)
    if "real" in args.parts and real:
        against_real(real, mean_lumbar(args.data / "meshes" / "morphable_lumbar"))
    if "hu" in args.parts:
        from benchmarks.phantom_histograms import compare

        compare(args.data, args.o)


if __name__ == "__main__":
    main()
