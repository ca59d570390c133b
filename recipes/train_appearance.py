"""The appearance network from real scans and phantoms: `python -m recipes.train_appearance WORK --pool`, then
`python -m recipes.train_appearance WORK --start START/appearance.pth --final`.

WORK/real and WORK/phantoms hold coarse scans (`evidence_data`, `evidence_phantoms`). `--pool` makes augmented crops once, for all folds
(uint8, WORK/pool). Then each fold starts from a network that saw phantoms only (`train_identify`) and leaves out the crops of its patients.
Its temperature is fitted on their rows. Both are resumable.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recipes.evidence_data import Scan, load_scan
from recipes.evidence_networks import APPEARANCE, load_appearance, save_appearance, start_appearance
from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX, ORDER_INDEX
from spineclue_v2.stages.appearance.data import NOT_A_VERTEBRA, SACRUM, SKULL, augment, cut_crops
from spineclue_v2.stages.appearance.network import AppearanceNetwork

BATCH = 32
RATE = 1e-3
NONE_FRACTION = 0.14         # of a batch: sacrum, skull base, off the spine, between two bodies
NONE_KINDS = {"sacrum": 0.45, "skull": 0.2, "off": 0.25, "between": 0.1}
FEW_PATIENTS = 4             # a level that n patients show is drawn from them with n / (n + 4), else from phantoms
JITTER_MM = 6.0
OFF_MM = 32.0


class Rows:
    """What a batch is drawn from: per class and kind (real, phantom) patient -> [(scan, place)]."""

    def __init__(self, scans: list[Scan]):
        self.scans = scans
        self.table: dict[tuple[int, bool], dict[str, list[tuple[int, np.ndarray]]]] = {}
        for number, scan in enumerate(scans):
            real = not scan.case.startswith("phantom_")
            for name, centre in zip(scan.names, scan.centres, strict=True):
                self._add(SACRUM if name == "S1" else LEVEL_INDEX[EMITTING_LEVEL[name]], real, scan.patient, number, centre)
            for kind, place in beyond(scan):
                if "S1" not in scan.names or kind != SACRUM:
                    self._add(kind, real, scan.patient, number, place)

    def _add(self, kind: int, real: bool, patient: str, number: int, place: np.ndarray) -> None:
        self.table.setdefault((kind, real), {}).setdefault(patient, []).append((number, place))

    def draw(self, kind: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        real, made = self.table.get((kind, True), {}), self.table.get((kind, False), {})
        from_real = real and (not made or rng.random() < len(real) / (len(real) + FEW_PATIENTS))
        group = real if from_real else made
        rows = group[sorted(group)[int(rng.integers(len(group)))]]
        return rows[int(rng.integers(len(rows)))]

    def elsewhere(self, between: bool, rng: np.random.Generator) -> tuple[int, np.ndarray] | None:
        """A place between two thoracic or lumbar bodies, or off the spine at the height of a vertebra."""
        number = int(rng.integers(len(self.scans)))
        scan = self.scans[number]
        vertebrae = [c for n, c in zip(scan.names, scan.centres, strict=True) if n in ORDER_INDEX]
        if between:
            pairs = [(a, b) for a, b in zip(vertebrae, vertebrae[1:], strict=False) if 22 < np.linalg.norm(a - b) < 45]
            if not pairs:
                return None
            upper, lower = pairs[int(rng.integers(len(pairs)))]
            return number, (upper + lower) / 2 + rng.normal(0, 1.5, 3)
        size = np.array(scan.volume.array.shape)
        for _ in range(6):
            index = rng.uniform(0, size - 1)
            place = scan.volume.geometry.index_to_world(index)
            if vertebrae:
                around = np.array(vertebrae)
                k = int(np.abs(around[:, 2] - place[2]).argmin())
                if abs(around[k, 2] - place[2]) > 12 or np.linalg.norm(around - place, axis=1).min() < OFF_MM:
                    continue
            if scan.volume.array[tuple(np.rint(index).astype(int))] > -400:
                return number, place
        return None


def beyond(scan: Scan) -> list[tuple[int, np.ndarray]]:
    """(SKULL or SACRUM, place in the scan) where one more vertebra would lie above C1 and below the last lumbar one."""
    found = []
    named = [(n, c) for n, c in zip(scan.names, scan.centres, strict=True) if n in ORDER_INDEX]
    if len(named) < 2:
        return found
    if named[0][0] == "C1":
        found.append((SKULL, named[0][1] + np.array([0.0, 2.0, 19.0])))
    if named[-1][0] in ("L5", "L6"):
        found.append((SACRUM, 2 * named[-1][1] - named[-2][1] + np.array([0.0, 6.0, 2.0])))
    size = np.array(scan.volume.array.shape)
    return [(k, p) for k, p in found if (scan.volume.geometry.world_to_index(p) > -0.5).all()
            and (scan.volume.geometry.world_to_index(p) < size - 0.5).all()]


def batch(rows: Rows, seed: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (B, C, z, y, x), classes (B,) and the folds of their patients (B,), -1 for phantoms."""
    rng = np.random.default_rng([seed, index])
    images, targets, folds = [], [], []
    order = rng.permutation(24)
    for k in range(BATCH):
        kind, spread = int(order[k % 24]), JITTER_MM
        number, place = rows.draw(kind, rng)
        if rng.random() < NONE_FRACTION:
            what = str(rng.choice(list(NONE_KINDS), p=list(NONE_KINDS.values())))
            other = (rows.draw(SACRUM, rng) if what == "sacrum" else rows.draw(SKULL, rng) if what == "skull"
                     else rows.elsewhere(what == "between", rng))
            if other is not None:
                number, place = other
                kind = {"sacrum": SACRUM, "skull": SKULL}.get(what, NOT_A_VERTEBRA)
                spread = 6.0 if kind != NOT_A_VERTEBRA else 0.5
        images.append(cut_crops(rows.scans[number].volume, (place + rng.normal(0, spread / np.sqrt(3), 3))[None], APPEARANCE)[0])
        targets.append(kind)
        folds.append(rows.scans[number].fold)
    views = cut_fields(augment(torch.from_numpy(np.stack(images)), rng, APPEARANCE.network.spacing_mm), rng)
    return views, torch.tensor(targets), torch.tensor(folds)


def make_pool(rows: Rows, folder: Path, batches: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(batches):
        target = folder / f"{index:04d}.pt"
        if not target.exists():
            images, targets, folds = batch(rows, 5, index)
            torch.save(((images * 255).round().to(torch.uint8), targets, folds), target.with_suffix(".tmp"))
            target.with_suffix(".tmp").replace(target)


def cut_fields(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Thick slices, and fields of view cut above, below, at the sides (slabs of 60-120 mm), in front, and round: air outside."""
    middle = [n // 2 for n in images.shape[2:]]
    for i in range(len(images)):
        image = images[i]
        if rng.random() < 0.2:
            every = int(rng.integers(2, 4))
            thick = functional.avg_pool3d(image[None], (every, 1, 1), (every, 1, 1), ceil_mode=True)[0]
            image[:] = thick.repeat_interleave(every, dim=1)[:, :image.shape[1]]
        if rng.random() < 0.35:
            image[:, :max(0, middle[0] - int(rng.integers(3, 18)))] = 0
        if rng.random() < 0.35:
            image[:, middle[0] + int(rng.integers(3, 18)):] = 0
        if rng.random() < 0.3:
            left, right = (int(v) for v in rng.integers(6, 13, 2))
            image[..., :max(0, middle[2] - left)] = 0
            image[..., middle[2] + right:] = 0
        if rng.random() < 0.2:
            image[:, :, :max(0, middle[1] - int(rng.integers(4, 14)))] = 0
        if rng.random() < 0.1:
            z, y, x = np.ogrid[:image.shape[1], :image.shape[2], :image.shape[3]]
            radius = rng.uniform(9, 15, 2)
            outside = ((y - middle[1] + 2) / radius[0]) ** 2 + ((x - middle[2]) / radius[1]) ** 2 > 1 + 0 * z
            image[:, torch.from_numpy(np.broadcast_to(outside, image.shape[1:]).copy())] = 0
    return images


def train(pool: Path, fold: int, steps: int, seed: int, start: Path, state: Path) -> AppearanceNetwork:
    """Step k takes the crops of one batch of the pool whose patients are not of `fold`; the pool is gone through again and again."""
    torch.manual_seed(seed)
    network = start_appearance(start).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    begin, history, files = 0, [], sorted(pool.glob("*.pt"))
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        begin = saved["step"]
    for step in range(begin, steps):
        images, targets = drawn(files, fold, seed, step)
        loss = functional.cross_entropy(network(images), targets, label_smoothing=0.03)  # bfloat16 gives infinite gradients here
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        scheduler.step()
        history.append(float(loss.detach()))
        if step % 50 == 49:
            print(f"step {step + 1} loss {np.mean(history[-50:]):.3f}", flush=True)
        if step % 100 == 99:
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                        "step": step + 1}, state.with_suffix(".tmp"))
            state.with_suffix(".tmp").replace(state)
    return network.eval()


def drawn(files: list[Path], fold: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng([seed, step // len(files)]).permutation(len(files))
    images, targets, folds = torch.load(files[order[step % len(files)]], weights_only=True)
    kept = folds != fold
    return images[kept].float() / 255, targets[kept]


def held_out(scans: list[Scan]) -> list[tuple[Scan, np.ndarray, np.ndarray]]:
    """(scan, places, classes) of every scan: its vertebrae, sacrum and what lies above C1."""
    out = []
    for scan in scans:
        kinds = [SACRUM if n == "S1" else LEVEL_INDEX[EMITTING_LEVEL[n]] for n in scan.names]
        ends = [(k, p) for k, p in beyond(scan) if not (k == SACRUM and SACRUM in kinds)]
        if kinds:
            out.append((scan, np.vstack([scan.centres, *(p[None] for _, p in ends)]), np.array(kinds + [k for k, _ in ends])))
    return out


def fitted_temperature(network: AppearanceNetwork, scans: list[Scan]) -> float:
    """From the rows of patients that the network has not seen; every patient counts the same."""
    from scipy.optimize import minimize_scalar

    logits, targets, weights = [], [], []
    with torch.inference_mode():
        for scan, places, kinds in held_out(scans):
            logits.append(network(torch.from_numpy(cut_crops(scan.volume, places, APPEARANCE))).double())
            targets.append(torch.from_numpy(kinds))
            weights.append(torch.full((len(kinds),), 1 / np.sqrt(len(kinds))))
    logits, targets, weights = torch.cat(logits), torch.cat(targets), torch.cat(weights)

    def loss(log_t: float) -> float:
        return float((functional.cross_entropy(logits / np.exp(log_t), targets, reduction="none") * weights).sum() / weights.sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-1.5, 2.0), method="bounded").x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--start", type=Path, help="checkpoint of stage appearance that saw phantoms only")
    parser.add_argument("--pool", action="store_true", help="only make the crops")
    parser.add_argument("--batches", type=int, default=420, help="of the pool")
    parser.add_argument("--steps", type=int, default=600, help="of a fold")
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--final", action="store_true")
    args = parser.parse_args()
    if not args.pool and args.start is None:
        parser.error("--start is missing: the weights to start from")
    torch.set_num_threads(1)
    real = [load_scan(path) for path in sorted((args.work / "real").glob("*.npz"))]
    made = [load_scan(path) for path in sorted((args.work / "phantoms").glob("*.npz"))]
    print(len(real), "real scans", len(made), "phantoms", flush=True)
    if args.pool:
        make_pool(Rows(real + made), args.work / "pool", args.batches)
        return
    target = args.work / "appearance"
    target.mkdir(exist_ok=True)
    about = {"recipe": "recipes.train_appearance", "phantoms": len(made)}
    for fold in args.folds:
        name = f"fold_{fold}"
        if not (target / f"{name}.pth").exists():
            known = [scan for scan in real if scan.fold != fold]
            network = train(args.work / "pool", fold, args.steps, 40 + fold, args.start, target / f"{name}.state")
            temperature = fitted_temperature(network, [scan for scan in real if scan.fold == fold])
            save_appearance(target / f"{name}.pth", [network], [temperature], about | {"real": sorted({s.patient for s in known})})
            print(name, "temperature", round(temperature, 3), flush=True)
    if args.final:
        parts = [load_appearance(target / f"fold_{fold}.pth")[0] for fold in args.folds]
        about |= {"real": sorted({s.patient for s in real}), "networks": "one per fold; each has seen two thirds of the real patients"}
        save_appearance(target / "final.pth", [p.networks[0] for p in parts], [p.fitted[0]["temperature"] for p in parts], about)


if __name__ == "__main__":
    main()
