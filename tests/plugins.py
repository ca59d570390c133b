"""Packages of other people, as small as they can be, and the example package, found by this process or by commands."""
from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spineclue_v2.stages import registry

EXAMPLE = Path(__file__).parent / "data" / "extension"

STAGE = """
from spineclue_v2.plans.data import Data
from spineclue_v2.stages.base import Stage
from spineclue_v2.stages.appearance.plan import AppearanceNetworkPlan, AppearanceRun

def stage(name="{name}", modality="CT", predictor="{package}:predict", **parts):
    return Stage(name, modality, predictor, **parts)

LEARNT = dict(data=Data, network=AppearanceNetworkPlan, run=AppearanceRun, builder="{package}:build", trainer="{package}:Trainer")
"""


def write_package(site: Path, package: str, source: str, stages: str = "", trainers: str = "", planners: str = "") -> None:
    """A package of one module below `site`, as pip would leave it; its entry points as "NAME=OBJECT NAME=OBJECT"."""
    (site / f"{package}.py").write_text(source)
    described = site / f"{package}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for group, points in (("stages", stages), ("trainers", trainers), ("planners", planners)):
        lines += [f"[spineclue_v2.{group}]", *(point.replace("=", f" = {package}:") for point in points.split())]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install_example(site: Path, scratch: Path) -> Path:
    """The example package built by setuptools from its own pyproject.toml into `site`: no network, no pip, nothing left in the checkout."""
    shutil.copytree(EXAMPLE, scratch)
    site.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build", "--build-lib", str(site),
                    "egg_info", "--egg-base", str(site)], cwd=scratch, check=True, capture_output=True)
    return site


@contextmanager
def found_in(site: Path) -> Iterator[None]:
    """The packages of `site` are installed for this process."""
    def forget() -> None:
        registry.stages.cache_clear()
        registry._find_stages.cache_clear()

    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        forget()
        try:
            yield
        finally:
            forget()
            for name in set(sys.modules) - before:
                if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).is_relative_to(site):
                    del sys.modules[name]
