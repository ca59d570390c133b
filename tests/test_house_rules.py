"""Rules of the house that no linter knows: which way imports go, who may print, what may be loaded."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path.relative_to(ROOT) for folder in ("spineclue_v2", "planning", "dataset_conversion")
                 for path in (ROOT / folder).rglob("*.py"))


def imported(source: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it; our own under their installed names."""
    package = (() if source.parts[0] == "spineclue_v2" else ("spineclue_v2",)) + source.parts[:-1]
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[:len(package) - node.level + 1], *filter(None, [node.module]))) if node.level else node.module
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_imports_go_down_only():
    upper, offences = ("spineclue_v2.planning", "spineclue_v2.dataset_conversion"), []
    for source in SOURCES:
        forbidden = {"planning": upper[1:], "dataset_conversion": ()}.get(source.parts[0], (*upper, "spineclue_v2.cli"))
        if source.parts[:2] == ("spineclue_v2", "cli"):
            forbidden = ()
        offences += [f"{source}: {name}" for name in imported(source)
                     if name.startswith(forbidden) or name.split(".")[0] in ("planning", "dataset_conversion", "tests")]
    assert offences == []


def test_nnunets_libraries_are_met_in_one_place():
    libraries = {"nnunetv2", "acvl_utils", "batchgenerators", "batchgeneratorsv2"}
    met = {str(source) for source in SOURCES for name in imported(source) if name.split(".")[0] in libraries}
    assert met == {"spineclue_v2/adapters.py"}


def test_the_library_neither_prints_nor_exits_nor_unpickles():
    offences = []
    for source in SOURCES:
        offences += [f"{source}: {name}" for name in imported(source) if name in ("pickle", "dill", "joblib", "shelve", "marshal")]
        for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            wrong = called in ("eval", "exec") or ("cli" not in source.parts and called in ("print", "exit", "sys.exit"))
            if called == "torch.load":
                wrong = not any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
            if wrong:
                offences.append(f"{source}:{node.lineno}: {called}")
    assert offences == []


def test_importing_the_package_reads_nothing_and_costs_nothing():
    program = ("import os, sys\nbefore = dict(os.environ)\nimport spineclue_v2, spineclue_v2.imageio.volume, spineclue_v2.plans\n"
               "assert dict(os.environ) == before\n"
               "heavy = {'torch', 'SimpleITK', 'scipy', 'sklearn', 'matplotlib', 'nnunetv2', 'ultralytics'} & set(sys.modules)\n"
               "assert not heavy, heavy\nassert 'SpineCLUE' in spineclue_v2.__all__")
    subprocess.run([sys.executable, "-c", program], check=True)
