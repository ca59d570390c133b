"""Put the evidence recipe's files into the package: `python -m recipes.install_evidence FOLDER [--weights spineclue_v2/weights]`.

FOLDER holds `appearance.pth` and `geometry.pth` as the recipe saves them (tensors and one JSON text) and `evidence.json` (evidence model
and penalties). Written are appearance.pth, geometry.pth and identify.pth, the last with another plan only.
"""
from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and description of a file of the recipe."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    return content["tensors"], json.loads(content["description"])


def appearance(folder: Path, weights: Path) -> None:
    """One network per fold; each one's temperature goes into its last layer."""
    tensors, description = read(folder / "appearance.pth")
    temperatures = description["temperatures"]
    network = {}
    for name, value in tensors.items():
        member, rest = name.split(".", 1)
        is_last = rest.rsplit(".", 1)[0] == max((n.split(".", 1)[1].rsplit(".", 1)[0] for n in tensors), key=_place)
        scaled = value.float() / temperatures[int(member)] if is_last else value.float() if value.is_floating_point() else value
        network[f"members.{member}.{rest}" if len(temperatures) > 1 else rest] = scaled
    changed = {"landmarks": True, "members": len(temperatures)}
    write(weights / "appearance.pth", "appearance", network, {"temperature": 1.0, "about": description["about"]}, changed)


def _place(name: str) -> int:
    return int(name.split(".")[1])


def geometry(folder: Path, weights: Path) -> None:
    tensors, description = read(folder / "geometry.pth")
    network = {f"members.{name}": value.float() for name, value in tensors.items()}
    fitted = {"inputs": description["inputs"], "temperature": 1.0, "about": description["about"]}
    write(weights / "geometry.pth", "geometry", network, fitted, {"members": description["members"]} | description["shape"])


def write(target: Path, stage: str, network: dict[str, Any], fitted: dict[str, Any], changed: dict[str, Any]) -> None:
    """The package's file with other tensors and the `changed` values of the plan's network group."""
    from spineclue_v2.plans.plans import Plans
    from spineclue_v2.stages.plan_files import plans_from_json
    from spineclue_v2.training.checkpoint import Checkpoint

    old = Checkpoint.load(target)
    plans: Plans = plans_from_json(old.meta["plans"])
    plan = plans.stage(stage)
    plan = replace(plan, network=replace(plan.network, **changed))
    plans = replace(plans, stages={stage: plan})
    meta = old.meta | {"plans": plans.to_json(), "fitted": fitted, "data_fingerprint": plan.data_fingerprint,
                       "model_fingerprint": plan.model_fingerprint}
    Checkpoint(network, meta, old.extra).save(target, half=True)


def identify(folder: Path, weights: Path) -> None:
    from spineclue_v2.stages.plan_files import plans_from_json
    from spineclue_v2.training.checkpoint import Checkpoint

    values = json.loads((folder / "evidence.json").read_text())
    old = Checkpoint.load(weights / "identify.pth")
    content = plans_from_json(old.meta["plans"]).to_json()
    run = content["stages"]["identify"]["run"]
    penalties = run["decoder_penalties"]["value"] | values["decoder_penalties"]
    for key, value in {"evidence_model": values["evidence_model"], "decoder_penalties": penalties}.items():
        run[key] = {"value": value, "rule": "fitted on windows of real scans, each by networks that never saw its patient"}
    plans = plans_from_json(content)
    replace(old, meta=old.meta | {"plans": plans.to_json()}).save(weights / "identify.pth", half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parents[1] / "spineclue_v2" / "weights")
    args = parser.parse_args()
    appearance(args.folder, args.weights)
    geometry(args.folder, args.weights)
    identify(args.folder, args.weights)


if __name__ == "__main__":
    main()
