"""Stage 1: a slice detector over sagittal and coronal slices, its boxes clustered into vertebrae."""
from ...plans.data import Data
from ..base import Stage
from .plan import LocalizeNetwork, LocalizeRun

_HERE = __name__
STAGE = Stage("localize", "CT", f"{_HERE}.predictor:predict", Data, LocalizeNetwork, LocalizeRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:LocalizeTrainer",
              headline=("data.spacing_mm", "network.scale", "network.slice_size", "run.slice_gap_mm", "run.batch_size"),
              graphs=f"{_HERE}.network:graphs")
