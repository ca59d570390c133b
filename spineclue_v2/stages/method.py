"""What decides a stage's answers besides its plan and its weights: the numbers that stand in its code.

Clustering, level assignment and heights have some seventy of them. They belong to a version of the package and are no planned values; a
fingerprint of them stands in checkpoints and in the record of every prediction, so that two outputs can be told to be of one method.
"""
from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

from .base import Stage

SHARED = ("spineclue_v2.anatomy.vertebral_gaps", "spineclue_v2.anatomy.morphology", "spineclue_v2.preprocessing.resampling",
          "spineclue_v2.preprocessing.moving_grids", "spineclue_v2.preprocessing.augmentation")

# An assignment to capitals at the start of a line; it goes on in indented lines and closing brackets.
ASSIGNMENT = re.compile(r"^[A-Z_][A-Za-z0-9_, ]*(?::[^=\n]*)?=(?!=).*(?:\n(?:[ \t)\]}].*|(?=\n)))*", re.MULTILINE)


@cache
def method_fingerprint(stage: Stage) -> str:
    """sha256, first 16 hex digits, over the upper-case literals of the modules of the stage's folder and of those it shares."""
    module = stage.predictor.partition(":")[0]
    found = {}
    for name in (module.rpartition(".")[0] or module, *SHARED):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        for file in sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]:
            found[f"{name}/{file.name}"] = constants_of(file.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def constants_of(source: str) -> dict[str, str]:
    """Module-level names in capitals -> the source of their values."""
    found = {}
    for node in _assignments(source):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        names = [entry.id for target in targets for entry in ast.walk(target) if isinstance(entry, ast.Name) and entry.id.isupper()]
        if names and value is not None:
            found[", ".join(names)] = ast.unparse(value)
    return found


def _assignments(source: str) -> list[ast.stmt]:
    """The statements that assign to capitals, among others: parsing all of a module takes ten times as long."""
    found = [statement[0] for statement in ASSIGNMENT.finditer(source)]
    try:
        if not any(statement.count('"""') % 2 for statement in found):
            return ast.parse("\n".join(found)).body
    except SyntaxError:
        pass
    return ast.parse(source).body       # a text of several lines looks like code
