import math
from dataclasses import replace
from functools import partial

import pytest
import torch

import didi
from didi.errors import UsageError
from didi.evaluation import speed
from didi.evaluation.speed import Load, compare, contestant, peak_memory, shares, speed_table
from didi.models.discriminator import Discriminator
from didi.models.hub import Bundle
from didi.sampling.departure import Departure

LOAD = Load(batch_size=3, length=32, nfe=4)


@pytest.fixture(scope="module")
def bundle():
    teacher = didi.load("markov")
    return replace(teacher, discriminator=Discriminator.from_denoiser(teacher.teacher).eval())


def test_every_contestant_is_timed_in_every_round_beside_its_floor(bundle):
    seen = []
    methods = ("ancestral", "trunk", "published", "guided", "guided floor", "autoregressive")
    rows = compare(bundle, [LOAD], methods=methods, rounds=2, on_round=lambda load, number: seen.append((load, number)))
    assert seen == [(LOAD, 0), (LOAD, 1), (LOAD, 2)]
    assert [row.method for row in rows] == list(methods)
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    by_name = {row.method: row for row in rows}
    for name, floor in (("ancestral", "trunk"), ("published", "trunk"), ("guided", "guided floor")):
        ratios = [a / b for a, b in zip(by_name[name].seconds, by_name[floor].seconds, strict=True)]
        assert by_name[name].floor_range == (min(ratios), max(ratios))
    assert math.isnan(by_name["trunk"].floor_ratio)
    assert by_name["autoregressive"].nfe == 32
    assert by_name["ancestral"].tokens_per_second == pytest.approx(3 * 32 / (sum(by_name["ancestral"].seconds) / 2))
    table = speed_table(rows, bundle)
    assert table.count("\n| ") == 6
    assert "medians of 2 rounds" in table


def passes(bundle, method, load):
    with speed._watched(bundle) as seen:
        contestant(bundle, method, load)()
    return seen.shapes


def test_a_floor_makes_the_passes_of_its_sampler(bundle):
    ancestral = passes(bundle, "ancestral", LOAD)
    assert ancestral[0] == ("trunk", 1, False)
    assert ancestral[1:] == [("trunk", 3, False)] * 3
    # The floor is traced while it is made, so its own passes follow those of the sampler.
    assert passes(bundle, "trunk", LOAD)[len(ancestral) :] == ancestral
    guided = passes(bundle, "guided", Load(3, 32, 8))
    assert ("discriminator", 3, True) in guided  # the tilted move
    assert ("discriminator", 12, False) in guided  # four candidates of three sequences
    floor = passes(bundle, "guided floor", Load(3, 32, 8))[len(guided) :]
    assert len(floor) == len(guided) + sum(has_gradient for *_, has_gradient in guided)


def test_shares_sum_to_one_and_the_watched_functions_are_put_back(bundle):
    before = (Departure.log_probs, torch.autograd.grad, speed.ancestral.sample_categorical)
    found = shares(bundle, "guided", LOAD)
    assert set(found) == {"trunk", "head", "draw", "discriminator", "rest"}
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0
    assert before == (Departure.log_probs, torch.autograd.grad, speed.ancestral.sample_categorical)
    assert "features" not in vars(bundle.denoiser())


def test_what_a_bundle_lacks_is_named(bundle):
    alone = Bundle(teacher=bundle.teacher, name="mine")
    with pytest.raises(UsageError, match="bundle mine has none"):
        contestant(alone, "guided floor", LOAD)


@pytest.mark.slow
def test_memory_of_ours_stays_far_below_that_of_the_published_algorithm():
    from didi.apps.bench import _bundle

    make = partial(_bundle, "tiny-news", None, "float32", is_random=True, is_compiled=False)
    load = Load(batch_size=16, length=128, nfe=8)
    ours, published = (peak_memory(make, method, load) for method in ("ancestral", "published"))
    assert published > 16 * 128 * 8192 * 8 / 2**20  # a float64 number for every position and symbol
    assert ours < published / 4
