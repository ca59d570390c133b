"""Losses of identify against loops written from the formulas, and their gradients."""
from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.stages.identify import losses
from spineclue_v2.training.losses import supervised_contrastive


def contrastive_by_loop(z, labels, temperature, form):
    total, anchors = 0.0, 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        denominator = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        shares = [math.exp(float(z[i] @ z[p]) / temperature) / denominator for p in positives]
        if form == "in":
            total += -math.log(sum(shares) / len(shares))
        else:
            total += -sum(math.log(share) for share in shares) / len(shares)
        anchors += 1
    return total / anchors


@pytest.mark.parametrize("form", ["in", "out"])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_contrastive_equals_the_formula(form, temperature):
    torch.manual_seed(1)
    z = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 7])
    expected = contrastive_by_loop(z.float().double(), labels, temperature, form)
    assert float(supervised_contrastive(z, labels, temperature, form)) == pytest.approx(expected, rel=1e-5)


def test_the_two_contrastive_forms_differ_and_in_is_the_smaller():
    """Jensen: the log of a mean is at least the mean of logs."""
    torch.manual_seed(2)
    z = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    inside = supervised_contrastive(z, labels, form="in")
    assert inside < supervised_contrastive(z, labels, form="out") - 0.1


def test_contrastive_falls_when_trained_and_survives_a_batch_without_positives():
    torch.manual_seed(3)
    raw = torch.randn(8, 4, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    optimizer = torch.optim.SGD([raw], lr=0.5)
    values = []
    for _ in range(30):
        loss = supervised_contrastive(torch.nn.functional.normalize(raw, dim=1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.2 * values[0]
    alone = supervised_contrastive(torch.nn.functional.normalize(raw, dim=1), torch.arange(8))
    alone.backward()
    assert alone.item() == 0.0
    with pytest.raises(ValueError, match="form"):
        supervised_contrastive(raw, labels, form="between")


def test_level_mse_is_the_squared_distance_of_the_expectation():
    logits = torch.full((2, 24), -1e4)
    logits[0, 3] = logits[0, 5] = 0.0                     # half at 3, half at 5: expected 4
    logits[1, 10] = 0.0
    targets = torch.tensor([6, 10])
    torch.testing.assert_close(losses.expected_level(logits), torch.tensor([4.0, 10.0]))
    assert float(losses.level_mse(logits, targets)) == pytest.approx((2.0 ** 2 + 0.0) / 2)


def longest_increasing_by_trial(levels):
    return max((size for size in range(len(levels) + 1) for chosen in combinations(levels, size)
                if all(a < b for a, b in zip(chosen, chosen[1:], strict=False))), default=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 23), max_size=8))
def test_exact_sequence_loss_equals_trial_of_all_subsequences(levels):
    assert losses.sequence_loss_exact(levels) == len(levels) - longest_increasing_by_trial(levels)


def test_exact_sequence_loss_known_answers():
    assert losses.sequence_loss_exact([]) == 0
    assert losses.sequence_loss_exact([19, 20, 21]) == 0
    assert losses.sequence_loss_exact([19, 19, 20]) == 1  # a level twice is out of order
    assert losses.sequence_loss_exact([5, 4, 3, 2]) == 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 23), min_size=1, max_size=10), min_size=1, max_size=3))
def test_soft_sequence_loss_equals_the_exact_one_for_certain_predictions(spines):
    rows = torch.tensor([level for spine in spines for level in spine])
    logits = torch.nn.functional.one_hot(rows, 24).double() * 100.0
    soft = losses.sequence_loss_soft(logits, [len(spine) for spine in spines])
    exact = sum(losses.sequence_loss_exact(spine) for spine in spines) / len(spines)
    assert float(soft) == pytest.approx(exact, abs=1e-3)


def test_soft_sequence_loss_has_the_right_gradient():
    torch.manual_seed(4)
    logits = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: losses.sequence_loss_soft(x, [3, 4]), (logits,))


def test_descending_the_soft_sequence_loss_puts_a_spine_in_order():
    torch.manual_seed(5)
    logits = (torch.randn(6, 24) * 2).requires_grad_()
    before = losses.sequence_loss_exact(logits.argmax(1).tolist())
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        losses.sequence_loss_soft(logits, [6]).backward()
        optimizer.step()
    assert before > 0
    assert losses.sequence_loss_exact(logits.argmax(1).tolist()) == 0


def test_combined_loss_is_the_weighted_sum_and_logs_the_exact_order():
    torch.manual_seed(6)
    logits = torch.randn(9, 24)
    targets = torch.tensor([3, 4, 5, 6, 17, 18, 19, 20, 21])
    total, parts = losses.identification_loss(logits, targets, [4, 5])
    expected = 0.1 * parts["sequence"] + 0.5 * parts["level_mse"] + 1.0 * parts["cross_entropy"]
    assert float(total) == pytest.approx(expected, rel=1e-5)
    predicted = logits.argmax(1).tolist()
    exact = losses.sequence_loss_exact(predicted[:4]) + losses.sequence_loss_exact(predicted[4:])
    assert parts["sequence_exact"] == exact / 2
    with pytest.raises(ValueError, match="lengths"):
        losses.identification_loss(logits, targets, [4, 4])
