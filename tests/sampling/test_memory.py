"""A batch that does not fit in memory is refused; the message names the largest batch that fits."""

from dataclasses import dataclass, replace

import pytest
import torch

import didi
from didi.apps.bench import random_bundle
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import DidiError, UsageError
from didi.evaluation.perplexity import Scores
from didi.models.bundle import Bundle
from didi.models.guidance import Guidance
from didi.models.inference import for_inference
from didi.sampling import memory
from didi.sampling.memory import batch_bytes, check_batch, out_of_memory
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import samplers_of


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


class ConstantJudge:
    """A judge that gives each text the same score."""

    name = "constant"

    def score(self, texts, tokens):
        return Scores(torch.ones(len(texts), dtype=torch.float64), torch.ones(len(texts), dtype=torch.long))


@pytest.fixture
def set_free_memory(monkeypatch):
    def set_bytes(num_bytes):
        monkeypatch.setattr(memory, "free_bytes", lambda device: float(num_bytes))

    return set_bytes


@pytest.mark.parametrize("sampler", samplers_of("absorbing"))
def test_a_larger_batch_needs_more_memory(bundle, sampler):
    needed = [batch_bytes(bundle, SamplingOptions(sampler), 128, 8, size) for size in (1, 64, 4096)]
    assert 2**20 < needed[0] < needed[1] < needed[2]


def test_a_trunk_in_bfloat16_needs_half_of_the_activations(bundle):
    alone, converted = (
        batch_bytes(served, SamplingOptions(), 128, 64, 64) for served in (bundle, for_inference(bundle, "bfloat16"))
    )
    trunk = 64 * 128 * bundle.network().config.hidden_size * memory.ACTIVATIONS
    assert alone - converted == pytest.approx(trunk / 2)


def test_a_larger_move_needs_more_memory(bundle):
    """The moves of the cosine grid and of the third set of times differ in size; the last times make one move."""
    kinds = [
        SamplingOptions(),
        SamplingOptions(grid="cosine"),
        SamplingOptions(times=(1.0, 0.2, 0.0)),
        SamplingOptions(times=(1.0, 0.0)),
    ]
    needed = [batch_bytes(bundle, options, 128, 8, 64) for options in [*kinds, *kinds]]
    assert needed[:4] == sorted(set(needed)) == needed[4:]


def test_a_schedule_that_may_change_is_read_at_every_call(bundle):
    @dataclass
    class Schedule:
        power: float
        name: str = "power"

        def alpha(self, t):
            return 1 - t**self.power

        def alpha_prime(self, t):
            return -self.power * t ** (self.power - 1)

    changing = Schedule(1.0)
    other = replace(bundle, process=Absorbing(bundle.network().mask_id, changing))
    even = batch_bytes(other, SamplingOptions(), 128, 8, 64)
    changing.power = 6.0
    assert batch_bytes(other, SamplingOptions(), 128, 8, 64) > even


def test_the_estimate_is_near_a_measured_peak(bundle):
    """Measured: 583 MiB of 32 sequences in one move, at 8,192 symbols and 128 hidden units."""
    assert batch_bytes(bundle, SamplingOptions(), 128, 1, 32) / 2**20 == pytest.approx(583, rel=0.25)


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(bundle, set_free_memory):
    set_free_memory(2**30)
    options = SamplingOptions(batch_size=100_000)
    with pytest.raises(UsageError, match=r"1.0 GiB are free on cpu: lower batch_size to (\d+) or less") as caught:
        didi.stream(bundle, num_samples=100_000, options=options)
    fits = int(str(caught.value).split("batch_size to ")[1].split()[0])
    assert batch_bytes(bundle, options, 128, 8, fits) <= 2**30 < batch_bytes(bundle, options, 128, 8, fits + 1)
    check_batch(bundle, options, 128, 8, fits)  # a batch has at most as many sequences as the sample set


def test_candidates_that_do_not_fit_are_refused_with_the_most_that_do(bundle, set_free_memory):
    set_free_memory(2**30)
    options = SamplingOptions("guided", guidance=Guidance(num_candidates=1_000_000_000))
    with pytest.raises(UsageError, match=r"lower batch_size to 1 and num_candidates to \d+ or less"):
        didi.generate(bundle, nfe=8, options=options)


def test_an_evaluation_refuses_a_row_that_does_not_fit_before_it_samples_the_first(bundle, set_free_memory):
    set_free_memory(2**30)
    options = SamplingOptions(guidance=Guidance(num_candidates=1_000_000_000))
    measured = []
    with pytest.raises(UsageError, match="num_candidates to"):
        didi.evaluate(
            bundle,
            nfe=1,
            num_samples=1,
            sampler=["ancestral", "guided"],
            options=options,
            judge=ConstantJudge(),
            on_set=measured.append,
        )
    assert not measured


def test_a_model_that_never_fits_is_refused(bundle, set_free_memory):
    set_free_memory(1)
    with pytest.raises(UsageError, match="lower length or use a smaller model"):
        didi.stream(bundle)


def test_a_sample_set_that_does_not_fit_is_refused(bundle):
    with pytest.raises(UsageError, match=r"lower num_samples to \d+ or less, or use didi.stream"):
        didi.generate(bundle, num_samples=10**15)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("x\ny"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_is_reported_in_one_line(error):
    with pytest.raises(DidiError, match=r"^out of memory in a batch of 7: lower batch_size$"), out_of_memory(7):
        raise error
    with pytest.raises(ZeroDivisionError), out_of_memory(7):
        raise ZeroDivisionError


def test_the_memory_limit_of_a_container_is_respected(tmp_path):
    for name, text in (("memory.max", "1000"), ("memory.current", "400"), ("memory.stat", "anon 3\ninactive_file 50")):
        (tmp_path / name).write_text(text)
    assert memory._cgroup(tmp_path) == 650
    (tmp_path / "memory.max").write_text("max")
    assert memory._cgroup(tmp_path) == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2 kB\n")
    assert memory._meminfo(tmp_path / "meminfo") == 2048
    assert memory._meminfo(tmp_path / "none") == float("inf")


@pytest.mark.parametrize(
    "process", [ScoreAbsorbing(30), ScoreUniform(31), Uniform(31)], ids=lambda process: process.name
)
def test_every_sampler_of_a_process_has_an_estimate(make_dit, process):
    network = make_dit(vocab_size=31, length=16, mask_id=process.mask_id, is_time_conditioned=True)
    bundle = Bundle(teacher=network, process=process)
    estimates = {
        name: batch_bytes(bundle, SamplingOptions(name), 1024, 4, 64)
        for name in {*samplers_of(process.name)} - {"guided"}
    }
    assert all(value > 0 for value in estimates.values())
    if process.name == "sedd-absorb":
        assert estimates["confidence"] > 1.3 * estimates["ancestral"] == 1.3 * estimates["euler"]
        masked = Bundle(teacher=network, process=Absorbing(30))
        assert estimates["confidence"] == batch_bytes(masked, SamplingOptions("confidence"), 1024, 4, 64)


def test_uniform_state_estimates_are_near_measured_peaks():
    """Measured, 8,191 symbols, 128 hidden units, one move: 261 MiB of 64 sequences, and 273 MiB of 8, published."""
    bundle = Bundle(teacher=random_bundle("tiny-news-udlm").teacher, process=Uniform(8191))
    assert batch_bytes(bundle, SamplingOptions(), 128, 1, 64) / 2**20 == pytest.approx(261, rel=0.33)
    assert batch_bytes(bundle, SamplingOptions("published"), 128, 1, 8) / 2**20 == pytest.approx(273, rel=0.33)


def test_guided_sampling_of_uniform_state_diffusion_has_an_estimate(make_dit, make_discriminator):
    network = make_dit(vocab_size=4096, length=16, mask_id=None, is_time_conditioned=True)
    bundle = Bundle(teacher=network, discriminator=make_discriminator(network), process=Uniform(4096))
    plain, few, many, tilted = (
        batch_bytes(bundle, options, 1024, 8, 64)
        for options in (
            SamplingOptions(),
            SamplingOptions("guided", guidance=Guidance(tilted_fraction=0.0, num_candidates=2)),
            SamplingOptions("guided", guidance=Guidance(tilted_fraction=0.0, num_candidates=64)),
            SamplingOptions("guided", guidance=Guidance(tilted_fraction=1.0)),
        )
    )
    assert few < many
    assert tilted > 64 * 1024 * 4096 * 4 > plain  # all logits of a tilted move
