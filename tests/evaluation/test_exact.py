"""Exact distributions of samplers, compared with sums over all paths and with samples."""

import itertools
import math

import pytest
import torch

from didi.data.markov import MarkovChain, exact_chain
from didi.data.source import open_source
from didi.diffusion.schedule import Cosine, LogLinear
from didi.errors import UsageError
from didi.evaluation.evaluate import evaluate
from didi.evaluation.exact import rows as rows_module
from didi.evaluation.exact.divergences import exact_divergences
from didi.evaluation.exact.guided import guided_distribution, ranked_probs
from didi.evaluation.exact.limit import minimal_divergence
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.exact.sampler import chain_predictions, sampler_distribution
from didi.evaluation.exact.states import States
from didi.evaluation.perplexity import Scores
from didi.models.bundle import Bundle
from didi.sampling.base import path_alphas, time_grid
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance, Guided
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import make_sampler

SMALL = States(num_symbols=2, length=3)


def random_tables(states, number, seed=0):
    shape = (number, len(states), states.length, states.num_symbols)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def by_all_paths(states, chances, tables):
    """Probability of each clean sequence, path by path: which positions each move reveals, and their tokens."""
    mask, number_of = states.num_symbols, {tuple(z): n for n, z in enumerate(states.tokens.tolist())}
    totals = {tuple(z): 0.0 for z in states.clean.tolist()}

    def walk(z, move, probability):
        if move == len(chances):
            if mask not in z:
                totals[z] += probability
            return
        masked = [position for position, token in enumerate(z) if token == mask]
        for size in range(len(masked) + 1):
            for revealed in itertools.combinations(masked, size):
                of_positions = chances[move] ** size * (1 - chances[move]) ** (len(masked) - size)
                for tokens in itertools.product(range(mask), repeat=size):
                    after, factor = list(z), probability * of_positions
                    for position, token in zip(revealed, tokens, strict=True):
                        after[position] = token
                        factor *= float(tables[move][number_of[z], position, token])
                    walk(tuple(after), move + 1, factor)

    walk((mask,) * states.length, 0, 1.0)
    return torch.tensor(list(totals.values()), dtype=torch.float64)


@pytest.mark.parametrize(
    "alphas",
    [
        path_alphas(LogLinear(), time_grid(1)),
        path_alphas(LogLinear(), time_grid(3)),
        path_alphas(LogLinear(), time_grid(3, "cosine")),
        path_alphas(Cosine(), time_grid(2)),
        torch.tensor([0, 0.1, 0.1, 1], dtype=torch.float64),  # a move that reveals nothing
    ],
    ids=["one move", "even", "cosine grid", "cosine schedule", "idle move"],
)
def test_the_distribution_is_the_sum_over_all_paths(alphas):
    number = len(alphas) - 1
    chances = [1 - float((1 - after) / (1 - before)) for before, after in itertools.pairwise(alphas)]
    tables = random_tables(SMALL, number)
    with_time = sampler_distribution(SMALL, alphas, lambda move: tables[move])
    torch.testing.assert_close(with_time, by_all_paths(SMALL, chances, tables), rtol=1e-12, atol=1e-15)
    without_time = sampler_distribution(SMALL, alphas, tables[0])
    expected = by_all_paths(SMALL, chances, [tables[0]] * number)
    torch.testing.assert_close(without_time, expected, rtol=1e-12, atol=1e-15)
    assert float(without_time.sum()) == pytest.approx(1, abs=1e-12)


def test_the_posterior_of_the_chain_is_that_of_its_sequences():
    states, chain = States(3, 4), MarkovChain(3, seed=1)
    q, predictions = chain.log_likelihood(states.clean).exp(), chain_predictions(chain, states)
    assert float(q.sum()) == pytest.approx(1)
    for z, probs in zip(states.tokens, predictions, strict=True):
        agrees = q * ((states.clean == z) | (z == 3)).all(1)
        for position in range(4):
            counts = torch.zeros(3, dtype=torch.float64).index_add_(0, states.clean[:, position], agrees)
            torch.testing.assert_close(probs[position], counts / counts.sum())


@pytest.mark.slow
def test_more_moves_of_the_perfect_teacher_lower_its_divergences_from_the_data():
    states, chain = States(4, 4), exact_chain()
    log_q, posterior = chain.log_likelihood(states.clean), chain_predictions(chain, states)
    divergences = [
        exact_divergences(sampler_distribution(states, path_alphas(LogLinear(), time_grid(number)), posterior), log_q)
        for number in (1, 2, 4, 16, 128)
    ]
    for name in ("kl", "reverse_kl", "total_variation"):
        values = [getattr(each, name) for each in divergences]
        assert values == sorted(values, reverse=True)
        assert 0 < values[-1] < 0.01
    entropy = -float((log_q.exp() * log_q).sum())
    assert divergences[-1].joint_entropy == pytest.approx(entropy, abs=0.03)
    marginals = 4 * -float((chain.stationary * chain.stationary.log()).sum())  # positions are drawn independently
    assert divergences[0].joint_entropy == pytest.approx(marginals)
    assert divergences[0].kl == pytest.approx(marginals_cross_entropy(states, chain) - marginals)


def marginals_cross_entropy(states, chain):
    p = chain.stationary[states.clean].prod(1)
    return -float((p * chain.log_likelihood(states.clean)).sum())


def test_divergences_of_known_distributions_are_those_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
    divergences = exact_divergences(p, q.log())
    assert divergences.kl == pytest.approx(0.5 * math.log(2))
    assert divergences.reverse_kl == math.inf
    assert divergences.total_variation == pytest.approx(0.25)
    assert divergences.joint_entropy == pytest.approx(math.log(2))
    divergences = exact_divergences(q, p.log())
    assert (divergences.kl, divergences.reverse_kl) == (math.inf, pytest.approx(0.5 * math.log(2)))
    assert exact_divergences(q, q.log()).kl == 0
    with pytest.raises(UsageError, match=r"^p is a distribution; got a sum of 0\.75"):
        exact_divergences(q[:2], q[:2].log())


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
def test_the_distribution_of_the_chosen_candidate_is_the_sum_over_all_draws(num_candidates):
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    probs /= probs.sum(1, keepdim=True)
    logits = 6 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    logits -= logits.amax(1, keepdim=True)
    expected = torch.zeros_like(probs)
    for row in range(2):
        for drawn in itertools.product(range(4), repeat=num_candidates):
            choice = logits[row, list(drawn)].softmax(0)
            for outcome, chance in zip(drawn, choice, strict=True):
                expected[row, outcome] += chance * probs[row, list(drawn)].prod()
    torch.testing.assert_close(ranked_probs(probs, logits, num_candidates), expected, rtol=1e-9, atol=1e-12)


def test_weights_below_the_range_of_floats_still_order_candidates():
    probs, logits = torch.tensor([[0.3, 0.3, 0.4], [0.0, -500, -3000]], dtype=torch.float64)[:, None]
    expected = torch.tensor([[1 - 0.7**2, 0.7**2 - 0.4**2, 0.4**2]], dtype=torch.float64)  # the best of two
    torch.testing.assert_close(ranked_probs(probs, logits, 2), expected, rtol=1e-9, atol=1e-12)


SAMPLERS = {
    "ancestral": {},
    "cosine grid": {"grid": "cosine"},
    "given times": {"times": (1.0, 0.4, 0.0)},
    "temperature": {"temperature": 0.6},
    "top-p": {"top_p": 0.55},
    "tau-leaping": {"sampler": "tau-leaping"},
    "re-ranked": {
        "sampler": "guided",
        "guidance": Guidance(tilted_fraction=0.0, num_candidates=3, rank_temperature=0.1),
    },
    "tilted": {
        "sampler": "guided",
        "guidance": Guidance(guidance_scale=40.0, tilted_fraction=1.0, gradient_clamp=0.05, num_candidates=1),
    },
    "guided": {
        "sampler": "guided",
        "guidance": Guidance(guidance_scale=40.0, tilted_fraction=0.67, num_candidates=2, rank_temperature=0.1),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_time_conditioned"), [*((name, False) for name in SAMPLERS), ("ancestral", True), ("guided", True)]
)
def test_the_distribution_is_that_of_the_samples(name, is_time_conditioned, make_dit, make_discriminator, chi_square):
    teacher = make_dit(vocab_size=3, length=3, is_time_conditioned=is_time_conditioned)
    bundle = Bundle(teacher=teacher, discriminator=make_discriminator(teacher, is_time_conditioned=True))
    options = SamplingOptions(**{"batch_size": 2000} | SAMPLERS[name])
    p = ExactRows(bundle).distribution(2, options, 3)
    tokens = generate(bundle, num_samples=2000, nfe=3, seed=1, options=options).tokens
    drawn = (tokens * torch.tensor([4, 2, 1])).sum(1)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert chi_square(drawn, p) > 1e-3
    plain = ExactRows(bundle).distribution(2, SamplingOptions(), 3)
    assert name == "ancestral" or float((p - plain).abs().sum()) > 0.005  # the setting has an effect


def test_tilts_use_the_time_before_a_move_and_weights_of_candidates_the_time_after_it(
    make_dit, make_discriminator, monkeypatch
):
    teacher = make_dit(vocab_size=3, length=2)
    exact = ExactRows(Bundle(teacher=teacher, discriminator=make_discriminator(teacher)))
    times = {"tilted_logits": [], "log_weights": []}
    for name, position in (("tilted_logits", 3), ("log_weights", 2)):
        real = getattr(Guided, name)

        def recording(self, *args, name=name, position=position, real=real):
            times[name].append(float(args[position]))
            return real(self, *args)

        monkeypatch.setattr(Guided, name, recording)
    options = SamplingOptions(sampler="guided", guidance=Guidance(guidance_scale=2.0, tilted_fraction=0.5))
    assert exact.distribution(2, options, 4) is not None
    assert times == {"tilted_logits": [0.75], "log_weights": [0.25, 0.0]}  # the first tilt is 0


def test_other_samplers_have_no_exact_distribution(make_dit, make_discriminator):
    teacher = make_dit(vocab_size=3, length=3)
    exact = ExactRows(Bundle(teacher=teacher, discriminator=make_discriminator(teacher)))
    best = SamplingOptions(sampler="guided", guidance=Guidance(select="best"))
    for options in (SamplingOptions(sampler="confidence"), SamplingOptions(precision="float32"), best):
        assert exact.distribution(2, options, 2) is None
    assert exact.distribution(3, SamplingOptions(), 2) is None  # another chain's symbols
    assert ExactRows(Bundle(teacher=make_dit(vocab_size=3, length=16))).distribution(2, SamplingOptions(), 2) is None


def test_what_cannot_be_enumerated_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"at most 390,625; got 32 symbols and length 32: choose fewer symbols"):
        States(32, 32)
    for alphas in ([0, 0.5], [0.5, 1], [0, 0.7, 0.3, 1]):
        with pytest.raises(UsageError, match=r"^alphas rise from 0 to 1"):
            sampler_distribution(SMALL, torch.tensor(alphas).double(), random_tables(SMALL, 1)[0])
    with pytest.raises(UsageError, match="steps is 1 or more; got 0"):
        minimal_divergence(exact_chain(), 2, 1, steps=0)
    with pytest.raises(UsageError, match=r"every transition has a positive probability; got a minimum of 0\.0"):
        minimal_divergence(MarkovChain(4, successor_probs=(0.6, 0.4), floor=0.0), 2, 1)
    with pytest.raises(UsageError, match="states have the 4 symbols of the chain; got states of 2"):
        chain_predictions(exact_chain(), SMALL)
    with pytest.raises(UsageError, match="p is a distribution; got a sum of nan"):
        exact_divergences(torch.full((4,), math.nan).double(), torch.zeros(4).double())
    with pytest.raises(UsageError, match=r"p is a distribution; got a sum of 1\.0 and a minimum of -0\.5"):
        exact_divergences(torch.tensor([1.5, -0.5]).double(), torch.zeros(2).double())


def test_the_posterior_of_a_single_position_is_the_stationary_distribution():
    chain, states = exact_chain(), States(4, 1)
    torch.testing.assert_close(chain_predictions(chain, states)[-1, 0], chain.stationary)


def test_the_best_of_several_candidates_has_no_exact_distribution(make_dit, make_discriminator):
    teacher = make_dit(vocab_size=3, length=3)
    bundle, times = Bundle(teacher=teacher, discriminator=make_discriminator(teacher)), time_grid(2)
    tables = random_tables(SMALL, 1)

    def distribution(select, num_candidates):
        guidance = Guidance(tilted_fraction=0.0, select=select, num_candidates=num_candidates)
        sampler = make_sampler(bundle, SamplingOptions(sampler="guided", guidance=guidance), 2)
        return guided_distribution(SMALL, sampler, times, lambda _: tables[0])

    assert torch.equal(distribution("best", 1), distribution("sample", 1))
    with pytest.raises(UsageError, match="an exact guided distribution needs select 'sample'; got 'best'"):
        distribution("best", 2)


@pytest.mark.parametrize("floor", [1e-100, 1e-170, 1e-300])
def test_tiny_probabilities_do_not_underflow(floor):
    chain = MarkovChain(3, successor_probs=(0.7, 0.3), floor=floor)
    states = States(3, 4)
    predictions = chain_predictions(chain, states)
    torch.testing.assert_close(predictions.sum(-1), torch.ones(len(states), 4).double())
    limit = minimal_divergence(chain, 3, 1, steps=3)
    assert 0 < limit.student.kl <= limit.teacher.kl < 1
    assert math.isfinite(limit.student.total_variation)


def test_the_descent_to_the_limit_has_a_rate_that_falls_to_0(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    for num_steps in (1, 4):
        limit = minimal_divergence(exact_chain(), 2, 1, steps=num_steps)
        assert limit.student.kl < limit.teacher.kl
    assert rates == pytest.approx([0.05, 0.05, 0.0375, 0.025, 0.0125])


@pytest.mark.slow
def test_the_limit_of_one_move_is_the_best_product_of_marginals():
    chain = MarkovChain(2, seed=0, successor_probs=(0.6, 0.3), floor=0.0)
    log_q = chain.log_likelihood(States(2, 2).clean)
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    first, second = torch.cartesian_prod(grid, grid).unbind(1)
    p = torch.stack([first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)], 1)
    least = float((p * (p.log() - log_q)).sum(1).min())
    limit = minimal_divergence(chain, 2, 1, steps=60, rate=0.1)
    assert limit.student.kl == pytest.approx(least, abs=1e-4)
    assert limit.student.kl <= limit.teacher.kl


@pytest.mark.slow
def test_a_student_of_few_moves_can_be_far_closer_than_its_teacher():
    one, four = (minimal_divergence(exact_chain(), 3, number, steps=25, rate=0.1) for number in (1, 4))
    assert (one.num_moves, four.num_moves) == (1, 4)
    assert 0.3 * one.teacher.kl < one.student.kl < 0.6 * one.teacher.kl
    assert 0 < four.student.kl < 0.2 * four.teacher.kl


@pytest.fixture
def small_bundle(make_dit):
    """A random teacher and student of 4 positions, with the symbols of corpus ``exact``."""
    networks = {"teacher": make_dit(seed=1, vocab_size=5, length=4), "student": make_dit(vocab_size=5, length=4)}
    tokenizer = open_source("exact", length=4).tokenizer
    return Bundle(**networks, tokenizer=tokenizer, provenance={"corpus": "exact"})


class OtherJudge:
    name = "other"

    def score(self, texts, tokens):
        return Scores(torch.ones(len(tokens), dtype=torch.float64), torch.full((len(tokens),), 4))


@pytest.mark.slow
def test_rows_of_an_exact_judge_have_the_divergences_of_their_sampler(small_bundle):
    options = {"role": ["teacher", "student"], "nfe": [1, 3], "sampler": ["ancestral", "confidence"], "num_samples": 4}
    data = exact_chain().sample(4, 4, torch.Generator().manual_seed(0))
    rows = evaluate(small_bundle, judge=["exact", OtherJudge()], data=data, **options)
    for row in rows:
        values = [row.kl, row.reverse_kl, row.total_variation, row.joint_entropy]
        if (row.sampler, row.judge) != ("ancestral", "exact"):
            assert all(math.isnan(value) for value in values)
            continue
        states, chain = States(4, 4), exact_chain()
        p = ExactRows(small_bundle).distribution(4, SamplingOptions(role=row.role), row.nfe)
        divergences = exact_divergences(p, chain.log_likelihood(states.clean))
        assert values == [
            divergences.kl,
            divergences.reverse_kl,
            divergences.total_variation,
            divergences.joint_entropy,
        ]
    assert sum(math.isfinite(row.kl) for row in rows) == 4
    assert {row.judge for row in evaluate(small_bundle, nfe=[1], num_samples=4)} == {"exact"}  # the default


@pytest.mark.slow
def test_the_judge_exact_is_the_chain_of_the_corpus_of_the_bundle(make_dit, small_bundle):
    large = Bundle(teacher=make_dit(vocab_size=33, length=5), provenance={"corpus": "markov"})
    (row,) = evaluate(large, nfe=[1], num_samples=4, judge="exact")
    assert (row.judge, math.isnan(row.kl)) == ("markov", True)  # 33^5 states
    (row,) = evaluate(large, nfe=[1], num_samples=4, judge="markov")
    assert row.judge == "markov"
    with pytest.raises(UsageError, match=r"^judge markov scores .* was trained on the chain exact: use exact$"):
        evaluate(small_bundle, nfe=[1], num_samples=4, judge="markov")


def test_networks_without_time_conditioning_are_run_once_over_all_states(small_bundle, monkeypatch):
    networks = []
    real = rows_module.network_predictions
    monkeypatch.setattr(rows_module, "network_predictions", lambda *a, **k: networks.append(a[0]) or real(*a, **k))
    exact = ExactRows(small_bundle)
    for role in ("teacher", "student", "teacher"):
        for number in (1, 2, 5):
            assert exact(exact_chain(), SamplingOptions(role=role), number) is not None
    assert networks == [small_bundle.teacher, small_bundle.student]
