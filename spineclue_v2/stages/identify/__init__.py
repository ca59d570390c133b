"""Stage 3: the shape classifier on mask crops, message fusion along the spine, and the sequence decoder over all classifiers."""
from ...plans.data import Data
from ..base import Stage
from .plan import IdentifyNetwork, IdentifyRun

_HERE = __name__
STAGE = Stage("identify", "CT", f"{_HERE}.predictor:predict", Data, IdentifyNetwork, IdentifyRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:IdentifyTrainer",
              headline=("data.spacing_mm", "network.depth", "network.crop_size", "run.batch_size"), names_masks=True, needs_scan=False,
              graphs=f"{_HERE}.network:graphs")
