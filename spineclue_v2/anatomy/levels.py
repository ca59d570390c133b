"""Levels of the spine: names, order, label values, regions. The single place that numbers vertebrae.

Label values are VerSe's (Sekuboyina et al. 2021): C1..C7 = 1..7, T1..T12 = 8..19, L1..L5 = 20..24, L6 = 25,
sacrum 26, coccyx 27, T13 = 28. Arrays of levels ("level index") count the 24 regular levels C1..L5 from 0.
"""
from __future__ import annotations

CERVICAL = tuple(f"C{i}" for i in range(1, 8))
THORACIC = tuple(f"T{i}" for i in range(1, 13))
LUMBAR = tuple(f"L{i}" for i in range(1, 6))
LEVELS = CERVICAL + THORACIC + LUMBAR
"""The 24 regular levels in cranio-caudal order; position = level index."""

ANATOMICAL_ORDER = CERVICAL + THORACIC + ("T13",) + LUMBAR + ("L6",)
"""All 26 vertebra names, variants included, in cranio-caudal order."""

LABEL_OF_NAME = {name: i + 1 for i, name in enumerate(LEVELS)} | {"L6": 25, "sacrum": 26, "coccyx": 27, "T13": 28}
NAME_OF_LABEL = {label: name for name, label in LABEL_OF_NAME.items()}
IGNORE_NAME, IGNORED = "ignore", 255
"""nnU-Net's label for voxels that nobody annotated, and the value that stands for it in our label maps: no loss, metric or statistic
counts such voxels, neither as vertebra nor as background."""

VERTEBRA_LABELS = tuple(LABEL_OF_NAME[name] for name in ANATOMICAL_ORDER)
"""Label values of the 26 vertebra names, cranio-caudal."""

LEVEL_INDEX = {name: i for i, name in enumerate(LEVELS)}
LEVEL_INDEX_OF_LABEL = {LABEL_OF_NAME[name]: i for i, name in enumerate(LEVELS)}
NUM_LEVELS = len(LEVELS)

EMITTING_LEVEL = {name: name for name in LEVELS} | {"T13": "T12", "L6": "L5"}
"""Which regular level's evidence a variant starts from (networks know 24 classes; variants exist in the decoder)."""

ORDER_INDEX = {name: i for i, name in enumerate(ANATOMICAL_ORDER)}


def region(name: str) -> str:
    """'cervical', 'thoracic' or 'lumbar' of a vertebra name; KeyError for anything else."""
    if name not in ORDER_INDEX:
        raise KeyError(f"'{name}' is no vertebra; known: {', '.join(ANATOMICAL_ORDER)}")
    return {"C": "cervical", "T": "thoracic", "L": "lumbar"}[name[0]]


def dataset_labels() -> dict[str, int]:
    """`labels` of a dataset.json with all of 0..28 named (nnU-Net wants consecutive values)."""
    return {"background": 0} | {NAME_OF_LABEL[value]: value for value in sorted(NAME_OF_LABEL)}


def level_distance(first: str, second: str) -> int:
    """Levels from `first` down to `second` in the regular numbering (T13 counts as T12, L6 as L5 plus one each)."""
    def position(name: str) -> int:
        return LEVEL_INDEX[EMITTING_LEVEL[name]] + (name in ("T13", "L6"))
    return position(second) - position(first)


# One colour per name for pictures and colour tables (RGB 0..255): hue runs along each region so that
# neighbours differ clearly and the regions are told apart at a glance.
def colour(name: str) -> tuple[int, int, int]:
    """RGB colour (0..255) of a structure name, stable across figures and colour tables."""
    import colorsys

    if name in ("sacrum", "coccyx"):
        return (170, 170, 170)
    start, span = {"C": (0.50, 0.28), "T": (0.02, 0.42), "L": (0.78, 0.20)}[name[0]]
    count = {"C": 7, "T": 13, "L": 6}[name[0]]
    number = int(name[1:]) - 1
    hue = (start + span * number / count) % 1.0
    value = 1.0 if number % 2 == 0 else 0.72
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)
