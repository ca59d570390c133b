"""The appearance classifier: levels from what lies around a vertebra in the CT: ribs, sacrum, skull base, shoulders, discs.

A small network on a wider and coarser crop than the mask's. It is no part of the paper's method. Unlike the shape classifier it knows
"not a vertebra".
"""
from ...plans.data import Data
from ..base import Stage
from .plan import AppearanceNetworkPlan, AppearanceRun

_HERE = __name__
STAGE = Stage("appearance", "CT", f"{_HERE}.predictor:predict", Data, AppearanceNetworkPlan, AppearanceRun,
              f"{_HERE}.network:network_of_plans", f"{_HERE}.trainer:AppearanceTrainer",
              headline=("network.spacing_mm", "network.crop_size", "run.batch_size"), required=False, names_masks=True,
              graphs=f"{_HERE}.network:graphs")
