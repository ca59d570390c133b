"""Weighted mean of two weights files of one stage: `python -m recipes.mean_weights NEW OLD TARGET [--share 0.5]` (share of NEW)."""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from spineclue_v2.model_sharing.export_model import _halved
from spineclue_v2.training.checkpoint import Checkpoint


def mean(new: Path, old: Path, target: Path, share: float) -> None:
    """Write `share` of NEW and the rest of OLD as TARGET (fp16), with all that NEW says of itself."""
    first, second = Checkpoint.load(new), Checkpoint.load(old)
    means = {name: share * value + (1 - share) * second.network[name] if value.is_floating_point() else value
             for name, value in first.network.items()}
    save(dataclasses.replace(first, network=means), target)


def save(checkpoint: Checkpoint, target: Path) -> None:
    """Write fp16 weights. A tensor that goes by two names in the network is stored once: equal tensors are."""
    once: dict[Any, Any] = {}
    network = {name: once.setdefault((tuple(value.shape), str(value.dtype), value.numpy().tobytes()), value)
               for name, value in checkpoint.network.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    _halved(dataclasses.replace(checkpoint, network=network)).save(target, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()
    mean(args.new, args.old, args.target, args.share)


if __name__ == "__main__":
    main()
