"""Packaging: `planning/` and `dataset_conversion/` lie at the top of the repository and install inside `spineclue_v2`."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """The version has one place, `spineclue_v2/__init__.py`; importing it here would need the package."""
    text = (ROOT / "spineclue_v2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def packages() -> list[str]:
    """`spineclue_v2` with its sub-packages, and the two top-level folders under their installed names."""
    found = find_packages(include=["spineclue_v2", "spineclue_v2.*"])
    for name in ("planning", "dataset_conversion"):
        found += [f"spineclue_v2.{inner}" for inner in find_packages(include=[name, f"{name}.*"])]
    return found


def console_scripts() -> list[str]:
    """One command per module of `spineclue_v2/cli`: no script without its module, no module without its script."""
    modules = sorted(path.stem for path in (ROOT / "spineclue_v2" / "cli").glob("[!_]*.py"))
    return [f"spineclue_{module} = spineclue_v2.cli._entry:{module}" for module in modules]


setup(
    name="spineclue_v2",
    version=version(),
    description="Finds, segments and names every vertebra of a CT of any field of view (SpineCLUE, in the manner of nnU-Net v2)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    python_requires=">=3.10",
    packages=packages(),
    package_dir={"spineclue_v2.planning": "planning", "spineclue_v2.dataset_conversion": "dataset_conversion"},
    package_data={"spineclue_v2": ["py.typed", "weights/*"], "spineclue_v2.phantom": ["*.json", "*.csv"]},
    install_requires=[
        "torch>=2.6,!=2.9.*",                       # nnunetv2 excludes 2.9
        "torchvision",
        "nnunetv2>=2.8.1,<2.9",                     # signatures of its hooks change between minor versions
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.1",                 # first version with MoveChannelsTransform
        "acvl-utils>=0.2.6,<0.3",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "ultralytics>=8.4,<8.5",
        "segmentation_models_pytorch>=0.5,<0.7",    # 0.5: its decoders take a list of features
        "SimpleITK>=2.4",
        "nibabel>=5.0",
        "numpy>=1.26",
        "pandas>=2.0",                              # SpineResult.to_dataframe; nnunetv2 brings it anyway
        "scipy>=1.11",
        "scikit-learn>=1.4",
        "blosc2>=3.0",
        "connected-components-3d>=3.12",
        "matplotlib>=3.8",
        "tqdm>=4.60",
        "setuptools",                               # nnunetv2 imports distutils, which Python >= 3.12 has only through setuptools
    ],
    extras_require={
        "test": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.9", "build>=1.2", "distributed>=2024.8"],
        "dask": ["dask>=2024.8", "distributed>=2024.8"],
        "dicomseg": ["pydicom>=3.0", "highdicom>=0.23"],
        "docs": ["mkdocs>=1.6,<2"],
    },
    entry_points={"console_scripts": console_scripts()},
)
