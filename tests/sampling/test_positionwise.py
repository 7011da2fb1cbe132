"""Samplers of uniform-state diffusion and of score networks against their enumerated distributions."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import DidiError, UsageError
from didi.evaluation.exact.product import PositionwiseSampler, positionwise_distribution
from didi.evaluation.exact.rows import ExactRows
from didi.models.bundle import Bundle
from didi.sampling.base import features_at, time_grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions
from didi.sampling.published_uniform import PublishedUniform
from didi.sampling.registry import make_sampler, samplers_of
from didi.sampling.remasking import Remasking
from didi.sampling.score import ScoreSampler
from didi.sampling.token_distribution import TokenDistribution
from didi.sampling.uniform_ancestral import PredictorCorrector, UniformAncestral

NUM, LENGTH, NFE = 3, 3, 4
EPS = schedule_from_name("log-linear-eps")


class Tabular(nn.Module):
    """A network with a table of logits for each state, scaled by the noise level."""

    is_time_conditioned, length = True, LENGTH

    def __init__(self, num):
        super().__init__()
        self.vocab_size = self.num = num
        self.rows_read = self.states_read = 0
        self.table = torch.randn(num**LENGTH, LENGTH, num, generator=torch.Generator().manual_seed(num))

    def features(self, inputs, sigma=None, attention_mask=None):
        self.states_read += len(inputs)
        number = (inputs * self.num ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
        return self.table[number] * (1 + sigma[:, None, None])

    def head(self, features):
        self.rows_read += len(features)
        return features


def uniform(**settings):
    return UniformAncestral(Tabular(NUM), Uniform(NUM), **settings)


SAMPLERS = {
    "ancestral": uniform,
    "cosine": lambda: replace(uniform(), process=Uniform(NUM, schedule_from_name("cosine"))),
    "geometric": lambda: replace(uniform(), process=Uniform(NUM, schedule_from_name("geometric"))),
    "temperature and top-p": lambda: uniform(token_distribution=TokenDistribution(temperature=0.7, top_p=0.8)),
    "whole batches": lambda: uniform(is_whole_batch=True),
    "greedy tail": lambda: uniform(is_greedy_tail=True),
    "corrector": lambda: uniform(remask=Remasking("rescale", 0.2)),
    "corrector alone": lambda: uniform(remask=Remasking("rescale", 1.0)),
    "score, uniform": lambda: ScoreSampler(Tabular(NUM), ScoreUniform(NUM, EPS)),
    "Euler, uniform": lambda: ScoreSampler(Tabular(NUM), ScoreUniform(NUM, EPS), predictor="euler"),
    "score, absorb": lambda: ScoreSampler(Tabular(NUM + 1), ScoreAbsorbing(NUM)),
    "Euler, absorb": lambda: ScoreSampler(Tabular(NUM + 1), ScoreAbsorbing(NUM), predictor="euler"),
}


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [2, NFE])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_enumerated_distribution(chi_square, name, nfe):
    sampler, num = SAMPLERS[name](), 12_000
    *_, last = sampler(Canvas.blank(num, LENGTH), time_grid(nfe), SequenceNoise(11, range(num)))
    drawn = (last.z * NUM ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    p = positionwise_distribution(sampler, NUM, LENGTH, time_grid(nfe))
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    rare = p * num < 5  # pooled
    pooled = torch.cat([p[~rare], p[rare].sum()[None]])
    number = torch.full((len(p),), int((~rare).sum()))
    number[~rare] = torch.arange(int((~rare).sum()))
    keep = pooled * num >= 5
    counts = number[drawn]
    assert chi_square(counts[keep[counts]], pooled[keep]) > 1e-3
    assert isinstance(sampler, PositionwiseSampler)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "absorb" not in name])
def test_uniform_numbers_on_a_grid_draw_each_token_as_often_as_its_probability(name):
    """One move of equal rows; a position that reads two numbers gets the points of a two-dimensional grid."""
    sampler, num, (t, s) = SAMPLERS[name](), 40, torch.tensor([0.6, 0.3], dtype=torch.float64)
    z, side = torch.tensor([[0, 2, 1]]), (torch.arange(num, dtype=torch.float64) + 0.5) / num
    logits = features_at(sampler.denoiser, sampler.process, z, t)[0]
    expected = sampler.move_probs(logits, z[0], t, s)
    z, grid = z.expand(num**2, -1), torch.cartesian_prod(side, side)[:, None].expand(-1, LENGTH, -1)
    if isinstance(sampler, UniformAncestral):
        canvas = Canvas.blank(len(z), LENGTH)
        drawn, _ = sampler.after_move(z, canvas, canvas.is_free, grid, sampler.move(t, s), t)
    else:
        numbers = (torch.arange(num**2, dtype=torch.float64) + 0.5) / num**2
        columns = [(logits[i].expand(len(z), -1), z[:, i], numbers, t, s) for i in range(LENGTH)]
        drawn = torch.stack([sampler._moved(*column) for column in columns], 1)
    actual = torch.nn.functional.one_hot(drawn, NUM).double().mean(0)
    torch.testing.assert_close(actual, expected, atol=1.5 / num, rtol=0)


def test_moves_of_a_score_network_have_the_weights_of_their_predictor_and_the_last_move_is_analytic():
    process, z = ScoreUniform(NUM, EPS), torch.tensor([0, 2, 1])
    logits = torch.randn(3, NUM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t, s, is_last in ((0.9, 0.4, False), (0.3, 0.0, True)):
        alpha_t, alpha_s = (float(process.schedule.alpha(torch.tensor(time).double())) for time in (t, s))
        weights = {
            "analytic": process.reverse_weights(logits, z, alpha_t, alpha_s),
            "euler": process.euler_weights(logits, z, t, s),
        }
        probs = {name: of / of.sum(-1, keepdim=True) for name, of in weights.items()}
        assert (probs["analytic"] - probs["euler"]).abs().max() > 0.01
        for predictor in probs:
            sampler = ScoreSampler(Tabular(NUM), process, predictor=predictor)
            actual = sampler.move_probs(logits, z, torch.tensor(t).double(), torch.tensor(s).double())
            torch.testing.assert_close(actual, probs["analytic" if is_last else predictor], rtol=1e-4, atol=1e-6)


def test_the_largest_uniform_number_replaces_a_mask_by_a_token():
    """Rounding can make the number with which the new token is drawn 1, and the mask is the last symbol."""
    sampler, num = SAMPLERS["score, absorb"](), 200
    logits = 0.1 * torch.randn(num, NUM + 1, generator=torch.Generator().manual_seed(0))
    largest, (t, s) = torch.full((num,), 1 - 2**-53, dtype=torch.float64), torch.tensor([0.9, 0.3]).double()
    assert (sampler._moved(logits, torch.full((num,), NUM), largest, t, s) < NUM).all()


def test_settings_change_the_distribution():
    probs = {name: positionwise_distribution(make(), NUM, LENGTH, time_grid(NFE)) for name, make in SAMPLERS.items()}
    torch.testing.assert_close(probs.pop("whole batches"), probs["ancestral"])
    names = [name for name in probs if "absorb" not in name]  # Euler and analytic steps are equal: log-linear schedule
    for first, second in itertools.combinations(names, 2):
        assert float((probs[first] - probs[second]).abs().sum()) > 0.02, (first, second)
    torch.testing.assert_close(probs["score, absorb"], probs["Euler, absorb"])


@pytest.mark.slow
def test_the_head_reads_only_positions_that_may_change():
    sampler, num = uniform(), 200
    moves = list(sampler(Canvas.blank(num, LENGTH), time_grid(64), SequenceNoise(0, range(num))))
    passes = sum(int(move.network_passes.sum()) for move in moves)
    assert sampler.denoiser.states_read == passes < 0.4 * 64 * num
    assert sampler.denoiser.rows_read < 0.2 * 64 * num * LENGTH
    whole = uniform(is_whole_batch=True)
    same = list(whole(Canvas.blank(num, LENGTH), time_grid(64), SequenceNoise(0, range(num))))
    assert torch.equal(same[-1].z, moves[-1].z)


def test_given_tokens_stay_and_padding_is_not_written():
    tokens = torch.full((64, LENGTH), 1)
    is_free = torch.tensor([[True, False, True], [True, False, False]]).repeat(32, 1)
    is_real = torch.tensor([[True, True, True], [True, True, False]]).repeat(32, 1)
    canvas = Canvas(tokens, is_free, is_real, has_padding=True)
    for name, make in SAMPLERS.items():
        for move in make()(canvas, time_grid(NFE), SequenceNoise(0, range(64), lengths=[3, 2] * 32)):
            assert (move.z[~is_free] == 1).all(), name
            assert not move.is_changed[~is_free].any(), name
        assert (move.z < NUM).all(), name


def test_temperature_and_top_p_of_score_networks_are_refused():
    for token_distribution in (TokenDistribution(temperature=0.5), TokenDistribution(top_p=0.9)):
        with pytest.raises(UsageError, match="score networks are sampled at temperature 1 and top_p 1; got"):
            ScoreSampler(Tabular(NUM), ScoreUniform(NUM), token_distribution)


PROCESSES = {"uniform": Uniform(5), "sedd-uniform": ScoreUniform(5), "sedd-absorb": ScoreAbsorbing(4)}


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_samples_of_every_sampler_of_a_process_do_not_depend_on_the_batch_size(make_dit, process):
    network = make_dit(vocab_size=5, length=3, mask_id=process.mask_id, is_time_conditioned=True)
    bundle, num_exact = Bundle(teacher=network, process=process), 0
    # Not entropy-bounded: the masks of the first state have equal entropies, whose rounding depends on the batch.
    for sampler in set(samplers_of(process.name)) - {"guided", "entropy-bounded"}:
        whole = generate(bundle, num_samples=5, nfe=4, seed=2, sampler=sampler)
        parts = generate(bundle, num_samples=5, nfe=4, seed=2, sampler=sampler, batch_size=2)
        assert torch.equal(parts.tokens, whole.tokens)
        p = ExactRows(bundle).distribution(process.mask_id or 5, SamplingOptions(sampler), 2)
        if isinstance(make_sampler(bundle, SamplingOptions(sampler), 2), PositionwiseSampler):
            assert float(p.sum()) == pytest.approx(1, abs=1e-5)
            num_exact += 1
    assert num_exact == (2 if process.name.startswith("sedd") else 3)


def test_remasking_of_uniform_diffusion_has_a_corrector_by_default(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=5, length=6, mask_id=None, is_time_conditioned=True))
    assert make_sampler(bundle, SamplingOptions("remasking"), 2).remask == Remasking()
    assert make_sampler(bundle, SamplingOptions("ancestral"), 2).remask.eta == 0
    with pytest.raises(UsageError, match="ancestral sampling does not read remask, which remasking does"):
        make_sampler(bundle, SamplingOptions(remask=Remasking()), 2)
    with pytest.raises(UsageError, match="does not read order, which no sampler of uniform does"):
        make_sampler(bundle, SamplingOptions("remasking", order=ConfidenceOrder("margin")), 2)


def test_the_corrector_ends_before_the_last_move():
    sampler = PredictorCorrector(Tabular(NUM), Uniform(NUM), remask=Remasking("rescale", 1.0))
    times = time_grid(NFE)
    assert sampler.move(times[0], times[1]).corrector == 1
    assert sampler.move(times[-2], times[-1]).corrector == 0
    assert UniformAncestral(Tabular(NUM), Uniform(NUM)).move(times[0], times[1]).corrector == 0


@pytest.mark.parametrize("name", ["sedd-uniform", "sedd-absorb"])
def test_score_networks_are_sampled_in_float64_only(make_dit, name):
    process = PROCESSES[name]
    network = make_dit(vocab_size=5, length=3, mask_id=process.mask_id, is_time_conditioned=True)
    with pytest.raises(UsageError, match="score networks are sampled with float64 draws"):
        generate(Bundle(teacher=network, process=process), nfe=2, precision="float32")


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_no_token_is_drawn_from_logits_that_are_not_finite(make_dit, process):
    network = make_dit(vocab_size=5, length=3, mask_id=process.mask_id, is_time_conditioned=True)
    with torch.no_grad():
        network.output_layer.linear.weight.fill_(float("nan"))
    bundle = Bundle(teacher=network, process=process)
    for sampler in set(samplers_of(process.name)) & {"ancestral", "greedy-tail", "remasking", "euler"}:
        with pytest.raises(DidiError, match="not finite"):
            generate(bundle, num_samples=2, nfe=2, sampler=sampler)


@pytest.mark.slow
def test_the_published_sampler_of_uniform_diffusion_has_the_distribution_of_ancestral_sampling(chi_square):
    ancestral, num = uniform(), 12_000
    sampler = PublishedUniform(ancestral.denoiser, ancestral.process, precision="float64")
    *_, last = sampler(Canvas.blank(num, LENGTH), time_grid(NFE), SequenceNoise(11, range(num)))
    drawn = (last.z * NUM ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    assert chi_square(drawn, positionwise_distribution(ancestral, NUM, LENGTH, time_grid(NFE))) > 1e-3
