"""Losses, advantages and scores of DiDi-Instruct compared with values by hand and with optima."""

import math

import pytest
import torch

from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.objectives.didi import (
    STD_EPSILON,
    Advantages,
    advantages,
    discriminator_loss,
    log_density_ratio,
    policy_loss,
    second_move_score,
    unsmooth,
)

LOGITS = torch.tensor([[1.0, 2.0, 6.0], [3.0, -1.0, 0.5]])
MASKED = torch.tensor([[True, False, True], [False, False, False]])


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("masked-mean", [3.5, 2.5 / 3]),  # a row without masks is averaged as a whole
        ("mean", [3.0, 2.5 / 3]),
        ("sum", [9.0, 2.5]),
    ],
)
def test_a_log_ratio_is_the_reduced_logits(reduction, expected):
    ratio = log_density_ratio(LOGITS.double(), MASKED, reduction=reduction)
    assert ratio.dtype == torch.float32
    torch.testing.assert_close(ratio, torch.tensor(expected))
    assert torch.equal(log_density_ratio(LOGITS[:, 0], MASKED, reduction=reduction), LOGITS[:, 0])


@pytest.mark.parametrize("reduction", ["masked-mean", "mean", "sum"])
def test_padding_does_not_count(reduction):
    padded, is_masked = torch.cat([LOGITS, torch.full((2, 2), 50.0)], 1), torch.nn.functional.pad(MASKED, (0, 2))
    is_real = torch.arange(5).expand(2, 5) < 3
    ratio = log_density_ratio(padded, is_masked, reduction=reduction, attention_mask=is_real)
    torch.testing.assert_close(ratio, log_density_ratio(LOGITS, MASKED, reduction=reduction))


def test_the_default_reduction_is_the_masked_mean_of_the_paper():
    assert torch.equal(log_density_ratio(LOGITS, MASKED), log_density_ratio(LOGITS, MASKED, reduction="masked-mean"))


def test_unknown_names_are_refused(unchecked):
    with pytest.raises(UsageError, match="got 'max'"):
        log_density_ratio(LOGITS, MASKED, reduction="max")
    with pytest.raises(UsageError, match="got 'all'"):
        advantages(torch.zeros(2, 2, 1), grouping="all")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_unsmoothing_inverts_the_optimum_under_smoothed_labels(label_smoothing, dtype):
    log_ratio = torch.linspace(-6, 6, 25, dtype=torch.float64)
    smoothed = label_smoothing / 2 + (1 - label_smoothing) * torch.sigmoid(log_ratio)
    ratio = unsmooth(torch.logit(smoothed).to(dtype), label_smoothing)
    assert ratio.dtype == dtype
    # A float32 logit of 3 is known to 2e-7; at a log-ratio of 6 the inverse magnifies that some 50-fold.
    torch.testing.assert_close(ratio.double(), log_ratio, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)


def test_unsmoothing_stays_finite_and_monotone_beyond_the_reachable_range():
    ratios = unsmooth(torch.linspace(-30, 30, 61), 0.1)
    assert ratios.isfinite().all()
    assert (ratios.diff() >= 0).all()
    assert ratios[0] == pytest.approx(-float(ratios[-1]))
    assert ratios[-1] == pytest.approx(math.log((1 - 1e-4) / 1e-4), abs=1e-3)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_discriminator_loss_is_least_at_the_log_ratio_student_over_real(label_smoothing):
    # 4 states with integer counts of student and real samples, so that sums are exact expectations.
    student_counts, real_counts = torch.tensor([8, 4, 2, 2]), torch.tensor([1, 4, 3, 8])
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    states = [torch.arange(4).repeat_interleave(counts) for counts in (student_counts, real_counts)]
    masks = [torch.ones(16, 1, dtype=torch.bool)] * 2
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-8, tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        sides = [logits[side][:, None] for side in states]
        loss = discriminator_loss(*sides, *masks, label_smoothing=label_smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (student_counts / real_counts).log()
    assert expected[0] > 0 > expected[3]  # positive where the student has more samples
    # The loss is computed in float32: its minimum is flat to 1e-7, its argument known to 3e-4.
    torch.testing.assert_close(unsmooth(logits.detach(), label_smoothing).float(), expected, rtol=0, atol=2e-3)


def test_the_discriminator_loss_weighs_both_sides_equally_and_masked_positions_only():
    student, real = torch.tensor([[2.0, 99.0], [-1.0, 0.5]]), torch.tensor([[0.3, -0.7]])
    student_masks, real_masks = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True]])

    def softplus(x):
        return math.log1p(math.exp(x))

    of_student = (softplus(-2) + (softplus(1) + softplus(-0.5)) / 2) / 2
    of_real = (softplus(0.3) + softplus(-0.7)) / 2
    loss = discriminator_loss(student, real, student_masks, real_masks)
    assert float(loss) == pytest.approx((of_student + of_real) / 2, rel=1e-6)


def test_label_smoothing_mixes_the_labels():
    logit, masks = torch.tensor([[1.5]]), torch.ones(1, 1, dtype=torch.bool)
    right, wrong = math.log1p(math.exp(-1.5)), math.log1p(math.exp(1.5))
    loss = discriminator_loss(logit, -logit, masks, masks, label_smoothing=0.2)
    assert float(loss) == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-6)


def test_each_per_sequence_logit_has_one_loss():
    masks = torch.zeros(2, 3, dtype=torch.bool)
    loss = discriminator_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), masks, masks)
    expected = ((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2 + math.log(2)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


# Advantages: rewards [2 states, 2 completions, 2 corruptions] whose completion means are 1, 5 | 4, -2.
REWARDS = torch.tensor([[[0.0, 2.0], [5.0, 5.0]], [[1.0, 7.0], [-2.0, -2.0]]])
MEANS = [1.0, 5.0, 4.0, -2.0]
POPULATION_STD = math.sqrt(sum((mean - 2) ** 2 for mean in MEANS) / 4)


def per_corruption(*baselines):
    return REWARDS - torch.tensor(baselines).view(2, 2, 1)


def spread_over(*stds):
    return torch.tensor(stds).view(2, 2, 1) + STD_EPSILON


UNBIASED = (math.sqrt(8), math.sqrt(8), math.sqrt(18), math.sqrt(18))
CASES = {
    "batch": ({}, per_corruption(2, 2, 2, 2), None, spread_over(*[POPULATION_STD] * 4)),
    "rows": ({"group_size": 2}, per_corruption(3, 3, 1, 1), None, spread_over(*UNBIASED)),
    "shared-time": ({"group_size": 2}, per_corruption(3, 3, 1, 1), None, spread_over(*UNBIASED)),
    "shared-state": (
        {},
        per_corruption(5, 1, -2, 4),
        torch.tensor([3.0 - 1.0, 1.0 - 3.0]).view(2, 1, 1).expand(2, 2, 2),
        spread_over(*[POPULATION_STD] * 4),
    ),
}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("grouping", CASES)
def test_advantages_equal_a_computation_by_hand(grouping, normalise):
    options, second, first, spread = CASES[grouping]
    first = second if first is None else first
    actual = advantages(REWARDS, grouping=grouping, normalise=normalise, **options)
    scale = spread if normalise else 1.0
    torch.testing.assert_close(actual.first, first / scale)
    torch.testing.assert_close(actual.second, second / scale)


def test_groups_consist_of_consecutive_completions_across_states():
    rewards = torch.tensor([1.0, 3.0, 10.0, 20.0]).view(4, 1, 1)
    actual = advantages(rewards, grouping="rows", group_size=2, normalise=False)
    assert actual.second.flatten().tolist() == [-1, 1, -5, 5]


@pytest.mark.parametrize("grouping", ["batch", "shared-state"])
def test_advantages_are_clamped_after_the_division(grouping):
    free = advantages(REWARDS, grouping=grouping)
    clamped = advantages(REWARDS, grouping=grouping, clamp=0.7)
    for part, unclamped in zip(clamped, free, strict=True):
        assert unclamped.abs().max() > 0.7
        torch.testing.assert_close(part, unclamped.clamp(-0.7, 0.7))
    assert torch.equal(advantages(REWARDS, grouping=grouping, clamp=None).second, free.second)


def test_advantages_pass_no_gradient():
    rewards = REWARDS.clone().requires_grad_(True)
    for part in advantages(rewards, grouping="shared-state"):
        assert not part.requires_grad


def test_equal_rewards_give_no_advantage_and_no_division_by_zero():
    for grouping, (options, *_) in CASES.items():
        for part in advantages(torch.full((2, 2, 1), 0.7), grouping=grouping, **options):
            assert part.abs().max() < 0.2  # rounding of 1e-7 over the epsilon of 1e-6


def test_leave_one_out_compares_each_completion_with_all_others():
    rewards = torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1)
    first, second = advantages(rewards, grouping="leave-one-out", normalise=False)
    assert torch.equal(first, second)
    assert first.flatten().tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 3), {"grouping": "batch"}),
        ((1, 1, 3), {"grouping": "leave-one-out"}),
        ((4, 2, 1), {"grouping": "leave-one-out"}),
        ((4, 1, 1), {"grouping": "rows", "group_size": 1}),
        ((4, 1, 1), {"grouping": "rows", "group_size": 3}),
        ((3, 2, 1), {"grouping": "shared-time", "group_size": 4}),
        ((1, 4, 1), {"grouping": "shared-state"}),
        ((4, 1, 1), {"grouping": "shared-state"}),
    ],
)
def test_sizes_that_do_not_fit_a_grouping_are_refused(shape, options):
    with pytest.raises(UsageError, match=r"(needs?|have) 2 (states|members)"):
        advantages(torch.zeros(shape), **options)


LOG_PROBS = -torch.tensor([[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]])  # 1 state, 2 completions, 3 positions
MASKED_TAU = torch.tensor([[True, False, True]])
MASKED_T = torch.tensor([[[[True, True, False]], [[False, True, False]]]])


def test_the_second_move_scores_masked_positions_of_z_tau():
    full = second_move_score(LOG_PROBS, MASKED_TAU, MASKED_T, revealed_only=False)
    assert full.tolist() == [[[-5.0], [-40.0]]]


def test_a_revealed_only_score_excludes_masked_positions_of_z_t():
    revealed = second_move_score(LOG_PROBS, MASKED_TAU, MASKED_T, revealed_only=True)
    assert revealed.tolist() == [[[-4.0], [-40.0]]]


def test_positions_that_are_not_scored_get_no_gradient_even_if_impossible():
    log_probs = LOG_PROBS.clone()
    log_probs[..., 1] = -torch.inf
    log_probs.requires_grad_(True)
    second_move_score(log_probs, MASKED_TAU, MASKED_T, revealed_only=True).sum().backward()
    assert log_probs.grad.tolist() == [[[0, 0, 1], [1, 0, 1]]]


def test_the_policy_loss_weighs_both_moves_by_their_advantages():
    advantage = Advantages(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]), torch.tensor([[[10.0, 20.0]], [[-1.0, 1.0]]]))
    first, second = torch.tensor([-0.5, -2.0]), torch.tensor([[[-1.0, -2.0]], [[-3.0, -4.0]]])
    loss = policy_loss(first, second, advantage, torch.tensor([2.0, 0.5]))
    by_hand = [2 * ((-0.5 - 10) + (-1.5 - 40)) / 2, 0.5 * ((-4 + 3) + (-4 - 4)) / 2]
    assert loss.tolist() == pytest.approx(by_hand)


def test_descending_the_policy_loss_lowers_the_probability_of_symbols_with_a_high_log_ratio():
    logits = torch.zeros(3, requires_grad=True)
    log_probs = logits.log_softmax(0)
    log_ratio = torch.tensor([2.0, 0.0, -2.0])  # student over teacher of each symbol
    generator = named_generator("toy")
    drawn = torch.randint(3, (64, 1), generator=generator)
    advantage = advantages(log_ratio[drawn][..., None], grouping="batch")
    policy_loss(torch.zeros(64), log_probs[drawn][..., None], advantage, torch.ones(64)).mean().backward()
    step = -logits.grad
    assert step[0] < step[1] < step[2]
