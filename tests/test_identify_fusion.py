"""Message fusion against a loop written from Eq. 7, with a missed vertebra, and learning phi; steps along the spine."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LEVEL_INDEX
from spineclue_v2.anatomy.vertebral_gaps import round_positions, vertebral_gaps
from spineclue_v2.stages.identify.fusion import MessageFusion, fit_phi, shift_matrix
from spineclue_v2.stages.identify.uncertainty import entropy


def eq7_by_loop(rows, uncertainty, positions, theta, hops, reach, own):
    n, levels = len(rows), len(rows[0])
    rows = [[float(p) for p in row] for row in rows]
    for _ in range(hops):
        new = []
        for i in range(n):
            message = [0.0] * levels
            for j in range(n):
                offset = positions[j] - positions[i]
                if abs(offset) > reach or (i == j and not own):
                    continue
                distance = 1 if i == j else abs(offset)
                u = 1 - float(uncertainty[j]) / math.log(levels)
                for a in range(levels):
                    if 0 <= a - offset < levels:
                        message[a - offset] += u * rows[j][a] / distance
            row = [c + theta * m for c, m in zip(rows[i], message, strict=True)]
            new.append([c / sum(row) for c in row])
        rows = new
    return torch.tensor(rows)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("theta", "hops", "neighbours"), [(0.1, 3, 7), (0.5, 1, 3), (0.2, 4, 5)])
def test_equals_the_formula(theta, hops, neighbours, own):
    rows = torch.randn(8, 24, generator=torch.Generator().manual_seed(0)).softmax(1)
    positions = torch.tensor([0, 1, 2, 4, 5, 6, 9, 10])
    fusion = MessageFusion(theta, hops, neighbours, self_message=own)
    expected = eq7_by_loop(rows, entropy(rows), positions.tolist(), theta, hops, neighbours // 2, own)
    torch.testing.assert_close(fusion(rows, entropy(rows), positions).detach(), expected, atol=1e-5, rtol=1e-4)


def sure(level, confidence=0.9):
    row = torch.full((24,), (1 - confidence) / 23)
    row[LEVEL_INDEX[level]] = confidence
    return row


def test_a_missed_vertebra_does_not_shift_the_messages():
    """T10, T11, (T12 missed), an unsure one, L2, L3: neighbours at their true places tell L1; by list position half say T12."""
    rows = torch.stack([sure("T10"), sure("T11"), torch.full((24,), 1 / 24), sure("L2"), sure("L3")])
    gaps = np.array([26.0, 60.0, 33.0, 34.0])
    centres = np.stack([np.zeros(5), np.zeros(5), -np.concatenate([[0.0], np.cumsum(gaps)])], axis=1)
    positions = torch.as_tensor(round_positions(vertebral_gaps(centres)))
    assert positions.tolist() == [0, 1, 3, 4, 5]
    fusion = MessageFusion(theta=1.0)
    assert int(fusion(rows, entropy(rows), positions)[2].argmax()) == LEVEL_INDEX["L1"]
    by_list = fusion(rows, entropy(rows), torch.arange(5))[2].detach()
    assert by_list[LEVEL_INDEX["T12"]] == pytest.approx(float(by_list[LEVEL_INDEX["L1"]]), rel=0.2)     # two say each


def test_uncertain_neighbours_weigh_less():
    rows = torch.stack([sure("T5", 0.95), torch.full((24,), 1 / 24), sure("T9", 0.3)])
    fused = MessageFusion()(rows, entropy(rows), torch.arange(3))[1]
    assert fused[LEVEL_INDEX["T6"]] > fused[LEVEL_INDEX["T8"]] > fused[LEVEL_INDEX["C3"]]
    ignorant = torch.stack([torch.full((24,), 1 / 24), sure("T6", 0.5)])
    untouched = MessageFusion()(ignorant, entropy(ignorant), torch.arange(2))[1]
    torch.testing.assert_close(untouched, ignorant[1], atol=1e-5, rtol=1e-4)


def test_padding_sends_nothing():
    rows = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(1)).softmax(-1)
    positions = torch.arange(4).expand(2, 4)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    fusion = MessageFusion()
    batch = fusion(rows, entropy(rows), positions, present)
    alone = fusion(rows[1, :2], entropy(rows[1, :2]), positions[1, :2])
    torch.testing.assert_close(batch[1, :2], alone)


def test_learned_phi_lowers_cross_entropy_and_finds_a_bias():
    """A classifier that calls T12 'T11' with confidence: phi of the neighbours learns to contradict it."""
    def scan(first):
        targets = torch.arange(first, first + 6)
        rows = torch.stack([sure("T11", 0.7) if t == LEVEL_INDEX["T12"] else sure("C1").roll(int(t)) for t in targets])
        return rows, entropy(rows), torch.arange(6), targets
    scans = [scan(first) for first in range(13, 18)]
    fusion = MessageFusion(theta=0.3)
    history = fit_phi(fusion, scans, epochs=150, learning_rate=0.05, anchor=0.01)
    assert history[-1] < 0.8 * history[0]
    rows, uncertainty, positions, targets = scans[2]
    assert torch.equal(fusion(rows, uncertainty, positions).argmax(1), targets)
    assert (fusion.phi >= 0).all()
    assert fit_phi(fusion, []) == []


def test_shift_matrix_moves_a_neighbour_s_level_to_the_target_s():
    assert int((sure("T8", 1.0) @ shift_matrix(2)).argmax()) == LEVEL_INDEX["T6"]
    assert int((sure("T8", 1.0) @ shift_matrix(-1)).argmax()) == LEVEL_INDEX["T9"]
    assert float((sure("C1", 1.0) @ shift_matrix(1)).sum()) == 0.0
    with pytest.raises(ValueError, match="odd"):
        MessageFusion(neighbours=4)


@settings(max_examples=40, deadline=None)
@given(st.integers(7, 20), st.integers(2, 6), st.floats(0.0, 6.28), st.integers(0, 2**31 - 1))
def test_steps_see_a_missed_one_anywhere_in_any_pose(n, missing, angle, seed):
    generator = np.random.default_rng(seed)
    gaps = 25.0 * 1.03 ** np.arange(n - 1) * generator.uniform(0.95, 1.05, n - 1)
    if gaps.max() > 45:
        gaps *= 45 / gaps.max()
    centres = np.stack([np.zeros(n), np.zeros(n), -np.concatenate([[0.0], np.cumsum(gaps)])], axis=1)
    missing = min(missing, n - 2)
    kept = np.delete(centres, missing, axis=0)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    expected = np.delete(np.arange(n), missing)
    assert round_positions(vertebral_gaps(kept @ turn.T + [5.0, -7.0, 900.0])).tolist() == expected.tolist()


def test_steps_of_one_gap_use_anatomical_bounds():
    two = np.array([[0.0, 0, 0], [0, 0, -90.0]])
    assert round_positions(vertebral_gaps(two)).tolist() == [0, 2]
    assert round_positions(vertebral_gaps(two[:1])).tolist() == [0]
    assert round_positions(vertebral_gaps(np.array([[0.0, 0, 0], [0, 0, -30.0]]))).tolist() == [0, 1]
