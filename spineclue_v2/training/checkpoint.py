"""Checkpoints: tensors and plain JSON only, written by rename, loaded with `weights_only=True`."""
from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..utilities.files import atomic_path

logger = logging.getLogger("spineclue_v2.training")

FORMAT = 1
HALF_PRECISION_RATIO = 65504.0


@dataclass
class Checkpoint:
    """What a training run leaves behind. `meta` is plain JSON; `extra` are tensors beside the network (fusion matrices, ...)."""

    network: dict[str, torch.Tensor]
    meta: dict[str, Any]
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None

    def save(self, path: Path, half: bool = False) -> None:
        """Write by rename; `half` stores floating tensors as fp16 and leaves optimiser and scaler out (for sharing)."""
        def shrink(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            tensors = {k: v.detach().cpu() for k, v in tensors.items()}
            if half:   # a tensor that goes by two names stays one
                halves: dict[tuple[Any, ...], torch.Tensor] = {}
                tensors = {k: halves.setdefault((v.data_ptr(), v.shape, v.stride()) if v.numel() else (k,), _half(v))
                           for k, v in tensors.items()}
            return tensors

        content: dict[str, Any] = {"format": FORMAT, "network_weights": shrink(self.network), "extra": shrink(self.extra),
                                   "meta": json.dumps(self.meta)}
        if not half:
            content |= {"optimizer_state": self.optimizer, "grad_scaler_state": self.scaler}
        with atomic_path(path) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # torch reports a full disk as RuntimeError
                raise InputError(f"Cannot write checkpoint {path} ({str(error).splitlines()[0]}); is the disk full?") from error

    @staticmethod
    def load(path: Path, device: str | torch.device = "cpu") -> Checkpoint:
        """Read a checkpoint; InputError when it is missing, broken, of a newer format, or holds anything but tensors and JSON."""
        if not Path(path).exists():
            raise InputError(f"Checkpoint {path} does not exist; train this fold first with spineclue_train.")
        try:
            content = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for broken or foreign files
            raise InputError(f"Checkpoint {path} is damaged or no checkpoint of ours ({type(error).__name__}); "
                             "train again or copy it again.") from error
        foreign = InputError(f"Checkpoint {path} is no checkpoint of spineclue_v2; give one that spineclue_train wrote.")
        if not isinstance(content, dict) or "network_weights" not in content or "meta" not in content:
            raise foreign
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise InputError(f"Checkpoint {path} has format {content['format']}; this version reads up to {FORMAT}.")
        try:
            meta = json.loads(content["meta"])
            network, extra = (_full_precision(content.get(key, {})) for key in ("network_weights", "extra"))
        except (TypeError, ValueError, AttributeError) as error:
            raise foreign from error
        if not isinstance(meta, dict):
            raise foreign
        return Checkpoint(network, meta, extra, content.get("optimizer_state"), content.get("grad_scaler_state"))


def _full_precision(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of named tensors as they are shared at half precision, first 16 hex digits: how a stage records the weights it was fitted to.

    Unlike the file's own digest it outlasts whatever writes the weights again: an export, with or without `half`, and what is fitted.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + _half(tensor.detach().cpu()).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _half(tensor: torch.Tensor) -> torch.Tensor:
    """As fp16, where it is floating and the range of fp16 holds it."""
    return tensor.half() if tensor.is_floating_point() and tensor.numel() and tensor.abs().max() < HALF_PRECISION_RATIO else tensor


def file_sha256(path: Path) -> str:
    """sha256 of a file, first 16 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:16]


def load_weights(network: torch.nn.Module, checkpoint: Checkpoint, source: Path, take: bool = False) -> None:
    """Put the weights into `network`; a mismatch is an InputError that names the first differing tensor.

    `take`: the network takes the checkpoint's own tensors in place of its fresh ones, so that none exists twice. Not with an optimiser,
    which goes on with the fresh ones.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.network.items()}
    if wanted != found:
        name = next((n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)), "")
        raise InputError(f"Checkpoint {source} does not fit the plan's network ('{name}' is {found.get(name, 'absent')}, "
                         f"expected {wanted.get(name, 'absent')}); use the plan it was trained with, or train again.")
    network.load_state_dict(checkpoint.network, assign=take)


def load_fitting_weights(network: torch.nn.Module, checkpoint: Checkpoint, source: Path, stage: str) -> None:
    """Put those weights into `network` that have its shapes; the others stay as initialised, and the log names the first. InputError
    where none fits."""
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in checkpoint.network.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise InputError(f"No tensor of {source} fits the network of stage {stage}; are these weights of another stage?")
    left_out = sorted(set(own) - set(fitting))
    if left_out:
        logger.warning("Pretrained weights: %d tensors fit, %d start fresh (%s, ...).", len(fitting), len(left_out), left_out[0])
    network.load_state_dict(own | fitting)
