"""The geometry classifier: levels from where the vertebrae lie, never from a pixel.

A small transformer over the body centres of a scan, trained on landmark sets: those of the dataset, and spine curves of the phantom.
"""
from ...plans.data import Data
from ..base import Stage
from .plan import GeometryNetworkPlan, GeometryRun

_HERE = __name__
STAGE = Stage("geometry", "CT", f"{_HERE}.predictor:predict", Data, GeometryNetworkPlan, GeometryRun, f"{_HERE}.network:network_of_plans",
              f"{_HERE}.trainer:GeometryTrainer",
              headline=("network.width", "network.members", "run.batch_size"),
              required=False, names_masks=True, needs_scan=False, shipped_stands_in=True,
              graphs=f"{_HERE}.network:graphs")
