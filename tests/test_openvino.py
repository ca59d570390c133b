"""The segmentation network gives the same masks through OpenVINO, which is converted once and asked for by the user."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spineclue_v2.errors import InputError
from spineclue_v2.stages.segment import openvino as engine
from spineclue_v2.stages.segment.network import build_network
from spineclue_v2.stages.segment.plan import SegmentNetwork
from spineclue_v2.utilities import paths

CPU, SHAPE = torch.device("cpu"), (4, 16, 16, 16)


def small_network() -> torch.nn.Module:
    torch.manual_seed(3)
    plan = SegmentNetwork(architecture="ResEnc", crop_size=SHAPE[1:], features=(4, 8), blocks=(1, 1), heatmap_sigma_mm=6.0)
    return build_network(plan, SHAPE[0] - 1).eval()


def test_torch_computes_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    assert engine.engine_of(network, SHAPE, CPU) is network
    monkeypatch.setenv(engine.VARIABLE, "openvino")
    assert engine.engine_of(network, SHAPE, torch.device("meta")) is network   # not on a CPU
    monkeypatch.setenv(engine.VARIABLE, "abacus")
    with pytest.raises(InputError, match="expected torch or openvino"):
        engine.engine_of(network, SHAPE, CPU)


def test_without_the_package_the_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine.VARIABLE, "openvino")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(InputError, match=r"spineclue_v2\[openvino\]"):
        engine.engine_of(small_network(), SHAPE, CPU)


def test_the_same_logits_and_one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(engine.VARIABLE, "openvino")
    monkeypatch.setattr(engine, "fast_bfloat16", lambda: False)
    network, batch = small_network(), torch.randn(3, *SHAPE)
    with torch.inference_mode():
        expected = network(batch).numpy()
        np.testing.assert_allclose(engine.engine_of(network, SHAPE, CPU)(batch).numpy(), expected, atol=5e-3)
    kept = list(Path(paths.home() / "cache" / "openvino").iterdir())
    assert len(kept) == 1 and (kept[0] / "network.xml").is_file()
    monkeypatch.setattr(engine, "_convert", lambda *_: pytest.fail("converted again"))
    with torch.inference_mode():
        again = engine.engine_of(small_network(), SHAPE, CPU)(batch[:1]).numpy()
    np.testing.assert_allclose(again, expected[:1], atol=5e-3)
