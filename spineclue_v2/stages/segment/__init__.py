"""Stage 2: the mask of each located vertebra, from a CT crop and a heat map at its centre; and the first sacral segment, by its network."""
from ...plans.data import Data
from ..base import Stage
from .plan import SegmentNetwork, SegmentRun

_HERE = __name__
STAGE = Stage("segment", "CT", f"{_HERE}.spine:predict", Data, SegmentNetwork, SegmentRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:SegmentTrainer",
              headline=("data.spacing_mm", "network.architecture", "network.crop_size", "network.features", "run.batch_size"),
              graphs=f"{_HERE}.network:graphs")
SACRUM = Stage("sacrum", "CT", f"{_HERE}.sacrum:predict", required=False)
