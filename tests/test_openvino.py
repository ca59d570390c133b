"""OpenVINO computes what PyTorch computes, from networks that are converted once; without it, or where it cannot, PyTorch does."""
from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.errors import InputError
from spineclue_v2.inference.model import load_stage, stage_model
from spineclue_v2.stages import converted
from spineclue_v2.stages.converted import ConvertedNetwork, find_kept
from spineclue_v2.stages.engine import VARIABLE, engine_of, uses_openvino
from spineclue_v2.stages.geometry.predictor import evidence_of
from spineclue_v2.stages.identify.predictor import shape_rows
from spineclue_v2.stages.localize.decoding import boxes_of, detector_of
from spineclue_v2.stages.plan_files import plans_from_json
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.stage_model import StageModel
from spineclue_v2.utilities import paths

CPU = torch.device("cpu")
CENTRES = np.array([[0.0, 3.0 * np.sin(i / 3), -28.0 * i] for i in range(7)])


def convert(stage: str) -> tuple[StageModel, StageModel, Path]:
    """The shipped stage as PyTorch has it, and converted; and its file."""
    file = paths.weights_folder() / f"{stage}.pth"
    saved = Checkpoint.load(file)
    plans = plans_from_json(saved.meta["plans"], str(file))
    return stage_model(stage, [saved], [file], plans, CPU), stage_model(stage, [saved], [file], plans, CPU, convert=True), file


@pytest.fixture(autouse=True)
def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_openvino(torch.device("meta"))                    # no CPU
    monkeypatch.setenv(VARIABLE, "torch")
    assert not uses_openvino(CPU)
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(InputError, match="expected torch or openvino"):
        uses_openvino(CPU)


def test_without_the_package_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not uses_openvino(CPU)
    monkeypatch.setenv(VARIABLE, "openvino")
    with pytest.raises(InputError, match="pip install openvino"):
        uses_openvino(CPU)


def test_geometry_is_the_same_and_needs_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    module, other, file = convert("geometry")
    assert isinstance(other.networks[0], ConvertedNetwork) and other.sha256 == module.sha256
    wanted = evidence_of(CENTRES, module)
    np.testing.assert_allclose(evidence_of(CENTRES, other).logs, wanted.logs, atol=2e-4)
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda _: evidence_of(CENTRES, other).logs, range(16)))
    assert all(np.array_equal(many[0], logs) for logs in many)
    code = ("import sys, numpy as np; from pathlib import Path; from spineclue_v2.inference.model import load_stage; "
            "from spineclue_v2.training.device import resolve_device; from spineclue_v2.stages.geometry.predictor import evidence_of; "
            "model, _ = load_stage(Path(sys.argv[1]), 'geometry', resolve_device('cpu')); "
            "np.save(sys.argv[2], evidence_of(np.load(sys.argv[3]), model).logs); assert 'torch' not in sys.modules")
    np.save(tmp_path / "centres.npy", CENTRES)
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "logs.npy"), str(tmp_path / "centres.npy")], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "logs.npy"), many[0])


def test_shape_is_the_same() -> None:
    pytest.importorskip("openvino")
    module, other, file = convert("identify")
    z, y, x = np.indices((30, 40, 45)) - np.array([15, 20, 22])[:, None, None, None]
    mask = (np.abs(z) < 12) & ((y / 15) ** 2 + (x / 19) ** 2 < 1)
    vertebrae = [Vertebra((0, 0, 0), (0, 0, 0), 1.0, mask=part) for part in (mask, mask[:, 8:], mask[6:])]
    plan = load_stage(file, "identify", CPU)[1].stage("identify")
    wanted, found = (shape_rows(vertebrae, part.networks[0], part.fitted[0], plan, CPU) for part in (module, other))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)     # the same draws of dropout, too


def test_boxes_are_those_of_ultralytics() -> None:
    """The decoding of heads, on the shipped detector's own heads."""
    file = paths.weights_folder() / "localize.pth"
    model, plans = load_stage(file, "localize", CPU)
    network, run = model.networks[0], plans.stage("localize").run
    slices = torch.rand(3, 2, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        sides, scores = (part.numpy() for part in network.heads(slices))
        wanted = network.boxes(slices, 1e-4, run.nms_iou)
    assert sum(map(len, wanted)) > 20
    for one, score, boxes in zip(sides, scores, wanted, strict=True):
        np.testing.assert_allclose(boxes_of(one, score[0], (96, 64), 1e-4, run.nms_iou), boxes.numpy(), atol=2e-3)
    by_module = detector_of(network, CPU)(slices.numpy(), 1e-4, run.nms_iou)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(by_module, wanted, strict=True))


def test_segment_is_the_same_and_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(converted, "_instructions", frozenset)      # no half precision
    module, other, file = convert("segment")
    size = load_stage(file, "segment", CPU)[1].stage("segment").network.crop_size
    crop = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    name = "spineclue_v2.stages.segment.network:foreground"
    np.testing.assert_allclose(engine_of(other.networks[0], name, CPU)(crop), engine_of(module.networks[0], name, CPU)(crop), atol=2e-3)
    assert other.networks[0].training is False      # the module answers what is no engine's
    monkeypatch.setattr(converted, "_converted", lambda *_: pytest.fail("converted again"))
    assert isinstance(load_stage(file, "segment", CPU)[0].networks[0], ConvertedNetwork)
    kept = find_kept(file)
    assert kept is not None
    (kept.folder / "foreground.bin").unlink()       # damaged: as if it had never been
    assert find_kept(file) is None


def test_where_nothing_can_be_kept_torch_computes(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    paths.home().joinpath("cache").write_text("a file")
    _, other, _ = convert("geometry")
    assert not isinstance(other.networks[0], ConvertedNetwork) and "PyTorch computes instead" in caplog.text
