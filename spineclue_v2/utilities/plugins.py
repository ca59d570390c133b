"""What installed packages add through entry points: finding it, loading it, and saying whose it is."""
from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from ..errors import InputError

OWN_PACKAGE = "spineclue_v2"


def find_points(group: str) -> list[EntryPoint]:
    """Entry points of `group` by name, in the same order on every machine; no package is imported for it."""
    return sorted(entry_points(group=group), key=lambda point: (point.name, point.value))


def describe_origin(point: EntryPoint) -> str:
    """`module:name` of an entry point and the package that declares it, for messages."""
    return point.value if point.dist is None else f"{point.value} of package {point.dist.name} {point.dist.version}"


def load_point(point: EntryPoint, what: str) -> Any:
    """What an entry point names; InputError, whatever the foreign package does at its import."""
    try:
        return point.load()
    except Exception as error:
        raise InputError(f"{what} '{point.name}' ({describe_origin(point)}) cannot be imported ({type(error).__name__}: "
                         f"{' '.join(str(error).split())}); repair or uninstall that package.") from error


def load_named(group: str, name: str, what: str) -> Any:
    """What the entry point `name` of `group` names, None where there is none; InputError for two of that name."""
    points = [point for point in find_points(group) if point.name == name]
    if len(points) > 1:
        raise InputError(f"Two {what}s are called '{name}' ({' and '.join(map(describe_origin, points))}); uninstall one of the packages, "
                         f"or rename one in its entry points {group}.")
    return load_point(points[0], what.capitalize()) if points else None


def package_of(kind: type) -> str:
    """Top-level module that a class comes from; empty for our own."""
    package = kind.__module__.partition(".")[0]
    return "" if package == OWN_PACKAGE else package


def is_importable(package: str) -> bool:
    """Whether a top-level package of that name is installed; it is not imported."""
    # What runs as a script is `__main__`, of which find_spec knows nothing.
    return package in sys.modules or (package.isidentifier() and find_spec(package) is not None)
