"""What is known of the spine itself: level names and their order, MR structures, shapes of masks, spacing between vertebrae."""
from .levels import (
    ANATOMICAL_ORDER,
    CERVICAL,
    EMITTING_LEVEL,
    IGNORE_NAME,
    IGNORED,
    LABEL_OF_NAME,
    LEVEL_INDEX,
    LEVEL_INDEX_OF_LABEL,
    LEVELS,
    LUMBAR,
    NAME_OF_LABEL,
    NUM_LEVELS,
    ORDER_INDEX,
    THORACIC,
    VERTEBRA_LABELS,
    colour,
    dataset_labels,
    level_distance,
    region,
)

__all__ = [
    "ANATOMICAL_ORDER", "CERVICAL", "EMITTING_LEVEL", "IGNORED", "IGNORE_NAME", "LABEL_OF_NAME", "LEVELS", "LEVEL_INDEX",
    "LEVEL_INDEX_OF_LABEL", "LUMBAR", "NAME_OF_LABEL", "NUM_LEVELS", "ORDER_INDEX", "THORACIC", "VERTEBRA_LABELS",
    "colour", "dataset_labels", "level_distance", "region",
]
