"""What packaging has to compute; all that is static stands in `pyproject.toml`.

`planning/` and `dataset_conversion/` lie at the top of the repository and install inside `spineclue_v2`. The commands are the modules of
`spineclue_v2/cli`. In `pyproject.toml` both would be lists of names that somebody forgets to extend.
"""
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
MOVED = ("planning", "dataset_conversion")  # top-level folder `name` installs as `spineclue_v2.name`


def packages() -> list[str]:
    """`spineclue_v2` with its sub-packages, and the two top-level folders under their installed names."""
    found = find_packages(str(ROOT), include=["spineclue_v2", "spineclue_v2.*"])
    for name in MOVED:
        found += [f"spineclue_v2.{inner}" for inner in find_packages(str(ROOT), include=[name, f"{name}.*"])]
    return found


def console_scripts() -> list[str]:
    """One command per module of `spineclue_v2/cli`: no script without its module, no module without its script."""
    modules = sorted(path.stem for path in (ROOT / "spineclue_v2" / "cli").glob("[!_]*.py"))
    return [f"spineclue_{module} = spineclue_v2.cli._entry:{module}" for module in modules]


setup(packages=packages(), package_dir={f"spineclue_v2.{name}": name for name in MOVED},
      entry_points={"console_scripts": console_scripts()})
