"""Reasons of a numbering."""
import numpy as np

from spineclue_v2.anatomy import LEVEL_INDEX, NUM_LEVELS
from spineclue_v2.stages.base import Evidence
from spineclue_v2.stages.identify.plan import Penalties
from spineclue_v2.stages.identify.reasons import reasons

GAPS = np.ones(2)


def sure_of(*levels: str) -> np.ndarray:
    logs = np.full((len(levels), NUM_LEVELS + 1), -8.0)
    for row, level in zip(logs, levels, strict=True):
        row[LEVEL_INDEX[level]] = -0.01
    return logs


def test_landmarks_and_what_each_classifier_reads_alone():
    landmarks = np.array([[np.nan, 0.1], [0.2, 0.1], [0.97, 0.0]])
    evidence = {"shape": Evidence(sure_of("L2", "L3", "L4")), "appearance": Evidence(sure_of("L3", "L4", "L5"), landmarks=landmarks)}
    assert reasons(evidence, ("L3", "L4", "L5"), GAPS, Penalties()) == {
        "landmarks": ["sacrum below L5 (0.97)"], "alone": ["shape: L2 to L4, 3 of 3 differently", "appearance: L3 to L5"]}


def test_a_dropped_detection_has_no_landmark_and_does_not_count():
    landmarks = np.array([[np.nan, 0.9], [0.0, 0.2], [0.0, 0.0]])
    evidence = {"appearance": Evidence(sure_of("C1", "C2", "C3"), landmarks=landmarks)}
    assert reasons(evidence, (None, "C2", "C3"), GAPS, Penalties()) == {"landmarks": [], "alone": ["appearance: C1 to C3"]}
    assert reasons(evidence, ("C1", "C2", "C3"), GAPS, Penalties())["landmarks"] == ["skull base above C1 (0.90)"]
