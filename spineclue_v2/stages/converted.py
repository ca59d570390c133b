"""Networks as OpenVINO has them, kept on disk with all else that a prediction takes from a checkpoint.

A process that finds them there reads no checkpoint, builds no network and imports no PyTorch. They lie in
`SPINECLUE_HOME/cache/openvino`, one folder per file of weights, and may be deleted at any time.
"""
from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utilities import paths
from ..utilities.files import atomic_path
from ..utilities.threads import compute_threads
from ..version import __version__

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ABOUT, EXTRA = "about.json", "extra.npz"


@dataclass(frozen=True)
class Graph:
    """One function of a network, as it is converted.

    Attributes:
        function: `(network, *tensors) -> tensor or tuple of tensors`; its name is the graph's.
        examples: tensors to trace it with.
        shapes: of its inputs, -1 where a size varies.
        bfloat16: whether half precision is good enough, where the processor is made for it.
    """

    function: Callable[..., Any]
    examples: tuple[torch.Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]
    bfloat16: bool = True


class ConvertedNetwork:
    """A network whose functions run through OpenVINO. Whatever else is asked of it, the module answers, which is built then.

    Attributes:
        functions: {name of a function: whether half precision is good enough for it}.
    """

    def __init__(self, files: Mapping[str, Path], functions: Mapping[str, bool], build: Callable[[], torch.nn.Module]) -> None:
        self.functions = dict(functions)
        self._files, self._build = dict(files), build
        self._engines: dict[str, Callable[..., Any]] = {}
        self._module: Any = None
        self._lock = threading.RLock()

    def engine(self, name: str) -> Callable[..., Any]:
        """The function `name` of arrays, compiled when it is first asked for."""
        with self._lock:
            if name not in self._engines:
                self._engines[name] = _compile(self._files[name], self.functions[name])
            return self._engines[name]

    def compile_all(self) -> None:
        """Compile all functions, so that nobody waits for it later."""
        for name in self.functions:
            self.engine(name)

    def module(self) -> Any:
        """The network as PyTorch has it."""
        with self._lock:
            if self._module is None:
                self._module = self._build()
            return self._module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):       # copying and pickling ask before anything is set
            raise AttributeError(name)
        return getattr(self.module(), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.module()(*arguments, **named)


@dataclass(frozen=True)
class Kept:
    """What is kept of a file of weights: `meta` and `extra` of its checkpoint, the `sha256` of its weights, and the graphs' files."""

    meta: dict[str, Any]
    extra: dict[str, np.ndarray]
    sha256: str
    functions: dict[str, bool]
    folder: Path

    def network(self, build: Callable[[], torch.nn.Module]) -> ConvertedNetwork:
        """The network; `build` makes its module."""
        return ConvertedNetwork({name: self.folder / f"{name}.xml" for name in self.functions}, self.functions, build)


def find_kept(weights: Path) -> Kept | None:
    """What was kept of a file of weights; None where it was not converted yet, or what was kept cannot be read."""
    folder = _folder_of(weights)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with np.load(folder / EXTRA) as stored:
            extra = dict(stored)
        if all((folder / f"{name}{ending}").is_file() for name in about["functions"] for ending in (".xml", ".bin")):
            return Kept(about["meta"], extra, about["sha256"], about["functions"], folder)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def keep(weights: Path, network: torch.nn.Module, graphs: Mapping[str, Graph], meta: Mapping[str, Any],
         extra: Mapping[str, torch.Tensor], sha256: str) -> Kept | None:
    """Convert a network and keep it; None, with a warning, where the folder cannot be written.

    Processes may do so at the same time: a folder is complete or absent, and who comes second leaves it as it is.

    Raises:
        Exception: of any kind, where OpenVINO does not take the network.
    """
    import openvino

    folder = _folder_of(weights)
    models = {name: _converted(openvino, network, graph) for name, graph in graphs.items()}
    about = {"meta": dict(meta), "sha256": sha256, "functions": {name: graph.bfloat16 for name, graph in graphs.items()}}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
        try:
            for name, model in models.items():
                openvino.save_model(model, own / f"{name}.xml", compress_to_fp16=False)
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in extra.items()}
            np.savez(own / EXTRA, **arrays)
            (own / ABOUT).write_text(json.dumps(about), encoding="utf-8")
            if folder.exists() and find_kept(weights) is None:
                shutil.rmtree(folder, ignore_errors=True)      # damaged
            own.rename(folder)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        kept = find_kept(weights)
        if kept is None:
            logger.warning("The converted network was not kept in %s (%s); PyTorch computes instead.", folder, error)
        return kept
    return find_kept(weights)


def _converted(openvino: Any, network: torch.nn.Module, graph: Graph) -> Any:
    """The graph as OpenVINO's reader of TorchScript makes it. `openvino.convert_model` does the same in three times the time, and reports
    each use to its makers where nobody has forbidden it."""
    import warnings

    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> Any:
            return graph.function(self.network, *tensors)

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")   # of the tracer
        traced = torch.jit.trace(Traced().eval(), graph.examples, check_trace=False)
        reader = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)      # has to outlive the conversion
        model = reader.convert(reader.load(decoder))
    model.reshape({given: openvino.PartialShape(list(shape)) for given, shape in zip(model.inputs, graph.shapes, strict=True)})
    model.validate_nodes_and_infer_types()
    return model


def _compile(file: Path, bfloat16: bool) -> Callable[..., Any]:
    """The graph of a file as a function of arrays. What is compiled is kept beside the graph, for a third of the time."""
    core = _core()
    precision = "bf16" if bfloat16 and "bf16" in _instructions() else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": compute_threads()}
    ready = file.with_name(f"{file.stem}_{_hash(f'{sorted(settings.items())} {sorted(_instructions())}')}.blob")
    try:
        compiled = core.import_model(ready.read_bytes(), "CPU", settings)
    except (OSError, RuntimeError):     # not there yet, or damaged
        compiled = core.compile_model(core.read_model(file), "CPU", settings)
        with suppress(OSError, RuntimeError), atomic_path(ready) as temporary, open(temporary, "wb") as stream:
            content = io.BytesIO()
            compiled.export_model(content)
            stream.write(content.getvalue())
    outputs = len(compiled.outputs)

    def run(*arrays: np.ndarray) -> Any:
        request = compiled.create_infer_request()   # one per call: threads share the compiled model alone
        request.infer([np.ascontiguousarray(array) for array in arrays])
        found = tuple(request.get_output_tensor(i).data.copy() for i in range(outputs))
        return found if outputs > 1 else found[0]

    return run


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def _instructions() -> frozenset[str]:
    """What the processor knows beyond the common instructions; "bf16" where it multiplies bfloat16 itself. Empty where nobody says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    known = {flag for flag in flags if flag.startswith(("avx", "amx", "sse", "fma", "f16c"))}
    return frozenset(known | ({"bf16"} if known & {"amx_bf16", "avx512_bf16"} else set()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _folder_of(weights: Path) -> Path:
    """Where the networks of a file of weights are kept: another folder for other weights, code, or versions."""
    about = weights.stat()
    return paths.home() / "cache" / "openvino" / _key(weights.absolute(), about.st_mtime_ns, about.st_size)


@cache
def _key(weights: Path, changed: int, size: int) -> str:  # noqa: ARG001 - of the file, so that a new one is read again
    from importlib.metadata import version

    digest = hashlib.sha256(f"{__version__} {version('openvino')} ".encode())
    for source in [Path(__file__), *sorted(Path(__file__).parent.glob("*/network.py"))]:
        digest.update(source.read_bytes())
    with open(weights, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]
