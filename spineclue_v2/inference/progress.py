"""How far a run is: one bar over all cases that moves with the stages of each, and says how long the rest will take."""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

FIRST_GUESS = {"read": 1.0, "localize": 10.0, "centres": 1.0, "segment": 20.0, "identify": 1.0, "heights": 2.0, "report": 3.0,
               "hybrid_2d": 10.0, "hybrid_3d": 30.0}
"""Seconds of each step before any case is done; only their ratios count. Steps not named here take next to nothing."""
WORDS = {"read": "reading", "localize": "finding vertebrae", "centres": "following the row", "segment": "segmenting",
         "appearance": "looking", "ribs": "counting ribs", "geometry": "comparing gaps", "identify": "naming",
         "sacrum": "looking below", "heights": "measuring heights", "grade": "grading", "report": "writing"}


class RunProgress:
    """A tqdm bar over `count` cases on standard error; silent where that is no terminal, or `shown` is false.

    After each case the ratios of its steps are those that it took, so the estimate gets better. `listener` is called with the step in
    words and the share of the run that is done.
    """

    def __init__(self, count: int, shown: bool = True, listener: Callable[[str, float], object] | None = None):
        from tqdm import tqdm

        self._bar: Any = tqdm(total=float(count), disable=not (shown and sys.stderr.isatty()), unit="scan",
                              bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed} passed, {remaining} to go")
        self._count, self._done = count, 0
        self._seconds: Mapping[str, float] = FIRST_GUESS
        self._stages: Sequence[str] = ()
        self._name, self._step = "", ""
        self._listener = listener

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def begin(self, name: str, stages: Sequence[str]) -> None:
        """A case begins; `stages` are the steps that it will go through."""
        self._name, self._stages = name, stages
        self.step(stages[0])

    def step(self, stage: str, fraction: float = 0.0) -> None:
        """Step `stage` begins: fits the `progress` of a prediction, whose fraction is not used."""
        if stage not in self._stages:
            return
        at = self._stages.index(stage)
        total = sum(self._seconds.get(name, 0.0) for name in self._stages) or 1.0
        before = sum(self._seconds.get(name, 0.0) for name in self._stages[:at]) / total
        number = f"{self._done + 1}/{self._count} " if self._count > 1 else ""
        self._step = f"{number}{self._name}, {WORDS.get(stage, stage)}"
        self._bar.set_description_str(self._step, refresh=False)
        self._move(self._done + before)

    def end(self, seconds: Mapping[str, float] | None = None) -> None:
        """The case is done, in `seconds` per step, or has failed or was skipped (None)."""
        if seconds:
            self._seconds = seconds
        self._done += 1
        self._move(self._done)

    def _move(self, to: float) -> None:
        self._bar.n = min(to, float(self._count))
        self._bar.refresh()
        if self._listener is not None:
            self._listener(self._step, self._bar.n / self._count if self._count else 1.0)
