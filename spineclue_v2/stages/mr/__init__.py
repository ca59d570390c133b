"""SSHSNet for MR: two 2D branches that supervise each other (hybrid_2d), and a 3D network that sees their features (hybrid_3d)."""
from ...plans.data import MRData
from ..base import Stage
from .plan import Hybrid2DNetwork, Hybrid2DRun, Hybrid3DNetwork, Hybrid3DRun

_HERE = __name__
HYBRID_2D = Stage("hybrid_2d", "MR", f"{_HERE}.predictor:predict_hybrid_2d", MRData, Hybrid2DNetwork, Hybrid2DRun,
                  f"{_HERE}.network:network_2d_of_plans", f"{_HERE}.trainer:Hybrid2DTrainer",
                  headline=("data.spacing_mm", "data.classes", "network.encoder", "network.crop_size", "run.batch_size",
                            "run.unlabelled_batch_size"),
                  replaced_by="hybrid_3d")
HYBRID_3D = Stage("hybrid_3d", "MR", f"{_HERE}.predictor:predict_hybrid_3d", MRData, Hybrid3DNetwork, Hybrid3DRun,
                  f"{_HERE}.network:network_3d_of_plans", f"{_HERE}.trainer:Hybrid3DTrainer",
                  headline=("network.patch_size", "network.context", "network.width", "network.attention_stride", "run.batch_size"),
                  required=False)
