"""The exam's cases: a frozen list (exam.json) of seeds and switches, each a synthetic scan nobody trains on."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spineclue_v2.phantom import PhantomCase, sample

LIST = Path(__file__).with_name("exam.json")
SEEDS = range(9000, 100000)
"""Exam seeds; training seeds start at 100001 (seed * 100000 + case)."""


@dataclass(frozen=True)
class ExamCase:
    """One question: `make()` paints it. `what` are keywords of `spineclue_v2.phantom.sample`."""

    name: str
    group: str
    seed: int
    what: dict[str, Any] = field(default_factory=dict)

    def make(self) -> PhantomCase:
        """The scan with its truth; the same voxels at every call."""
        return sample(self.seed, **self.what)


def load(path: Path = LIST) -> tuple[int, list[ExamCase]]:
    """Version of the list and its cases; ValueError when a seed lies outside SEEDS or a name or seed comes twice."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    cases = [ExamCase(c["name"], c["group"], int(c["seed"]), c["what"]) for c in content["cases"]]
    wrong = [c.name for c in cases if c.seed not in SEEDS]
    if wrong or len({c.seed for c in cases}) < len(cases) or len({c.name for c in cases}) < len(cases):
        raise ValueError(f"{path}: seeds must differ and lie in {SEEDS.start}..{SEEDS.stop - 1}, names must differ; see {wrong[:3]}")
    return int(content["version"]), cases
