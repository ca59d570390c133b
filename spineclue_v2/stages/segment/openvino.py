"""The segmentation network through OpenVINO (extra `openvino`), where SPINECLUE_ENGINE=openvino asks for it and the device is a CPU.

OpenVINO fuses convolution, norm and activation, which PyTorch runs one by one. The first use of new weights converts the network, which
takes many seconds. The converted network is kept in `SPINECLUE_HOME/cache/openvino`, and later processes read it.
"""
from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...errors import InputError
from ...training.checkpoint import weights_sha256
from ...training.device import fast_bfloat16
from ...utilities import paths

logger = logging.getLogger(__name__)

VARIABLE, NAME = "SPINECLUE_ENGINE", "openvino"
Engine = Callable[[torch.Tensor], torch.Tensor]

_LOCK = threading.Lock()
_ENGINES: WeakKeyDictionary[torch.nn.Module, Engine] = WeakKeyDictionary()


def engine_of(network: torch.nn.Module, shape: tuple[int, ...], device: torch.device) -> Engine:
    """What computes the logits of `network`: itself, or OpenVINO where that is asked for. Any number of threads may call it.

    Args:
        network: in evaluation mode, (B, C, z, y, x) -> logits (B, 2, z, y, x).
        shape: (C, z, y, x) of the crops.

    Raises:
        InputError: SPINECLUE_ENGINE names another engine, or the package is not installed.
    """
    wanted = os.environ.get(VARIABLE, "") or "torch"
    if wanted not in ("torch", NAME):
        raise InputError(f"{VARIABLE} is {wanted!r}; expected torch or {NAME}.")
    if wanted == "torch" or device.type != "cpu":
        return network
    with _LOCK:
        if network not in _ENGINES:
            _ENGINES[network] = _compile(network, shape)
        return _ENGINES[network]


def _compile(network: torch.nn.Module, shape: tuple[int, ...]) -> Engine:
    try:
        import openvino
    except ImportError as error:
        raise InputError(f"{VARIABLE}={NAME} needs OpenVINO ({error}); install it with pip install 'spineclue_v2[{NAME}]', or leave the "
                         "variable out.") from error
    core = openvino.Core()
    file = _cache_file(network, shape, openvino.__version__)
    model = core.read_model(file) if file.is_file() else _convert(network, shape, file)
    precision = "bf16" if fast_bfloat16() else "f32"
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def run(batch: torch.Tensor) -> torch.Tensor:
        request = compiled.create_infer_request()   # one per call: threads share the compiled model alone
        return torch.from_numpy(request.infer([batch.numpy()])[0].copy())

    return run


def _cache_file(network: torch.nn.Module, shape: tuple[int, ...], version: str) -> Path:
    size = "x".join(map(str, shape))
    return paths.home() / "cache" / NAME / f"{weights_sha256(network.state_dict())}_{size}_{version.split('-')[0]}" / "network.xml"


def _convert(network: torch.nn.Module, shape: tuple[int, ...], file: Path) -> Any:
    """The network as OpenVINO has it, kept as `file` where that can be written."""
    import openvino

    logger.info("OpenVINO converts the segmentation network, once for these weights; this takes many seconds.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of the tracer that it uses
        model = openvino.convert_model(network, example_input=torch.zeros(1, *shape), input=[-1, *shape])
    try:
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=file.parent.parent))
        try:
            openvino.save_model(model, own / file.name, compress_to_fp16=False)
            own.rename(file.parent)   # complete or absent; where another process was first, its files stay
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        if not file.is_file():
            logger.warning("The converted network was not kept in %s (%s); the next process converts it again.", file.parent, error)
    return model
