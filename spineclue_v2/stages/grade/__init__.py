"""Heights of the vertebral bodies, which need no network, and stage `grade`: Genant grades by a contrastive network."""
from ...plans.data import Data
from ..base import Stage
from .plan import GradeNetwork, GradeRun

_HERE = __name__
HEIGHTS = Stage("heights", "CT", f"{_HERE}.body_heights:predict", required=False)
STAGE = Stage("grade", "CT", f"{_HERE}.predictor:predict", Data, GradeNetwork, GradeRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:GradeTrainer",
              headline=("network.crop_size", "network.features", "run.batch_size"), required=False)
