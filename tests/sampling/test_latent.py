"""Networks that read latent codes: exact distributions of samples, storage in a bundle, and what is refused."""

from dataclasses import replace
from itertools import cycle, product

import pytest
import torch

import didi
from didi.data.markov import MarkovChain
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.evaluation.exact import latent
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.exact.sampler import after_move, reveal_probabilities, successor_probs
from didi.evaluation.exact.states import States
from didi.evaluation.likelihood import likelihood
from didi.evaluation.speed import Workload, draw_function
from didi.models.bundle import Bundle, load, save
from didi.models.conditioning import latent_conditioned
from didi.models.convert import mdlm_state_dict
from didi.models.dit import DiT, DiTConfig
from didi.models.inference import for_inference
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import path_alphas, time_grid
from didi.sampling.latent import drawn_codes
from didi.sampling.options import SamplingOptions
from didi.sampling.passes import TrunkPass
from didi.sampling.registry import SAMPLERS, samplers_of
from didi.serving.shared import shared_features

LENGTH, SYMBOLS = 3, 3
STATES = States(SYMBOLS, LENGTH)
CODES = torch.tensor([*product(range(2), repeat=LENGTH)])
WITH_CODES = ("ancestral", "guided", "tau-leaping")


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    student = make_dit(vocab_size=SYMBOLS + 1, length=LENGTH, seed=2, num_codes=2)
    return Bundle(student=student, discriminator=make_discriminator(make_dit(vocab_size=SYMBOLS + 1, length=LENGTH)))


@pytest.fixture(scope="module")
def wide(make_dit):
    return Bundle(student=make_dit(vocab_size=40, length=16, scale=3.0, num_codes=8))


@torch.no_grad()
def mixture_over_codes(student, num_moves, *, is_time_conditioned=False):
    """Exact distribution of the samples: in each move the mean over all codes."""
    mass, times = STATES.all_masked(), time_grid(num_moves)
    process = Bundle(student=student).process
    for move, chance in enumerate(reveal_probabilities(path_alphas(process.schedule, times))):
        moved = []
        for codes in CODES:
            level = process.noise_level(student, times[move].expand(len(STATES))) if is_time_conditioned else None
            features = student.features(STATES.tokens, level, None, codes.expand(len(STATES), -1))
            table = student.head(features)[..., :SYMBOLS].double().softmax(-1)
            moved.append(after_move(STATES, mass, successor_probs(STATES, chance, STATES.by_pattern(table))))
        mass = torch.stack(moved).mean(0)
    return STATES.of_clean(mass)


def index_of(x):
    return (x * SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@pytest.mark.parametrize("num_moves", [1, *(pytest.param(num, marks=pytest.mark.slow) for num in (2, 4))])
def test_samples_follow_the_mixture_over_codes(bundle, num_moves, chi_square):
    tokens = didi.generate(bundle, num_samples=3000, nfe=num_moves).tokens
    assert chi_square(index_of(tokens), mixture_over_codes(bundle.student, num_moves)) > 1e-3


@pytest.mark.slow
def test_guided_samples_without_a_tilt_follow_the_mixture_over_codes(bundle, chi_square):
    guidance = didi.Guidance(guidance_scale=0.0, tilted_fraction=0.5, num_candidates=1)
    tokens = didi.generate(bundle, num_samples=3000, nfe=2, sampler="guided", guidance=guidance).tokens
    assert chi_square(index_of(tokens), mixture_over_codes(bundle.student, 2)) > 1e-3


@pytest.mark.parametrize(("num_moves", "is_time_conditioned"), [(1, False), (2, True), (3, False)])
def test_exact_rows_are_the_mixture_over_codes_if_every_code_is_drawn_once(
    make_dit, monkeypatch, num_moves, is_time_conditioned
):
    shape = {"vocab_size": SYMBOLS + 1, "length": LENGTH, "num_codes": 2, "is_time_conditioned": is_time_conditioned}
    student, codes, num_drawn = make_dit(seed=4, **shape), cycle(CODES), []

    def enumerated_codes(uniforms, number):
        num_drawn.append(len(uniforms))
        return CODES if len(uniforms) == len(CODES) else next(codes).expand(len(uniforms), -1)

    monkeypatch.setattr(latent, "codes_from", enumerated_codes)
    monkeypatch.setattr(latent, "DRAWS", 2 * len(CODES))
    monkeypatch.setattr(latent, "FIRST_DRAWS", 2 * len(CODES))
    distribution = ExactRows(Bundle(student=student)).distribution(SYMBOLS, SamplingOptions(), num_moves)
    expected = mixture_over_codes(student, num_moves, is_time_conditioned=is_time_conditioned)
    torch.testing.assert_close(distribution, expected, rtol=1e-5, atol=1e-9)
    num_others = {(1, False): 0, (2, True): 8, (3, False): 8}[num_moves, is_time_conditioned]
    num_times = 2 if is_time_conditioned else 1
    assert sum(num_drawn) == 2 * (num_times * len(CODES) + num_others * 36)  # 36 states are partly masked


@pytest.mark.slow
def test_exact_rows_estimate_the_mixture_over_codes(bundle, monkeypatch):
    monkeypatch.setattr(latent, "DRAWS", 96)
    monkeypatch.setattr(latent, "FIRST_DRAWS", 2**12)
    estimate = ExactRows(bundle).distribution(SYMBOLS, SamplingOptions(), 3)
    assert torch.equal(estimate, ExactRows(bundle).distribution(SYMBOLS, SamplingOptions(), 3))
    assert (estimate - mixture_over_codes(bundle.student, 3)).abs().sum() < 0.05


@pytest.mark.slow
def test_the_note_of_an_estimated_divergence_states_its_bias(bundle, monkeypatch):
    chain = MarkovChain(SYMBOLS, successor_probs=(0.7, 0.2, 0.1))
    p = mixture_over_codes(bundle.student, 2)
    exact = float((p * (p.log() - chain.log_likelihood(STATES.clean))).sum())
    biases = []
    for num_first, num_others in ((8, 2), (2**12, 64)):
        monkeypatch.setattr(latent, "FIRST_DRAWS", num_first)
        monkeypatch.setattr(latent, "DRAWS", num_others)
        result = ExactRows(bundle)(chain, SamplingOptions(), 2)
        assert result.note.startswith("latent codes averaged over draws: KL is high by about")
        biases.append(float(result.note.split("about ")[1].split()[0]))
    assert biases[0] > 10 * biases[1] > 0
    assert abs(result.kl - exact) < 0.03
    assert ExactRows(bundle)(chain, SamplingOptions("guided"), 2) is None


@pytest.mark.slow
@pytest.mark.parametrize("length", [16, [16, 9, 4]], ids=["equal", "padded"])  # equal rows share a pass
@pytest.mark.parametrize("sampler", WITH_CODES)
def test_samples_do_not_depend_on_the_batch(wide, make_discriminator, make_dit, sampler, length):
    bundle = replace(wide, discriminator=make_discriminator(make_dit(vocab_size=40, length=16)))
    samples = [
        didi.generate(bundle, num_samples=6, nfe=5, sampler=sampler, batch_size=size, length=length).tokens
        for size in (1, 4, 6)
    ]
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_every_move_draws_new_codes(wide, monkeypatch):
    calls, features = [], DiT.features

    def recorded(self, inputs, sigma=None, attention_mask=None, codes=None):
        calls.append((inputs, codes))
        return features(self, inputs, sigma, attention_mask, codes)

    monkeypatch.setattr(DiT, "features", recorded)
    given = torch.tensor([1, 2, 0, 0, 0, 0, 0, 7]).expand(4, -1)
    canvas = Canvas(given, given == 0, torch.ones_like(given, dtype=torch.bool))
    *_, last = Ancestral(wide.student, wide.process, is_whole_batch=True)(
        canvas, time_grid(3), SequenceNoise(0, range(4))
    )
    assert (last.z[:, [0, 1, 7]] == torch.tensor([1, 2, 7])).all()
    assert [len(codes) for _, codes in calls] == [4, 4, 4]
    first, second, third = (codes for _, codes in calls)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.stack([first, second, third]).unique().tolist() == list(range(8))
    assert all((inputs[:, [0, 1, 7]] == torch.tensor([1, 2, 7])).all() for inputs, _ in calls)


@torch.no_grad()
def test_padding_does_not_change_the_codes_of_a_sequence(wide):
    padded, alone = SequenceNoise(7, [0, 1], lengths=[2, 4]), SequenceNoise(7, [0])
    for _ in range(2):
        codes, expected = (drawn_codes(wide.student, *draw, torch.device("cpu")) for draw in ((padded, 4), (alone, 2)))
        assert torch.equal(codes[:1, :2], expected)


def test_a_shared_pass_gives_each_request_its_codes(wide):
    student, generator = wide.student, torch.Generator().manual_seed(0)
    requests = []
    for width in (5, 16, 9):
        z, codes = (torch.randint(n, (2, width), generator=generator) for n in (40, 8))
        requests.append(TrunkPass(z, torch.tensor(0.5, dtype=torch.float64), None, codes))
    for request, features in zip(requests, shared_features(student, wide.process, requests), strict=True):
        alone = student.features(request.inputs, None, None, request.codes)
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", sorted({*samplers_of("absorbing")} - {*WITH_CODES}))
def test_samplers_that_draw_no_codes_are_refused(bundle, sampler):
    with pytest.raises(UsageError, match="reads latent codes, which only ancestral, guided, tau-leaping") as caught:
        didi.generate(bundle, num_samples=2, nfe=SAMPLERS[sampler][0].num_moves or 2, sampler=sampler)
    assert "\n" not in str(caught.value)


def test_draws_in_float32_are_refused(bundle):
    with pytest.raises(UsageError, match="in float64 supports; got ancestral in float32: choose one of these"):
        didi.generate(bundle, num_samples=2, nfe=2, precision="float32")


def test_a_likelihood_is_refused(bundle):
    with pytest.raises(UsageError, match=r"this network reads a latent code at each position \(num_codes 2\)"):
        likelihood(bundle.student, bundle.process, torch.zeros(2, LENGTH, dtype=torch.long))


@pytest.mark.parametrize("method", ["ancestral", "guided", "trunk", "guided floor", "passes"])
def test_measurements_of_speed_run_networks_that_read_codes(bundle, method):
    draw_function(bundle, method, Workload(2, LENGTH, 2))()


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["int8", "bfloat16"])
def test_int8_and_bfloat16_networks_read_codes(wide, numerics):
    low_precision, z = for_inference(wide, numerics).student, torch.arange(16)[None]
    for codes in (torch.zeros_like(z), z % 8):
        exact, approximate = (network.features(z, None, None, codes) for network in (wide.student, low_precision))
        assert (approximate - exact).norm() / exact.norm() < 0.2


def test_a_saved_bundle_is_loaded_with_its_codes(bundle, tmp_path):
    loaded = load(save(bundle, tmp_path / "bundle"))
    assert loaded.student.config == bundle.student.config
    assert torch.equal(
        didi.generate(loaded, num_samples=9, nfe=2).tokens, didi.generate(bundle, num_samples=9, nfe=2).tokens
    )
    config = tmp_path / "bundle/student/config.json"
    config.write_text(config.read_text().replace('"num_codes": 2', '"num_codes": 100000'))
    with pytest.raises(UsageError, match="too large for the"):
        load(tmp_path / "bundle")


def test_the_public_layout_cannot_store_codes(bundle):
    with pytest.raises(UsageError, match="the MDLM layout has no latent codes"):
        mdlm_state_dict(bundle.student)


def test_other_networks_cannot_read_codes():
    with pytest.raises(UsageError, match="latent codes are read by a DiT; got Linear: set latent_codes to 0"):
        latent_conditioned(torch.nn.Linear(1, 1), 4, 1.0)


@pytest.mark.parametrize("number", [1, -2])
def test_an_invalid_number_of_codes_is_refused(number):
    with pytest.raises(UsageError, match=f"num_codes is 2 or more, or 0 for none; got {number}"):
        DiTConfig(vocab_size=4, mask_id=3, length=2, hidden_size=8, num_heads=2, num_codes=number)
