"""What a diffusion process provides: nested corruptions, posterior and unbiased bound, enumerated for K = 3 symbols."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from didi.diffusion import PROCESSES, find_process, process_from_settings, process_settings
from didi.diffusion.absorbing import Absorbing, posterior_probs
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.process import Process
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.nelbo import nelbo_draws

MASK = 3


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def process(request):
    return Absorbing(MASK, schedule_from_name(request.param))


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "process", [Absorbing(MASK), Uniform(4), ScoreAbsorbing(MASK), ScoreUniform(4)], ids=list(PROCESSES)
)
def test_a_process_meets_the_protocol_and_is_rebuilt_from_its_settings(process):
    assert isinstance(process, Process)
    assert find_process(process.name) is type(process) is PROCESSES[process.name]
    assert process_from_settings(process_settings(process)) == process


@pytest.mark.parametrize("make", [lambda schedule: Absorbing(MASK, schedule), lambda schedule: Uniform(5, schedule)])
@pytest.mark.parametrize("name", ["log-linear", "cosine", "geometric"])
def test_corruptions_with_the_same_draws_are_nested(make, name):
    process, generator = make(schedule_from_name(name)), named_generator("nested")
    x0 = torch.randint(3, (200, 6), generator=generator)
    draws = torch.rand(200, 6, process.draws_per_position, dtype=torch.float64, generator=generator)
    states = [process.corrupt(x0, times(t).expand(200), draws) for t in (0.05, 0.3, 0.6, 0.95)]
    shares = [float((z != x0).double().mean()) for z in states]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 3
    for earlier, later in itertools.pairwise(states):
        assert torch.equal(later[earlier != x0], earlier[earlier != x0])


def test_a_row_is_corrupted_at_its_own_time(process):
    x0 = torch.zeros(3, 4000, dtype=torch.long)
    t = times(0.1, 0.5, 0.9)
    z = process.corrupt(x0, t, torch.rand(3, 4000, 1, dtype=torch.float64, generator=named_generator("own")))
    assert set(z.unique().tolist()) == {0, MASK}
    torch.testing.assert_close((z == MASK).double().mean(1), 1 - process.schedule.alpha(t), rtol=0, atol=0.04)


def test_the_prior_masks_free_positions_and_keeps_given_tokens():
    tokens = torch.tensor([[0, 1, 2]])
    canvas = Canvas.given(tokens, torch.tensor([[True, False, True]]))
    assert Absorbing(MASK).prior(canvas).tolist() == [[MASK, 1, MASK]]
    assert tokens.tolist() == [[0, 1, 2]]
    assert Uniform(9).prior(canvas, torch.full((1, 3, 2), 0.999, dtype=torch.float64)).tolist() == [[8, 1, 8]]


def test_the_posterior_follows_eq_2(process):
    z = torch.tensor([[MASK, 1, MASK], [2, MASK, 0]])
    log_probs = process.log_probs(torch.randn(2, 3, 4, generator=named_generator("posterior")))
    t, s = times(0.9, 0.5), times(0.4, 0.2)
    actual = process.posterior(z, log_probs, t, s)
    alpha = process.schedule.alpha
    torch.testing.assert_close(actual, posterior_probs(z, log_probs.exp(), alpha(s), alpha(t), MASK))
    torch.testing.assert_close(actual.sum(-1), torch.ones_like(actual[..., 0]))
    for row, position in ((0, 0), (0, 2), (1, 1)):  # a mask stays with probability (1 - alpha_s) / (1 - alpha_t)
        stays = (1 - alpha(s[row])) / (1 - alpha(t[row]))
        assert float(actual[row, position, MASK]) == pytest.approx(float(stays), rel=1e-6)
    assert torch.equal(process.is_predicted(z), z == MASK)


@pytest.mark.parametrize("make", [lambda schedule: Absorbing(MASK, schedule), lambda schedule: Uniform(4, schedule)])
@pytest.mark.parametrize("name", ["log-linear", "cosine", "geometric"])
def test_only_a_network_conditioned_on_time_gets_a_noise_level_in_float32(make, name):
    process = make(schedule_from_name(name))
    t = times(0.1, 0.5, 0.9)
    level = process.noise_level(SimpleNamespace(is_time_conditioned=True), t)
    assert level.dtype == torch.float32
    torch.testing.assert_close(level, -process.schedule.alpha(t).log().float())
    assert process.noise_level(SimpleNamespace(is_time_conditioned=False), t) is None


def test_loss_terms_are_cross_entropies_at_masks_without_mass_on_the_mask(process):
    x0, z = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[MASK, 1, MASK], [2, MASK, 0]])
    logits = torch.randn(3, 4, generator=named_generator("terms"))
    logits[:, MASK] = 30
    actual = process.loss_terms(logits, x0, z, times(0.5, 0.5))
    expected = -logits[:, :3].log_softmax(-1)[range(3), [0, 2, 2]]
    torch.testing.assert_close(actual[z == MASK], expected)
    assert (actual[z != MASK] == 0).all()


class Tabular:
    """A denoiser of K = 3 symbols with its own logits for each state of three positions."""

    vocab_size, mask_id, length, is_time_conditioned = 4, MASK, 3, False
    table = torch.randn(64, 3, 4, generator=named_generator("table"))

    def features(self, inputs, sigma=None, attention_mask=None):
        assert sigma is attention_mask is None
        return self.table[inputs[:, 0] * 16 + inputs[:, 1] * 4 + inputs[:, 2]]

    def head(self, features):
        return features


def exact_bound(x0, free):
    """Sum over n of 1/n times the mean cross-entropy over all masks of n free positions."""
    total = 0.0
    for n in range(1, len(free) + 1):
        for chosen in map(list, itertools.combinations(free, n)):
            z = x0.clone()
            z[chosen] = MASK
            log_probs = Tabular().features(z[None])[0, :, :3].double().log_softmax(-1)
            total -= float(log_probs[chosen, x0[chosen]].sum()) / n / math.comb(len(free), n)
    return total


@pytest.mark.parametrize("free", [[0, 1, 2], [0, 2], [1], []])
def test_the_bound_is_unbiased_and_given_positions_are_context(process, free):
    x0, num = torch.tensor([2, 0, 1]), 6000
    is_free = torch.zeros(1, 3, dtype=torch.bool)
    is_free[:, free] = True
    canvas = Canvas.given(x0[None], is_free)
    drawn = process.elbo_draws(canvas, num, [named_generator("bound")])
    assert torch.equal(drawn.z[:, ~is_free[0]], x0[~is_free[0]].expand(num, -1))
    assert drawn.t.dtype == drawn.weight.dtype == torch.float64
    actual = nelbo_draws(Tabular(), process, canvas, num, [named_generator("bound")])[0]
    exact = exact_bound(x0, free)
    error = float(actual.std()) / num**0.5
    assert float(actual.mean()) == pytest.approx(exact, abs=4 * error + 1e-6)
    if free:
        assert error < 0.01 * exact
        sizes = (drawn.z == MASK).sum(1)
        assert torch.equal(drawn.weight, len(free) / sizes.double())
        assert sizes.unique().tolist() == list(range(1, len(free) + 1))
    else:
        assert not actual.any()


def test_each_sequence_has_its_own_generator_and_consecutive_draws():
    canvas = Canvas.free(torch.tensor([[0, 1, 2], [2, 1, 0]]))
    both = Absorbing(MASK).elbo_draws(canvas, 5, [named_generator(0), named_generator(1)])
    for row in range(2):
        alone = Absorbing(MASK).elbo_draws(canvas.rows(slice(row, row + 1)), 5, [named_generator(row)])
        for name in ("z", "t", "weight"):
            assert torch.equal(getattr(both, name)[5 * row : 5 * row + 5], getattr(alone, name))


def test_unknown_processes_are_refused():
    with pytest.raises(
        UsageError, match="a process is one of absorbing, uniform, sedd-absorb, sedd-uniform; got 'gaussian'"
    ):
        find_process("gaussian")


def test_a_masked_process_has_the_mask_of_its_tokenizer(process):
    assert Absorbing.of_tokenizer(9, MASK, process.schedule) == process
    assert process.num_symbols(9) == 9
