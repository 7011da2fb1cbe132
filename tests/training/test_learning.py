"""A short distillation lowers the exact divergence between the few-move sampler of the student and the data.

The data are sequences of 5 symbols of a Markov chain of 4: the distribution of the sampler is a sum over 3,125 states.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models

from didi.data.markov import MarkovChain
from didi.data.source import OneLength
from didi.diffusion.noise import named_generator
from didi.evaluation.exact.product import positionwise_distribution
from didi.evaluation.exact.rows import ExactRows
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.guidance import Guidance
from didi.sampling.base import time_grid
from didi.sampling.options import SamplingOptions
from didi.sampling.uniform_ancestral import UniformAncestral

from .observed_step import distilled, pretrained

NUM_SYMBOLS, LENGTH = 4, 5
MASK = NUM_SYMBOLS
STATES = torch.cartesian_prod(*[torch.arange(NUM_SYMBOLS + 1)] * LENGTH)
DATA = DataConfig(corpus="tiny", length=LENGTH)
PRETRAIN = PretrainConfig(
    data=DATA,
    weight="constant",
    network=NetworkConfig(hidden_size=32, num_blocks=2, num_heads=2, cond_dim=8),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20, decay="cosine"),
    loop=LoopConfig(steps=400, batch_size=128, ema_decay=0.9),
)
DISTILL = DistillConfig(
    data=DATA,
    objective=ObjectiveConfig(
        completions=3, advantage="shared-state", revealed_only=True, divergence_weight=0.0, entropy_weight=0.0
    ),
    discriminator=DiscriminatorSettings(warmup_steps=150),
    student_optimizer=OptimizerConfig(learning_rate=2e-4, weight_decay=0.0),
    discriminator_optimizer=OptimizerConfig(learning_rate=2e-3),
    loop=LoopConfig(steps=60, batch_size=128, ema_decay=0.0),
)


WHOLE_PATH = replace(
    DISTILL,
    objective=ObjectiveConfig(
        trajectory="whole-path", moves=4, advantage="leave-one-out", divergence_weight=0.0, entropy_weight=0.0
    ),
    discriminator=DiscriminatorSettings(
        output="sequence", label_smoothing=0.0, warmup_steps=100, steps_per_student_step=3, fresh_rollouts=True
    ),
)


class TinySource(OneLength):
    """Sequences of a Markov chain of 4 symbols."""

    vocab_size, mask_id, mean_length = NUM_SYMBOLS + 1, MASK, float(LENGTH)

    def __init__(self):
        self.chain = MarkovChain(NUM_SYMBOLS)
        self.validation, self.test = (self.chain.sample(64, LENGTH, named_generator("tiny", n)) for n in (0, 1))
        self.tokenizer = Tokenizer(models.WordLevel({f"s{n}": n for n in range(NUM_SYMBOLS)} | {"[MASK]": MASK}))

    def batch(self, step, batch_size):
        return self.chain.sample(batch_size, LENGTH, named_generator("tiny", "train", step))


@torch.no_grad()
def sampler_probs(network, num_moves):
    """Probability of each state at the end of the ancestral sampler with even moves, float64."""
    probs = network(STATES)[..., :NUM_SYMBOLS].double().softmax(-1)
    mass = torch.zeros(len(STATES), dtype=torch.float64)
    mass[-1] = 1  # all masks
    times = [1 - number / num_moves for number in range(num_moves + 1)]
    for t, s in pairwise(times):
        reveal = (t - s) / t
        masked = torch.cat([reveal * probs, torch.full((*STATES.shape, 1), 1 - reveal, dtype=torch.float64)], -1)
        visible = torch.nn.functional.one_hot(STATES, NUM_SYMBOLS + 1).double()
        of_position = torch.where((STATES == MASK)[..., None], masked, visible)
        transition = torch.ones(len(STATES), 1, dtype=torch.float64)  # STATES are in the order of numbers in base 5
        for position in range(LENGTH):
            transition = (transition[:, :, None] * of_position[:, position, None]).flatten(1)
        mass = mass @ transition
    return mass


def divergence_from_data(network, chain, num_moves):
    """KL(sampler || data) in nats a sequence."""
    is_clean = (STATES != MASK).all(1)
    probs = sampler_probs(network, num_moves)[is_clean]
    assert float(probs.sum()) == pytest.approx(1, abs=1e-9)
    return float((probs * (probs.log() - chain.log_likelihood(STATES[is_clean]))).sum())


@pytest.mark.slow
def test_a_short_distillation_lowers_the_divergence_of_the_sampler(tmp_path):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    student = distilled(DISTILL, source, teacher, tmp_path).student
    for num_moves in (2, 4):  # from 0.71 to 0.48 and from 0.28 to 0.20, within 0.01 for three seeds of the distillation
        before, after = (divergence_from_data(net, source.chain, num_moves) for net in (teacher.teacher, student))
        assert after < 0.8 * before


@pytest.mark.slow
def test_whole_paths_lower_the_divergence_at_their_number_of_moves(tmp_path):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    student = distilled(WHOLE_PATH, source, teacher, tmp_path).student
    before, after = (divergence_from_data(net, source.chain, 4) for net in (teacher.teacher, student))
    assert after < 0.75 * before  # 0.278 to 0.174


@pytest.mark.slow
def test_a_reference_with_a_higher_learning_rate_lowers_the_divergence_further(tmp_path):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    faster = replace(WHOLE_PATH, student_optimizer=replace(WHOLE_PATH.student_optimizer, learning_rate=1e-3))
    faster = replace(faster, objective=replace(WHOLE_PATH.objective, reference_steps=10))
    student = distilled(faster, source, teacher, tmp_path).student
    before, after = (divergence_from_data(net, source.chain, 4) for net in (teacher.teacher, student))
    assert after < 0.55 * before  # 0.278 to 0.136


@pytest.mark.slow
def test_whole_paths_of_uniform_state_diffusion_lower_the_divergence_of_their_sampler(tmp_path):
    source = TinySource()
    network = replace(PRETRAIN.network, is_time_conditioned=True)
    teacher = pretrained(replace(PRETRAIN, process="uniform", weight="nelbo", network=network), source)
    student = distilled(WHOLE_PATH, source, teacher, tmp_path).student
    log_q = source.chain.log_likelihood(STATES[(STATES != MASK).all(1)])

    def divergence_at_4_moves(net):
        sampler = UniformAncestral(net, teacher.process)
        probs = positionwise_distribution(sampler, NUM_SYMBOLS, LENGTH, time_grid(4))
        return float((probs * (probs.log() - log_q)).sum())

    before, after = divergence_at_4_moves(teacher.teacher), divergence_at_4_moves(student)
    assert after < 0.8 * before  # 0.517 to 0.334


@pytest.mark.slow
def test_a_discriminator_trained_alone_improves_guided_sampling(tmp_path):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    config = replace(
        DISTILL,
        discriminator=DiscriminatorSettings(
            output="sequence", label_smoothing=0.0, warmup_steps=0, guidance_steps=400, guidance_nfe=2
        ),
        loop=replace(DISTILL.loop, steps=0),
    )
    bundle = distilled(config, source, teacher, tmp_path)
    assert all(
        torch.equal(value, bundle.teacher.state_dict()[key]) for key, value in bundle.student.state_dict().items()
    )
    re_ranked = SamplingOptions("guided", guidance=Guidance(tilted_fraction=0.0))
    plain, guided = (ExactRows(bundle)(source.chain, options, 2).kl for options in (SamplingOptions(), re_ranked))
    assert plain == pytest.approx(divergence_from_data(teacher.teacher, source.chain, 2), abs=1e-5)
    assert guided < 0.8 * plain
