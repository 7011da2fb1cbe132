"""Times of samplers beside those of their network passes alone, the floor; shares of the time; peak memory."""

import json
import statistics
from dataclasses import replace
from functools import partial

import pytest
import torch

import didi
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation import speed_work
from didi.evaluation.speed import (
    Variant,
    Workload,
    compare,
    default_methods,
    draw_function,
    floor_of,
    peak_memory,
    trace,
)
from didi.evaluation.speed_row import SpeedRow, speed_table
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT, DiTConfig
from didi.sampling.token_distribution import TokenDistribution

WORKLOAD = Workload(batch_size=3, length=32, nfe=4)


@pytest.fixture(scope="module")
def bundle():
    teacher = didi.load("markov")
    return replace(teacher, discriminator=Discriminator.from_denoiser(teacher.teacher).eval())


@pytest.mark.slow
def test_every_method_is_timed_in_every_round_and_compared_with_its_floor(bundle):
    calls = []
    methods = ("ancestral", "trunk", "published", "guided", "guided floor", "autoregressive")
    rows = compare(
        bundle,
        [WORKLOAD],
        methods=methods,
        rounds=2,
        on_round=lambda workload, number: calls.append((workload, number)),
    )
    assert calls == [(WORKLOAD, 0), (WORKLOAD, 1), (WORKLOAD, 2)]
    assert [row.method for row in rows] == list(methods)
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    by_name = {row.method: row for row in rows}
    for name, floor in (("ancestral", "trunk"), ("published", "trunk"), ("guided", "guided floor")):
        ratios = [a / b for a, b in zip(by_name[name].seconds, by_name[floor].seconds, strict=True)]
        assert by_name[name].over_floor == (statistics.median(ratios), min(ratios), max(ratios))
    assert by_name["trunk"].over_floor is None
    published, ancestral = by_name["published"], by_name["ancestral"]
    assert published.speedup == (1, 1, 1)
    assert ancestral.speedup[1] == min(a / b for a, b in zip(published.seconds, ancestral.seconds, strict=True))
    assert by_name["autoregressive"].nfe == 32
    assert by_name["ancestral"].tokens_per_second == pytest.approx(3 * 32 / (sum(by_name["ancestral"].seconds) / 2))
    assert [SpeedRow.from_record(json.loads(json.dumps(row.record()))).record() for row in rows] == [
        row.record() for row in rows
    ]
    table = speed_table(rows, model="a model", machine="a machine")
    assert table.count("\n| ") == 6
    assert "medians of 2 rounds" in table


@pytest.mark.slow
def test_variants_are_timed_beside_the_plain_published_algorithm(bundle):
    variants = [Variant(), Variant("int8")]
    rows = compare(bundle, [WORKLOAD], methods=("ancestral", "trunk", "published"), variants=variants, rounds=1)
    kinds = [(row.method, row.variant) for row in rows]
    assert kinds == [
        ("ancestral", "float32"),
        ("trunk", "float32"),
        ("published", "float32"),
        ("ancestral", "int8"),
        ("trunk", "int8"),
    ]
    int8 = rows[3]
    assert int8.over_floor[0] == int8.seconds[0] / rows[4].seconds[0]
    assert int8.speedup[0] == rows[2].seconds[0] / int8.seconds[0]


def passes(bundle, method, workload):
    with speed_work._recording(bundle) as recorded:
        draw_function(bundle, method, workload)()
    return recorded.shapes


@pytest.mark.slow
def test_a_floor_makes_the_passes_of_its_sampler(bundle):
    ancestral = passes(bundle, "ancestral", WORKLOAD)
    assert ancestral[0] == ("trunk", 1, False)
    assert ancestral[1:] == [("trunk", 3, False)] * 3
    # The floor is traced while it is made, so its own passes follow those of the sampler.
    assert passes(bundle, "trunk", WORKLOAD)[len(ancestral) :] == ancestral
    guided = passes(bundle, "guided", Workload(3, 32, 8))
    assert ("discriminator", 3, True) in guided  # the tilted move
    assert ("discriminator", 12, False) in guided  # four candidates of three sequences
    floor = passes(bundle, "guided floor", Workload(3, 32, 8))[len(guided) :]
    assert len(floor) == len(guided) + sum(has_gradient for *_, has_gradient in guided)


def test_shares_sum_to_one_and_the_wrapped_functions_are_restored(bundle):
    before = (TokenDistribution.sample, torch.autograd.grad)
    shares = trace(bundle, "guided", WORKLOAD).shares
    assert set(shares) == {"trunk", "head", "draw", "discriminator", "rest"}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert before == (TokenDistribution.sample, torch.autograd.grad)
    assert "features" not in vars(bundle.denoiser())


def test_what_a_bundle_lacks_is_named(bundle):
    alone = Bundle(teacher=bundle.teacher, name="mine")
    with pytest.raises(UsageError, match="bundle mine has none"):
        draw_function(alone, "guided floor", WORKLOAD)


@pytest.mark.slow
def test_memory_of_the_ancestral_sampler_is_far_below_the_published_algorithms():
    from didi.apps.bench import _bundle

    load_bundle = partial(_bundle, "tiny-news", None, is_random=True)
    workload = Workload(batch_size=16, length=128, nfe=8)
    ancestral, published = (
        peak_memory(load_bundle, method, workload, Variant()) for method in ("ancestral", "published")
    )
    assert published > 16 * 128 * 8192 * 8 / 2**20  # a float64 number for every position and symbol
    assert ancestral < published / 4


def bundle_of(process, mask_id):
    torch.manual_seed(0)
    shape = DiTConfig(
        vocab_size=9, mask_id=mask_id, length=32, hidden_size=16, num_blocks=1, num_heads=2, is_time_conditioned=True
    )
    return Bundle(teacher=DiT(shape).eval(), process=process)


PROCESSES = {
    "uniform": (Uniform(9), None, ("ancestral", "greedy-tail", "passes", "published")),
    "sedd-uniform": (ScoreUniform(9), None, ("ancestral", "euler", "passes")),
    "sedd-absorb": (ScoreAbsorbing(8), 8, ("ancestral", "euler", "passes")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_other_processes_are_timed_beside_trunk_and_head_at_every_predicted_position(name):
    process, mask_id, methods = PROCESSES[name]
    bundle = bundle_of(process, mask_id)
    assert default_methods(process) == methods
    rows = {row.method: row for row in compare(bundle, [WORKLOAD], methods=methods, rounds=1)}
    assert list(rows) == list(methods)
    for method in set(methods) - {"passes"}:
        assert floor_of(method, process) == "passes"
        assert rows[method].over_floor[0] == rows[method].seconds[0] / rows["passes"].seconds[0]
    recorded = trace(bundle, "ancestral", WORKLOAD)
    assert len(recorded.head_rows) == len(recorded.shapes) == WORKLOAD.nfe
    with speed_work._recording(bundle) as floor:
        draw_function(bundle, "passes", WORKLOAD, traced=recorded)()
    assert floor.shapes == recorded.shapes
    every = [rows * WORKLOAD.length for _, rows, _ in recorded.shapes]
    if name == "uniform":
        assert sum(recorded.head_rows) < sum(every)  # the sampler reads fewer
        assert floor.head_rows == every
    elif name == "sedd-uniform":
        assert floor.head_rows == recorded.head_rows == every
    else:
        assert floor.head_rows == recorded.head_rows < [3 * 32] * WORKLOAD.nfe


def test_a_sampler_that_the_process_does_not_have_is_refused():
    bundle = bundle_of(ScoreUniform(9), None)
    with pytest.raises(UsageError, match="published does not sample sedd-uniform diffusion; use one of ancestral"):
        draw_function(bundle, "published", WORKLOAD)
