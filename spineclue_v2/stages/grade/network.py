"""Network of stage `grade`: a 3D SE-ResNet with a projection on the unit sphere and a linear classifier of four grades.

Wei et al. (arXiv 2208.10698) use SE-ResNet50. The encoder is dynamic-network-architectures' residual encoder with squeeze and
excitation, in basic blocks: its widths are the plan's, so that a laptop can train one too (MONAI's SEResNet has them fixed).
"""
from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...plans.plans import Plans
from .plan import GradeNetwork

GRADES = 4


class GradeNet(nn.Module):
    """Crops (B, windows + 1, z, y, x), CT channels 0..1 and mask last, to four logits."""

    def __init__(self, network: GradeNetwork) -> None:
        super().__init__()
        from dynamic_network_architectures.building_blocks.residual import BasicBlockD
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

        stages, width = len(network.features), network.features[-1]
        # Batch norm: the norm of single instances and averaging over space would leave little of what tells grades apart.
        self.encoder = ResidualEncoder(
            len(network.windows_hu) + 1, stages, network.features, nn.Conv3d, [3] * stages, [2] * stages, network.blocks, conv_bias=False,
            norm_op=nn.BatchNorm3d, norm_op_kwargs={}, nonlin=nn.ReLU, nonlin_kwargs={"inplace": True}, block=BasicBlockD,
            squeeze_excitation=True)
        self.projection = nn.Linear(width, network.projection_dim)
        self.classifier = nn.Linear(width, GRADES)

    def features(self, x: Tensor) -> Tensor:
        """(B, width): the encoder's last maps averaged over space."""
        return self.encoder(x).mean(dim=(2, 3, 4))

    def project(self, features: Tensor) -> Tensor:
        """Unit vectors (B, projection_dim) for the contrastive loss."""
        return F.normalize(self.projection(features).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def probabilities(self, x: Tensor) -> Tensor:
        """(B, 4), sums 1."""
        return self.forward(x).float().softmax(dim=1)


def build_network(network: GradeNetwork, windows: int) -> GradeNet:  # noqa: ARG001 - as in every stage
    """The plan's network with fresh weights. Its CT windows are its own, so the number of the stage's `windows` changes nothing."""
    return GradeNet(network)


def network_of_plans(plans: Plans) -> GradeNet:
    """The network of the stage as `plans` has it, with fresh weights."""
    plan = plans.stage("grade")
    return build_network(plan.network, len(plan.data.windows_hu))
