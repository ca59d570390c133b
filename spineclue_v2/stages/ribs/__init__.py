"""The ribs classifier: levels from how far bone reaches to both sides of a body: ribs, transverse processes, the wings of the sacrum.

Thoracic vertebrae carry ribs and the others do not, C1 is wide and C7 wider than its neighbours above: what a radiologist counts from.
Bone that is connected with the vertebra is followed outwards on a coarse grid, and a linear classifier reads how far it comes, how much
of it there is, and where it runs. It is no part of SpineCLUE's method.
"""
from ...plans.data import Data
from ..base import Stage
from .plan import RibsNetwork, RibsRun

_HERE = __name__
STAGE = Stage("ribs", "CT", f"{_HERE}.predictor:predict", Data, RibsNetwork, RibsRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:RibsTrainer", headline=("data.spacing_mm", "network.thresholds_hu", "run.batch_size"), required=False,
              names_masks=True, plan="spineclue_v2.planning.ribs:plan_ribs", graphs=f"{_HERE}.network:graphs")
