"""Draws from categorical distributions at every precision, entropies and divergences."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from didi.diffusion import categorical
from didi.diffusion.categorical import (
    divergence,
    entropy,
    gumbel_noise,
    sample_categorical,
    sample_from_weights,
    sample_gumbel,
)
from didi.diffusion.noise import named_generator
from didi.errors import UsageError

PROBS = torch.tensor([0.4, 0.0, 0.1, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
LARGEST = 1 - 2**-53  # largest float64 that torch.rand returns


def random_log_probs(*shape, seed=0):
    logits = torch.randn(*shape, dtype=torch.float64, generator=named_generator("log-probs", seed))
    logits[..., 1] = -torch.inf
    return logits.log_softmax(-1)


def draws_by_inversion(num, dtype):
    uniforms = torch.rand(num, dtype=dtype, generator=named_generator("inversion"))
    return sample_categorical(PROBS.log().expand(num, -1), uniforms)


def draws_by_gumbel(num, dtype):
    uniforms = torch.rand(num, len(PROBS), dtype=dtype, generator=named_generator("gumbel"))
    return sample_gumbel(PROBS.log().expand(num, -1), uniforms)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("draw", [draws_by_inversion, draws_by_gumbel])
def test_draws_follow_the_probabilities_and_never_give_impossible_tokens(draw, dtype, chi_square):
    assert chi_square(draw(20_000, dtype), PROBS) > 1e-3


def test_inversion_gives_each_token_an_interval_as_long_as_its_probability():
    edges = torch.tensor([0, 0.4, 0.5, 0.8, 0.95, 1], dtype=torch.float64)
    inner = torch.cat([edges[:-1] + 1e-9, edges[1:] - 1e-9])
    expected = torch.tensor([0, 2, 3, 4, 5]).repeat(2)
    assert torch.equal(sample_categorical(PROBS.log().expand(10, -1), inner), expected)


def test_draws_from_weights_are_those_from_their_logarithms():
    log_probs, uniforms = random_log_probs(50, 7), torch.linspace(0, 0.999, 50, dtype=torch.float64)
    drawn = sample_from_weights(3 * log_probs.exp(), uniforms)
    assert torch.equal(drawn, sample_categorical(log_probs, uniforms))
    # The cumulative sum has the precision of the uniform numbers: float32 would lose the second weight.
    assert sample_from_weights(torch.tensor([[1.0, 1e-9]]), torch.tensor([1 - 1e-10], dtype=torch.float64)) == 1


@pytest.mark.parametrize("probs", [[0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 1 / 3, 2 / 3, 0], [0, 1e-300, 1, 0]])
@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.5, LARGEST])
def test_extreme_uniforms_draw_no_impossible_token(probs, uniform):
    probs = torch.tensor(probs, dtype=torch.float64)
    drawn = sample_categorical(probs.log()[None], torch.tensor([uniform], dtype=torch.float64))
    assert probs[drawn] > 0


@pytest.mark.parametrize("shift", [3.7, 800.0, -800.0])
def test_unnormalised_logits_are_allowed(shift):
    uniforms = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    log_probs = PROBS.log().expand(50, -1)
    assert torch.equal(sample_categorical(log_probs, uniforms), sample_categorical(log_probs + shift, uniforms))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["of float64", "of float32 logits"])
def test_float64_keeps_a_tail_of_1e_12_and_float32_loses_it(dtype):
    # The rarest token is last: its interval lies between 1 - 6e-8 and 1, where float32 has no number.
    log_probs = torch.tensor([[math.log1p(-1e-12), math.log(1e-12)]], dtype=dtype).expand(3, -1)
    uniforms = torch.tensor([1 - 2e-12, 1 - 0.5e-12, LARGEST], dtype=torch.float64)
    assert sample_categorical(log_probs, uniforms).tolist() == [0, 1, 1]
    # As the first token it keeps its interval [0, 1e-12) as well.
    assert sample_categorical(log_probs.flip(1), 1 - uniforms).tolist() == [1, 0, 0]
    largest = torch.tensor([1 - 2**-24] * 3, dtype=torch.float32)
    assert sample_categorical(log_probs, largest).tolist() == [0, 0, 0]


def test_gumbel_noise_is_the_quantile_function_of_the_gumbel_distribution():
    values = torch.tensor([-2.0, -1.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(gumbel_noise((-(-values).exp()).exp()), values)
    assert gumbel_noise(torch.zeros(1, dtype=torch.float64)).isfinite()


def test_gumbel_noise_is_bounded_in_float32_and_loses_rare_tokens():
    # In float32 the noise lies in (-3.2, 16.7), so a token 20 nats less likely is never drawn; its probability is 2e-9.
    log_probs = torch.tensor([[0.0, -20.0]], dtype=torch.float64)
    for dtype, is_drawn in ((torch.float32, False), (torch.float64, True)):
        largest = 1 - torch.finfo(dtype).eps / 2 - (0 if dtype == torch.float32 else 2e-10)
        uniforms = torch.tensor([[0.0, largest]], dtype=dtype)
        assert bool(sample_gumbel(log_probs, uniforms) == 1) == is_drawn


def test_entropy_equals_torch_distributions():
    log_probs = random_log_probs(2, 3, 7)
    torch.testing.assert_close(entropy(log_probs), Categorical(probs=log_probs.exp()).entropy(), rtol=1e-9, atol=0)
    assert entropy(torch.tensor([0.0, -torch.inf])) == 0


def test_divergences_equal_torch_distributions():
    teacher, student = random_log_probs(4, 7, seed=1), random_log_probs(4, 7, seed=2)
    possible = [log_probs[:, [0, 2, 3, 4, 5, 6]] for log_probs in (teacher, student)]
    teacher_reference, student_reference = (Categorical(logits=log_probs) for log_probs in possible)
    forward = kl_divergence(teacher_reference, student_reference)
    backward = kl_divergence(student_reference, teacher_reference)
    for kind, expected in (("forward", forward), ("backward", backward), ("jeffreys", forward + backward)):
        torch.testing.assert_close(divergence(kind, teacher, student), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(divergence(kind, teacher, teacher), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["entropy", "forward", "backward", "jeffreys"])
def test_gradients_are_finite_with_impossible_tokens(kind):
    teacher = random_log_probs(3, 5, seed=1)

    def value(free):
        logits = torch.cat([free[:, :1], torch.full((3, 1), -torch.inf, dtype=torch.float64), free[:, 1:]], dim=1)
        log_probs = logits.log_softmax(-1)
        return (entropy(log_probs) if kind == "entropy" else divergence(kind, teacher, log_probs)).sum()

    free = torch.randn(3, 4, dtype=torch.float64, generator=named_generator("free")).requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(free), free)
    assert gradient.abs().max() > 0.01
    step = 1e-5
    shifts = step * torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    with torch.no_grad():
        differences = torch.stack([value(free + shift) - value(free - shift) for shift in shifts]).view(3, 4)
    torch.testing.assert_close(gradient, differences / (2 * step), rtol=1e-6, atol=1e-9)


def test_an_unknown_divergence_is_refused(unchecked):
    with pytest.raises(UsageError, match="got 'hellinger'"):
        divergence("hellinger", random_log_probs(1, 3), random_log_probs(1, 3))


def test_several_draws_from_a_row_equal_single_draws():
    log_probs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    uniforms = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = sample_categorical(log_probs, uniforms)
    for column in range(3):
        assert torch.equal(drawn[:, column], sample_categorical(log_probs, uniforms[:, column]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_uniform_that_was_rounded_up_to_1_draws_the_last_symbol(dtype):
    assert sample_categorical(torch.zeros(2, 5), torch.ones(2, dtype=dtype)).tolist() == [4, 4]


def test_weights_of_half_precision_logits_are_computed_in_float32():
    logits = torch.randn(1, 200, generator=named_generator("half")).bfloat16().expand(500, -1)
    uniforms = torch.linspace(0, 0.999, 500, dtype=torch.float64)
    assert torch.equal(sample_categorical(logits, uniforms), sample_categorical(logits.float(), uniforms))


@pytest.mark.parametrize(("num_elements", "sizes"), [(20, [2, 2, 1]), (3, [1] * 5), (70, [5])])
def test_cumulative_distributions_are_computed_in_chunks(monkeypatch, num_elements, sizes):
    assert categorical.CHUNK_ELEMENTS * 8 == 128 * 2**20  # bytes in float64
    log_probs = random_log_probs(5, 7)
    uniforms = torch.rand(5, dtype=torch.float64, generator=named_generator("chunks"))
    expected, draw, chunk_sizes = sample_categorical(log_probs, uniforms), categorical._draw_from_log_probs, []
    monkeypatch.setattr(categorical, "CHUNK_ELEMENTS", num_elements)
    monkeypatch.setattr(
        categorical, "_draw_from_log_probs", lambda *chunk: chunk_sizes.append(len(chunk[0])) or draw(*chunk)
    )
    assert torch.equal(sample_categorical(log_probs, uniforms), expected)
    assert chunk_sizes == sizes
