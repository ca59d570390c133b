"""Body centres: heat maps of the middles of the vertebral bodies along the row that localize found.

A detector of slices takes two bodies for one, or one for two, where voxels are coarse or end plates are worn. This stage reads the column
as a whole, in 3D and with its neighbours in view: a small U-Net regresses a heat map of the body centres (Payer et al., 2020), the best
chain of its peaks is the row, and what localize found is held against it. It is no part of SpineCLUE's method.
"""
from ...plans.data import Data
from ..base import Stage
from .plan import CentresNetwork, CentresRun

_HERE = __name__
STAGE = Stage("centres", "CT", f"{_HERE}.predictor:predict", Data, CentresNetwork, CentresRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:CentresTrainer", headline=("data.spacing_mm", "network.patch_size", "run.batch_size"), required=False,
              plan="spineclue_v2.planning.centres:plan_centres", graphs=f"{_HERE}.network:graphs")
