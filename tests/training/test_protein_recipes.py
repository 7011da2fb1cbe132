"""Recipes of proteins: settings of App. F.6, numbers of parameters, disjoint halves of the corpora, and dry runs."""

from dataclasses import replace

import pytest
import torch

from didi.data.protein_source import random_source
from didi.methods.base import Inputs
from didi.methods.new_networks import make_autoregressive, make_denoiser
from didi.models.bert import BertConfig
from didi.models.bundle import Bundle
from didi.models.discriminator import num_parameters
from didi.models.networks import network_of
from didi.recipes import DISTILL, PRETRAIN, num_symbols, teacher_process, teacher_shape
from didi.training.dry_run import CPU, dry_run


def test_the_recipe_dplm_150m_has_the_settings_of_appendix_f6():
    config = DISTILL["dplm-150m"]
    student, discriminator = config.student_optimizer, config.discriminator_optimizer
    assert (student.learning_rate, discriminator.learning_rate) == (1e-5, 5e-6)
    assert student.warmup_steps == discriminator.warmup_steps == 1000
    assert config.discriminator.output == "sequence"
    assert config.data.length == 1024
    assert config.loop.batch_size * config.data.length <= 4096
    text = DISTILL["owt-169m"]
    assert config.objective == text.objective
    assert (config.loop.steps, student.weight_decay, student.decay) == (
        text.loop.steps, text.student_optimizer.weight_decay, text.student_optimizer.decay,
    )  # fmt: skip


def test_teacher_and_judge_of_swissprot_have_5_to_10_million_parameters_and_learn_from_different_halves():
    teacher, judge = PRETRAIN["swissprot"], PRETRAIN["swissprot-ar"]
    source = random_source(64, num_proteins=2)
    with torch.device("meta"):
        sizes = [
            num_parameters(make_denoiser(teacher, source, teacher_process("swissprot"))),
            num_parameters(make_autoregressive(judge, source)),
        ]
    assert all(5e6 < size < 10e6 for size in sizes)
    assert (teacher.data.corpus, judge.data.corpus) == ("swissprot:first", "swissprot:second")
    assert DISTILL["swissprot"].data == teacher.data
    assert num_symbols(teacher.data) == teacher_shape("swissprot").vocab_size == 33


def test_the_antibody_recipes_have_the_shape_of_antiberty_and_learn_from_different_halves():
    teacher, judge, student = PRETRAIN["antibody"], PRETRAIN["antibody-ar"], DISTILL["antibody"]
    shape = teacher_shape("antibody")
    assert isinstance(shape, BertConfig)
    assert replace(shape, dropout=0.0, length=512) == BertConfig()
    assert (teacher.data.corpus, judge.data.corpus, teacher.start, judge.start) == (
        "vh:first", "vh:second", "./bundles/antiberty", "",
    )  # fmt: skip
    assert student.data == teacher.data
    assert student.discriminator.output == "sequence"
    assert teacher.optimizer.learning_rate < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["dplm-150m", "swissprot", "antibody"])
def test_a_dry_run_of_a_distillation_has_four_networks_of_the_teachers_size(name):
    config, shape = DISTILL[name], teacher_shape(name)
    if name == "dplm-150m":
        shape = replace(shape, num_blocks=6)  # of 30 equal ones
    cut = replace(
        config,
        loop=replace(config.loop, steps=1),
        discriminator=replace(config.discriminator, warmup_steps=1, guidance_steps=1),
    )

    def inputs(folder):
        return Inputs(random_source(config.data.length, 32), CPU, folder, Bundle(teacher=network_of(shape).eval()))

    record = dry_run(cut, inputs, batch_size=4)
    with torch.device("meta"):
        size = num_parameters(network_of(shape))
    assert record.parameters == pytest.approx(4 * size, rel=0.02)  # student, teacher, average and discriminator
    assert record.flops > 1e10
    assert record.peak > 4 * size * 4
