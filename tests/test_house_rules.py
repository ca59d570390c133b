"""Rules of the house that no linter knows: which way imports go, who may print, what may be loaded."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path.relative_to(ROOT) for folder in ("spineclue_v2", "planning", "dataset_conversion")
                 for path in (ROOT / folder).rglob("*.py"))


FLOORS = (  # bottom up; a room may import rooms of lower floors and, as long as no circle arises, of its own
    {"errors", "flags", "version"}, {"utilities", "adapters"}, {"anatomy"}, {"imageio"}, {"plans", "dataset"}, {"preprocessing"},
    {"phantom", "evaluation"}, {"training"}, {"stages"}, {"measures"}, {"export"}, {"visualization"}, {"inference", "api", "results"},
    {"cross_validation", "model_sharing", "vid", "demo", "doctor", "serving"}, {"ablation"}, {"planning", "dataset_conversion"}, {"cli"})


def module_name(source: Path) -> str:
    """The installed name of a source file."""
    parts = (() if source.parts[0] == "spineclue_v2" else ("spineclue_v2",)) + source.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(source): source for source in SOURCES}


def imported(source: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it; our own under their installed names."""
    package = (() if source.parts[0] == "spineclue_v2" else ("spineclue_v2",)) + source.parts[:-1]
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[:len(package) - node.level + 1], *filter(None, [node.module]))) if node.level else node.module
            # A name imported from a package that is a module of its own ties to that module, not to the package.
            names = {f"{base}.{alias.name}" for alias in node.names}
            yield from names
            if not names <= set(MODULES):
                yield base or ""


def ties() -> dict[str, set[str]]:
    """Module -> our own modules that it imports, lazily or for typing included."""
    return {name: set(imported(source)) & set(MODULES) - {name} for name, source in MODULES.items()}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_imports_go_down_only():
    package = "spineclue_v2"
    upward = [f"{module} -> {other}" for module, others in ties().items() for other in others
              if module != package and other != package and floor(other) > floor(module)]
    assert upward == []
    foreign = [f"{source}: {name}" for source in SOURCES for name in imported(source)
               if name.split(".")[0] in ("planning", "dataset_conversion", "tests", "benchmarks", "recipes")]
    assert foreign == []


def test_no_module_imports_itself_in_a_circle():
    """Kahn's algorithm: what cannot be taken away because something still imports it back is a circle."""
    left = ties()
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    # What is left imports a circle or is one; those that nothing of the rest imports are only on the way to it.
    while top := [module for module in left if not any(module in others for others in left.values())]:
        for module in top:
            del left[module]
    assert sorted(left) == []


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


def test_every_dependency_has_code_that_imports_it():
    """Of the package and of its extras dask and dicom; the other extras are tools, and pyarrow is imported by pandas."""
    brought = {"setuptools", "torchvision", "distributed"}  # imported by nnunetv2, ultralytics and dask
    wanted = [re.split(r"[<>=!;\[ ]", line)[0] for line in requires("spineclue_v2") or []
              if "extra ==" not in line or re.search(r"extra == .(dask|dicom)", line)]
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(distribution.lower().replace("_", "-"), set()).add(module)
    met = {name.split(".")[0] for source in SOURCES for name in imported(source)}
    names = [name.lower().replace("_", "-") for name in wanted]
    assert names and [name for name in names if name not in brought and not met & modules.get(name, set())] == []


def test_importing_the_package_reads_nothing_and_costs_nothing():
    program = ("import os, sys\nbefore = dict(os.environ)\nimport spineclue_v2, spineclue_v2.imageio.volume, spineclue_v2.plans\n"
               "assert dict(os.environ) == before\n"
               "heavy = {'torch', 'SimpleITK', 'scipy', 'sklearn', 'matplotlib', 'nnunetv2', 'ultralytics'} & set(sys.modules)\n"
               "assert not heavy, heavy\nassert 'SpineCLUE' in spineclue_v2.__all__")
    subprocess.run([sys.executable, "-c", program], check=True)
