"""Message fusion among neighbouring vertebrae (SpineCLUE Eq. 7), with learned phi.

    C_i(t + 1) = (C_i(t) + theta * w_i(t)) / lambda,   w_i = sum_j (1 / dis(i, j)) * u_j * C_j(t) * phi_(j - i)

Decisions: the sum runs over j != i (1 / dis is infinite there; `self_message` sets dis(i, i) = 1 instead); dis and the offset
j - i are whole steps along the spine and not list positions, so that a missed vertebra does not shift the messages;
u_j = 1 - U_j / log(levels) falls with entropy, so that uncertain neighbours weigh less; lambda makes the row sum to 1.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...anatomy import NUM_LEVELS
from ...errors import InputError


def shift_matrix(offset: int, levels: int = NUM_LEVELS) -> Tensor:
    """(levels, levels) phi of a neighbour `offset` steps further down: row = its level a, column = the target's level a - offset.

    A level that would leave the table gives no message (its row is 0).
    """
    return torch.diag(torch.ones(levels - abs(offset)), -offset)


class MessageFusion(nn.Module):
    """Eq. 7 over one scan or a padded batch of scans.

    Args:
        theta: strength of the messages.
        hops: rounds t.
        neighbours: odd count including the target; 7 means offsets -3..+3.
        self_message: the target sends itself a message with dis = 1.
        levels: columns of the probabilities.
    """

    def __init__(self, theta: float = 0.1, hops: int = 3, neighbours: int = 7, self_message: bool = False,
                 levels: int = NUM_LEVELS):
        super().__init__()
        if neighbours < 1 or neighbours % 2 == 0:
            raise ValueError(f"neighbours counts the target and must be odd, got {neighbours}")
        self.theta, self.hops, self.reach, self.self_message = theta, hops, neighbours // 2, self_message
        self.phi = nn.Parameter(torch.stack([shift_matrix(k, levels) for k in range(-self.reach, self.reach + 1)]))

    def forward(self, probabilities: Tensor, entropy: Tensor, positions: Tensor, present: Tensor | None = None) -> Tensor:
        """Fuse; leading dimensions (a batch of scans) are allowed.

        Args:
            probabilities: (..., n, levels), rows sum to 1.
            entropy: (..., n) in nats.
            positions: (..., n) whole steps along the spine (`vertebral_gaps.round_positions`).
            present: (..., n) bool, False for padding.

        Returns:
            (..., n, levels), rows sum to 1.
        """
        levels = probabilities.shape[-1]
        offset = positions[..., None, :] - positions[..., :, None]                   # [i, j] = steps from i down to j
        weight = torch.where(offset == 0, 0.0, 1.0 / offset.abs().clamp(min=1)).to(probabilities)
        if self.self_message:
            weight = weight + torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        weight = weight * (1.0 - entropy / math.log(levels)).clamp(min=0.0)[..., None, :]
        if present is not None:
            weight = weight * present[..., None, :]
        chosen = torch.stack([weight * (offset == k) for k in range(-self.reach, self.reach + 1)], dim=-3)
        phi, rows = self.phi.clamp(min=0.0), probabilities
        for _ in range(self.hops):
            messages = chosen @ (rows[..., None, :, :] @ phi)                        # (..., offsets, n, levels)
            rows = rows + self.theta * messages.sum(dim=-3)
            rows = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        return rows


def fusion_with(theta: float, hops: int, neighbours: int, phi: Tensor | None = None) -> MessageFusion:
    """Fusion with these settings and a learned `phi` (offsets, levels, levels), which may know fewer or more neighbours.

    Offsets that `phi` does not know keep their shift matrices; those beyond `neighbours` are left out.
    """
    fusion = MessageFusion(theta, hops, neighbours)
    if phi is None:
        return fusion
    levels = fusion.phi.shape[-1]
    if phi.ndim != 3 or tuple(phi.shape[1:]) != (levels, levels) or phi.shape[0] % 2 == 0:
        raise InputError(f"The checkpoint's fusion matrices have shape {tuple(phi.shape)}; expected (odd number of neighbours, {levels}, "
                         f"{levels}). Train stage identify again.")
    shared, known = min(fusion.reach, phi.shape[0] // 2), phi.shape[0] // 2
    with torch.no_grad():
        fusion.phi[fusion.reach - shared:fusion.reach + shared + 1] = phi[known - shared:known + shared + 1].cpu()
    return fusion


def fit_phi(fusion: MessageFusion, scans: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], epochs: int = 60,
            learning_rate: float = 0.01, anchor: float = 1.0) -> list[float]:
    """Learn phi in place by the cross entropy of fused rows, all scans in one padded batch.

    Args:
        fusion: starts from its present phi (the shift matrices).
        scans: per scan (probabilities (n, levels), entropy (n,), positions (n,), targets (n,)); out-of-fold outputs, else
            phi learns how sure the classifier was on what it had memorised. Negative targets are left out.
        epochs: Adam steps.
        learning_rate: of Adam.
        anchor: weight of the mean squared distance to the starting phi: levels that no scan shows keep their shift.

    Returns:
        The cross entropy per epoch (the first is that of the starting phi).
    """
    if not scans:
        return []
    pad = nn.utils.rnn.pad_sequence
    probabilities, entropy, positions = (pad([scan[k] for scan in scans], batch_first=True) for k in range(3))
    targets = pad([scan[3] for scan in scans], batch_first=True, padding_value=-1)
    present = pad([torch.ones(len(scan[0]), dtype=torch.bool) for scan in scans], batch_first=True)
    known = targets >= 0
    start = fusion.phi.detach().clone()
    optimizer = torch.optim.Adam([fusion.phi], lr=learning_rate)
    history = []
    for _ in range(epochs):
        fused = fusion(probabilities, entropy, positions, present)[known]
        own = fused.gather(1, targets[known][:, None])
        cross_entropy = -own.clamp(min=1e-9).log().mean()
        optimizer.zero_grad()
        (cross_entropy + anchor * (fusion.phi - start).square().mean()).backward()
        optimizer.step()
        history.append(float(cross_entropy.detach()))
    with torch.no_grad():
        fusion.phi.clamp_(min=0.0)
    return history
