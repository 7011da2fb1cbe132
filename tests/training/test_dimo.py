"""Di[M]O: gradients compared with pure functions, settings, resumption, several processes, and a learning test."""

from dataclasses import replace

import pytest
import torch

from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.exact.rows import ExactRows
from didi.methods.base import Inputs
from didi.methods.dimo import DimoConfig
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig
from didi.models.bundle import Bundle, load
from didi.models.initial_state import InitialState
from didi.objectives.dimo import auxiliary_losses, logit_gradient, mask_ratios, surrogate_loss
from didi.process_group import ProcessGroup
from didi.recipes import distillation_recipes
from didi.sampling.options import SamplingOptions
from didi.training.trainer import make_trainer

from .distill_case import CPU
from .observed_step import observe_distillation, pretrained
from .test_learning import PRETRAIN, TinySource

BATCH, LENGTH, MASK = 4, 8, 32
CONFIG = DimoConfig(
    data=DataConfig(corpus="markov", length=LENGTH),
    initial_state=InitialState(mask_ratio=0.5, noise_std=0.2),
    reverse_weight=0.3,
    label_smoothing=0.1,
    student_optimizer=OptimizerConfig(learning_rate=1e-3),
    auxiliary_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(
        steps=3, batch_size=BATCH, log_every=1, validate_every=2, validation_sequences=16, checkpoint_every=2,
        ema_decay=0.5,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def timed_teacher(make_dit):
    """A random teacher that reads its noise level."""
    return Bundle(teacher=make_dit(vocab_size=33, length=LENGTH, seed=1, is_time_conditioned=True))


@pytest.fixture
def observe(source, timed_teacher, tmp_path):
    return lambda config, steps=(0,): observe_distillation(config, list(steps), source, timed_teacher, tmp_path)


def flat(values):
    return torch.cat([value.flatten() for value in values.values()])


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def log_probs(logits):
    return logits.index_fill(-1, torch.tensor(MASK), -torch.inf).log_softmax(-1)


def samples(student, state, repeat=0):
    """Logits of initial states, and tokens drawn from them."""
    generator = named_generator(0, "initial-state", 0, 0, repeat)
    uniforms = torch.rand(BATCH, LENGTH, 3, dtype=torch.float64, generator=generator)
    normals = torch.randn(BATCH, LENGTH, student.hidden_size, generator=generator)
    tokens = state.tokens(Canvas.blank(BATCH, LENGTH), uniforms[..., :2], MASK, 33)
    noisy = (1 - state.noise_std**2) ** 0.5 * student.embed(tokens) + state.noise_std * normals
    sigma = Bundle(student=student).process.noise_level(student, torch.ones(BATCH, dtype=torch.float64))
    logits = student.head(student.features_of_embeddings(noisy, sigma))
    drawn = sample_categorical(log_probs(logits.detach()).flatten(0, 1), uniforms[..., 2].flatten())
    return logits, drawn.view(BATCH, LENGTH)


def remasked(x, kind, *names):
    """States, masks and noise levels: round(r L) of the positions, 1 or more."""
    generator = named_generator(0, *names)
    ratio = mask_ratios(kind, torch.rand(BATCH, dtype=torch.float64, generator=generator))
    order = torch.rand(BATCH, LENGTH, generator=generator).argsort(1)
    masks = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, size in enumerate((ratio * LENGTH).round().clamp(min=1).long().tolist()):
        masks[row, order[row, :size]] = True
    return x.masked_fill(masks, MASK), masks, (-(1 - ratio).log()).float()


@pytest.mark.parametrize("kind", ["arccos", "uniform"])
def test_the_gradients_of_a_step_equal_those_from_pure_functions(observe, kind):
    config = replace(CONFIG, mask_ratios=kind)
    observed = observe(config)
    student, auxiliary, teacher = (observed.before[name] for name in ("student", "auxiliary", "teacher"))
    assert [update.network for update in observed.updates] == ["auxiliary", "student"]
    logits, x = samples(student, config.initial_state)
    z, masks, sigma = remasked(x, kind, "auxiliary", 0, 0, 0)
    losses = auxiliary_losses(log_probs(auxiliary(z, sigma)[masks]), x[masks], 0.1)
    (losses.sum() / x.numel()).backward()
    torch.testing.assert_close(flat(observed.updates[0].gradient), gradients(auxiliary), rtol=1e-4, atol=1e-6)
    auxiliary.load_state_dict(observed.weights_after("auxiliary", 0), strict=False)  # now updated
    z, masks, sigma = remasked(x, kind, "student", 0, 0)
    with torch.no_grad():
        rows = (log_probs(network(z, sigma)[masks]) for network in (auxiliary, teacher))
        gradient = logit_gradient(*rows, 0.3)
    (surrogate_loss(logits[masks], gradient) / BATCH).backward()
    torch.testing.assert_close(flat(observed.updates[1].gradient), gradients(student), rtol=1e-3, atol=1e-5)


def test_further_updates_of_the_auxiliary_model_have_new_samples(observe):
    observed = observe(replace(CONFIG, auxiliary_steps=2))
    assert [update.network for update in observed.updates] == ["auxiliary", "auxiliary", "student"]
    auxiliary = observed.before["auxiliary"]
    auxiliary.load_state_dict(observed.weights_after("auxiliary", 0), strict=False)
    _, x = samples(observed.before["student"], CONFIG.initial_state, repeat=1)
    z, masks, sigma = remasked(x, "arccos", "auxiliary", 0, 0, 1)
    (auxiliary_losses(log_probs(auxiliary(z, sigma)[masks]), x[masks], 0.1).sum() / x.numel()).backward()
    torch.testing.assert_close(flat(observed.updates[1].gradient), gradients(auxiliary), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "change"),
    [
        ("student", {"initial_state": InitialState(0.25, 0.2)}),
        ("student", {"initial_state": InitialState(0.5, 0.1)}),
        ("student", {"initial_state": InitialState(0.5, 0.0)}),
        ("student", {"mask_ratios": "uniform"}),
        ("student", {"reverse_weight": 0.0}),
        ("student", {"auxiliary_steps": 2}),
        ("auxiliary", {"label_smoothing": 0.0}),
        ("student", {"seed": 1}),
    ],
    ids=str,
)
def test_every_setting_changes_the_gradient(observe, network, change):
    changed, plain = (observe(config).of(network)[-1] for config in (replace(CONFIG, **change), CONFIG))
    assert not torch.allclose(flat(changed.gradient), flat(plain.gradient), rtol=1e-3)


@pytest.mark.parametrize("network", ["student", "auxiliary"])
def test_the_learning_rate_of_each_network_changes_its_weights(observe, network):
    faster = {f"{network}_optimizer": OptimizerConfig(learning_rate=2e-3)}
    changed, plain = (observe(config).after[network] for config in (replace(CONFIG, **faster), CONFIG))
    assert not torch.equal(flat(changed), flat(plain))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(source, timed_teacher, assert_resumes_exactly):
    assert_resumes_exactly(
        lambda folder: make_trainer(CONFIG, Inputs(source, CPU, folder, timed_teacher)), CONFIG.loop, 1
    )


def test_two_processes_have_the_gradient_of_one(source, timed_teacher, monkeypatch, tmp_path):
    def batch_and_gradient():
        method = make_trainer(CONFIG, Inputs(source, CPU, tmp_path, timed_teacher)).method
        with torch.no_grad():  # otherwise auxiliary model and teacher are equal, and the student's gradient is small
            for parameter in method.auxiliary.parameters():
                parameter.mul_(1.3)
        batch = method.prepare(0, 0)
        (method._auxiliary_loss(0, batch)[0] + method._student_loss(batch)[0]).backward()
        return batch, torch.cat([gradients(network) for network in method.trained.values()])

    whole, parts = batch_and_gradient(), []
    for rank in range(2):
        monkeypatch.setattr("didi.methods.dimo.process_group", lambda rank=rank: ProcessGroup(rank, 2))
        parts.append(batch_and_gradient())
    assert torch.equal(torch.cat([batch.x for batch, _ in parts]), whole[0].x)
    mean = (parts[0][1] + parts[1][1]) / 2
    torch.testing.assert_close(mean, whole[1], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(parts[0][1], whole[1], rtol=0.1)


def test_accumulation_allows_one_update_of_each_network(source, timed_teacher, tmp_path):
    loop = replace(CONFIG.loop, batch_size=2, accumulation=2)
    job = make_trainer(replace(CONFIG, loop=loop), Inputs(source, CPU, tmp_path, timed_teacher))
    assert job.step(0)["sequence_passes"] == 8 * BATCH  # student and auxiliary 3 each, auxiliary and teacher 1 each
    with pytest.raises(UsageError, match=r"auxiliary_steps is 1 where loop\.accumulation is more than 1") as caught:
        replace(CONFIG, loop=loop, auxiliary_steps=2)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_bundle_has_its_initial_state_and_one_move(source, timed_teacher, tmp_path):
    job = make_trainer(CONFIG, Inputs(source, CPU, tmp_path, timed_teacher))
    job.step(0)
    saved = load(job.bundle().save_pretrained(tmp_path / "bundle"))
    assert (saved.initial_state, saved.intended_nfe) == (CONFIG.initial_state, 1)
    assert [*saved.networks()] == ["student", "teacher"]
    assert list(job.validate()) == ["validation_auxiliary_nelbo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auxiliary_steps": 0}, "auxiliary_steps is 1 or more; got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing lies in \[0, 1\); got 1.0"),
        ({"reverse_weight": float("nan")}, "reverse_weight is a finite number; got nan"),
        ({"loop": LoopConfig(fsdp=True), "student_optimizer": OptimizerConfig(method="muon")}, "AdamW"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(CONFIG, **change)


def test_recipes_have_published_or_shorter_settings():
    recipes = distillation_recipes("dimo")
    assert all(isinstance(config, DimoConfig) for config in recipes.values())
    published = recipes["owt-169m"]
    assert (published.student_optimizer.learning_rate, published.loop.ema_decay) == (1e-5, 0.9999)
    assert published.student_optimizer.weight_decay == published.auxiliary_optimizer.weight_decay == 0  # Adam
    assert published.loop.steps == 50_000
    assert all(recipes[name].loop.steps < 2000 for name in ("exact", "markov", "tiny-news"))  # the default is 10,000


@pytest.mark.slow
def test_training_lowers_the_divergence_of_one_step_below_that_of_any_product_of_marginals(tmp_path):
    """From 1.71 to 0.43 nats; the best product of marginals of this chain has 1.22 (``exact.limit``)."""
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    config = DimoConfig(
        data=DataConfig(corpus="tiny", length=5),
        initial_state=InitialState(0.5, 0.0),
        auxiliary_steps=2,
        student_optimizer=OptimizerConfig(learning_rate=1e-3),
        auxiliary_optimizer=OptimizerConfig(learning_rate=4e-3),
        loop=LoopConfig(steps=150, batch_size=64, ema_decay=0.9),
    )
    job = make_trainer(config, Inputs(source, CPU, tmp_path, teacher))
    before = one_step_kl(job.bundle(), source.chain)
    for step in range(job.num_steps):
        job.step(step)
    assert before > 1.5
    assert one_step_kl(job.bundle(), source.chain) < 0.8


def one_step_kl(bundle, chain):
    """KL(student's one-step sampler || data) in nats a sequence."""
    return ExactRows(bundle)(chain, SamplingOptions(role="student"), 1).kl
