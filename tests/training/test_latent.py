"""Students with latent codes, ``objective.latent_codes``: training, bundles, and the settings that exclude them."""

from dataclasses import replace

import pytest
import torch

import didi
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.didi_settings import DistillConfig, ObjectiveConfig
from didi.methods.guidance_states import guidance_states, num_guidance_uniforms
from didi.methods.settings import LoopConfig
from didi.models.bundle import Bundle, load, save
from didi.training.trainer import make_trainer

from .distill_case import BUDGETS, CONFIG, WHOLE, equal, weights

LATENT = replace(
    CONFIG,
    objective=ObjectiveConfig(**WHOLE, latent_codes=4, latent_scale=2.0, reference_steps=2),
    discriminator=replace(CONFIG.discriminator, steps_per_student_step=2, fresh_rollouts=True, guidance_steps=1),
)
SHORT = replace(LATENT, discriminator=CONFIG.discriminator)


def trained(make_job, config=LATENT):
    job = make_job(config)
    for step in range(job.num_steps):
        job.step(step)
    return job


def test_a_new_student_has_the_teachers_weights_and_code_embeddings_of_the_configured_scale(make_job):
    method = make_job(LATENT).method
    student, teacher = method.student, method.teacher
    assert student.config == replace(teacher.config, num_codes=4)
    assert equal(weights(teacher), weights(student))
    codes, tokens = student.code_embed.embedding.detach(), teacher.vocab_embed.embedding
    assert codes.shape == (4, tokens.shape[1])
    assert 1.6 < float(codes.std() / tokens.std()) < 2.4
    assert equal(weights(student), weights(make_job(LATENT).method.student))  # depends on the seed only
    other = make_job(replace(LATENT, seed=1)).method.student
    assert not torch.equal(other.code_embed.embedding, codes)
    assert not method.discriminator.trunk.config.num_codes


@pytest.mark.slow
def test_training_changes_every_code_embedding_and_codes_change_the_features(make_job):
    before = make_job(LATENT).method.student.code_embed.embedding.detach().clone()
    job = trained(make_job)
    after = job.method.student.code_embed.embedding
    assert (after - before).abs().amax(1).min() > 1e-5  # every code
    bundle = job.bundle()
    x, codes = torch.arange(8)[None], torch.arange(8)[None] % 4
    with torch.no_grad():
        first, second = (bundle.student.features(x, None, None, latent) for latent in (codes, codes.flip(1)))
    assert not torch.allclose(first, second)
    assert bundle.intended_nfe == 3


def test_validation_of_a_student_with_codes_has_no_nelbo(make_job):
    assert set(make_job(LATENT).validate()) == {"validation_log_ratio"}
    plain = replace(LATENT, objective=ObjectiveConfig(**WHOLE))
    assert set(make_job(plain).validate()) == {"validation_log_ratio", "validation_nelbo"}


@torch.no_grad()
def test_guidance_states_follow_the_distribution_of_the_ancestral_sampler(make_dit, chi_square):
    """States after the first of two moves, about half of them masked, and their mixture over codes."""
    student, num = make_dit(vocab_size=3, length=2, seed=4, scale=1.3, num_codes=2), 20_000
    process, move = Bundle(student=student).process, torch.ones(num, dtype=torch.long)
    assert num_guidance_uniforms(student, process, 2) == 4
    uniforms = torch.rand(4, num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = guidance_states(student, process, move, 2, uniforms)
    of_codes, masks = [], torch.full((1, 2), 2)
    for codes in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        logits = student.head(student.features(masks, None, None, codes[None]))[0, :, :2]
        tokens = torch.cat([logits.double().softmax(-1) / 2, torch.full((2, 1), 0.5)], 1)
        of_codes.append(torch.outer(tokens[0], tokens[1]).flatten())
    assert chi_square(states[:, 0] * 3 + states[:, 1], torch.stack(of_codes).mean(0)) > 1e-3
    assert chi_square(states[:, 0] * 3 + states[:, 1], of_codes[0]) < 1e-3  # not those of a single code


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(source, teacher, assert_resumes_exactly):
    config = replace(SHORT, loop=replace(CONFIG.loop, steps=5), objective=replace(SHORT.objective, reference_steps=0))
    assert_resumes_exactly(
        lambda folder: make_trainer(config, Inputs(source, torch.device("cpu"), folder, teacher)), config.loop, 4
    )


@pytest.mark.slow
def test_codes_can_be_combined_with_several_budgets(make_job):
    config = replace(LATENT, objective=ObjectiveConfig(**BUDGETS, latent_codes=4))
    student = trained(make_job, config).bundle().student
    assert student.config.is_budget_conditioned
    assert student.config.num_codes == 4


@pytest.mark.slow
def test_start_needs_a_student_with_the_same_number_of_codes(make_job, tmp_path):
    job = trained(make_job)
    name = str(save(job.bundle(), tmp_path / "begun"))
    assert equal(weights(make_job(replace(LATENT, start=name)).method.student), weights(job.averaged()))
    for objective in (ObjectiveConfig(**WHOLE), replace(LATENT.objective, latent_codes=2)):
        with pytest.raises(UsageError, match=r"num_codes 4, not \d: set teacher, discriminator and objective as in"):
            make_job(replace(LATENT, objective=objective, start=name))
    with pytest.raises(UsageError, match=r"^a teacher reads no latent codes; .* reads 4: choose another$"):
        make_job(CONFIG, bundle=Bundle(teacher=load(name).student))


@pytest.mark.slow
def test_a_trained_bundle_can_be_sampled(make_job, tmp_path):
    bundle = load(save(trained(make_job).bundle(), tmp_path / "bundle"))
    for sampler in ("ancestral", "guided"):
        assert didi.generate(bundle, num_samples=3, sampler=sampler).tokens.shape == (3, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_rank": 4},
            "objective.latent_codes cannot be combined with .*; got 4 with lora_rank 4: leave",
        ),
        (
            {"loop": LoopConfig(fsdp=True)},
            "latent_codes cannot be combined with .*; got 4 with loop.fsdp: leave",
        ),
    ],
)
def test_codes_with_adapters_or_sharding_are_refused(changes, message):
    objective = replace(LATENT.objective, reference_steps=0)
    with pytest.raises(UsageError, match=message):
        DistillConfig(**{"objective": objective, **changes})


def test_a_teacher_without_masks_is_refused(make_job, make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=32, length=8, mask_id=None, is_time_conditioned=True))
    with pytest.raises(UsageError, match=r"objective\.latent_codes is 0 for a teacher of uniform diffusion"):
        make_job(LATENT, bundle=bundle)
