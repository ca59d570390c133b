"""The slice detector: an ultralytics network built from its YAML, its loss and its box decoding. The only file that touches
ultralytics (AGPL-3.0, see NOTICE); never its trainer, dataset, predictor or downloads.
"""
from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from ...errors import InputError
from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from .decoding import BINS, LEVEL_STRIDES, MAX_BOXES
from .plan import LocalizeNetwork

LOSS_GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
NMS_SECONDS = 60.0  # per slice; ultralytics' own limit leaves slices without boxes on a busy machine


def _ultralytics() -> Any:
    """Import ultralytics with everything off that would install, download or report."""
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    try:
        with _as_a_process_of_its_own():
            from ultralytics.nn.tasks import DetectionModel
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error) or "libglib" in str(error):
            raise InputError("OpenCV cannot load its system library "
                             f"({error}); install it, on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0.") from error
        raise InputError(f"ultralytics cannot be imported ({error}); install it with pip install 'ultralytics>=8.4'.") from error
    return DetectionModel


@contextlib.contextmanager
def _as_a_process_of_its_own() -> Iterator[None]:
    """Hides from ultralytics that processes train together.

    Its import waits until every process of the group imports it too. Only the first one validates, so it would wait for processes that
    have left.
    """
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class SliceDetector(torch.nn.Module):
    """One-class detector on slices (B, C, H, W) with values 0..1, H and W multiples of 32.

    `forward` returns the network's raw heads, `loss` the training loss, `boxes` decoded boxes per slice.
    """

    def __init__(self, plan: LocalizeNetwork, channels: int) -> None:
        super().__init__()
        self.model = _ultralytics()(f"{plan.family}{plan.scale}.yaml", ch=channels, nc=1, verbose=False)
        self.model.args = SimpleNamespace(**LOSS_GAINS)
        self._criterion: Any = None

    def forward(self, slices: torch.Tensor) -> Any:
        return self.model(slices)

    def loss(self, slices: torch.Tensor, batch_index: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Mean detection loss per slice. `boxes` (M, 4): centre x, centre y, width, height relative to the slice; `batch_index` (M,)."""
        heads = self.model(slices)
        if self._criterion is None:
            self._criterion = self.model.init_criterion()
        # The assignment needs float32: in half precision close anchors become ties.
        heads = _float(heads)
        target = {"batch_idx": batch_index.float(), "cls": torch.zeros(len(boxes), 1, device=boxes.device), "bboxes": boxes.float()}
        total, _ = self._criterion(heads, target)
        return total.sum() / len(slices)

    def heads(self, slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the sides (B, 4 * BINS, cells) and of the score (B, 1, cells), undecoded. Threads may share one detector."""
        own = _with_own_head(self.model)
        model: Any = own.model
        next(reversed(model._modules.values())).training = True     # the head alone: its convolutions stay as they are
        found = own(slices)
        return found["boxes"], found["scores"]

    @torch.no_grad()
    def boxes(self, slices: torch.Tensor, min_score: float, nms_iou: float) -> list[torch.Tensor]:
        """Per slice a float tensor (N, 5): x0, y0, x1, y1 in pixels and the score, best first. Threads may share one detector."""
        from ultralytics.utils.nms import non_max_suppression

        heads = _with_own_head(self.model)(slices)
        decoded = heads[0] if isinstance(heads, list | tuple) else heads
        kept = non_max_suppression(decoded.float(), conf_thres=min_score, iou_thres=nms_iou, max_det=MAX_BOXES,
                                   max_time_img=NMS_SECONDS)
        return [k[:, :5].cpu() for k in kept]


def _with_own_head(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with the same weights and a detection head of its own, in evaluation mode as it is.

    The head keeps anchors and strides of the last slice size as attributes and reads them again after a check. Two threads with other
    slice sizes would overwrite each other's between the two. A copy per call shares every tensor, so it costs no memory and no lock.
    """
    own, layers = _shallow_copy(model), _shallow_copy(model.model)
    last = next(reversed(layers._modules))
    layers._modules[last] = _shallow_copy(layers._modules[last])
    own._modules["model"] = layers
    return own


def _shallow_copy(module: Any) -> Any:
    """A module with the same parts, whose own attributes and list of parts can be changed alone."""
    result = copy.copy(module)
    result._modules = dict(module._modules)
    return result


def _float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _float(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_float(v) for v in value)
    return value


def build_network(network: LocalizeNetwork, channels: int) -> SliceDetector:
    """The detector of a plan for `channels` CT windows."""
    return SliceDetector(network, channels)


def network_of_plans(plans: Plans) -> SliceDetector:
    """The network of the stage as `plans` has it, with fresh weights."""
    plan = plans.stage("localize")
    return build_network(plan.network, len(plan.data.windows_hu))


def heads(network: SliceDetector, slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`SliceDetector.heads`, which `decoding` turns into boxes."""
    return network.heads(slices)


def graphs(network: SliceDetector, plan: StagePlan) -> dict[str, Graph]:
    """What a prediction asks of the network; nothing of a detector whose heads `decoding` does not know."""
    head = next(reversed(network.model.model._modules.values()))
    plain = type(head).__name__ == "Detect" and not head.end2end and head.reg_max == BINS and head.nc == 1
    if not plain or tuple(int(stride) for stride in head.stride) != LEVEL_STRIDES:
        return {}
    channels = len(plan.data.windows_hu)
    return {"heads": Graph(heads, (torch.zeros(2, channels, 96, 64),), ((-1, channels, -1, -1),), bfloat16=False)}
