"""DiDi-Instruct on proteins of different lengths: all gradients equal those of each protein without padding."""

import pytest
import torch
from torch.nn import functional as F

from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import divergence, entropy
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.masked_moves import MaskedMoves
from didi.methods.rollout import rollout
from didi.methods.sdtt import SdttConfig
from didi.methods.trajectories import Uniforms
from didi.methods.whole_path import path_log_probs
from didi.models.proteins import MASK_ID, PAD_ID
from didi.objectives.didi import advantages, policy_loss
from didi.process_group import ProcessGroup
from didi.training.trainer import make_trainer

from .padded_case import (
    CASES,
    CLOSE,
    CPU,
    DISTILL,
    assert_same_gradients,
    change_padding_embedding,
    distillation,
    gradients,
    log_probs_alone,
    log_ratio_alone,
    protein_source,
    protein_teacher,
    rows_and_lengths,
    summed_log_prob,
)

STUDENT, GUIDANCE = 1, 4


@pytest.fixture
def make_method(randomise, tmp_path):
    """Function that makes a distillation with float64 networks, each with other random weights."""

    def make(config):
        job = make_trainer(config, Inputs(protein_source(), CPU, tmp_path, protein_teacher(randomise)))
        method = job.method
        for number, network in enumerate([*method.trained.values(), method.teacher, job.average.module]):
            randomise(network.double(), seed=5 + number)
        if method._reference:
            randomise(method._reference.network.double(), seed=9)
        method.discriminator.train = lambda mode=True: method.discriminator  # keeps spectral norms constant
        return method

    return make


@pytest.fixture(params=CASES, ids=list(CASES))
def method(request, make_method):
    return make_method(CASES[request.param])


def scores_of_paths_alone(network, drawn, num_moves):
    """Log-probability of the moves before the branch and after it, replayed for each protein without padding."""
    times = 1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves
    before, after = (torch.zeros(drawn.x.shape[:2], dtype=torch.float64) for _ in range(2))
    for row, width in rows_and_lengths(drawn.canvas):
        for path in range(drawn.x.shape[1]):
            x, reveal = drawn.x[row, path, :width], drawn.record[row, path, 0, :width]
            z, is_residue = x.clone(), drawn.canvas.is_free[row, :width]
            z[is_residue] = MASK_ID
            for s in times[1:]:
                is_revealed = (z == MASK_ID) & (reveal >= s)
                if is_revealed.any():
                    side = before if s >= drawn.tau[row] else after
                    side[row, path] += summed_log_prob(log_probs_alone(network, z), x, is_revealed)
                z = torch.where(is_revealed, x, z)
    return before, after


def scores_alone(method, drawn):
    """Score of the first and of the second move for each protein alone, and the rows that are regularised."""
    student, objective = method.student, method.settings.objective
    first, second, regularised = [], [], [[], []]
    for row, width in rows_and_lengths(drawn.canvas):
        is_residue, z = drawn.canvas.is_free[row, :width], drawn.z_tau[row, :width]
        start = torch.where(is_residue, MASK_ID, z)
        of_start, of_z = (log_probs_alone(student, state) for state in (start, z))
        first.append(summed_log_prob(of_start, z, is_residue & (z != MASK_ID)))
        for network, rows in ((student, regularised[0]), (method.teacher, regularised[1])):
            rows.append((log_probs_alone(network, start)[is_residue], log_probs_alone(network, z)[z == MASK_ID]))
        for x, z_t in zip(drawn.x[row, :, :width], drawn.z_t[row, :, 0, :width], strict=True):
            counted = (z == MASK_ID) & ((z_t != MASK_ID) if objective.revealed_only else True)
            second.append(summed_log_prob(of_z, x, counted))
    is_scored = objective.trajectory == "two-moves"
    return torch.stack(first) * is_scored, torch.stack(second).view(drawn.x.shape[:2]), regularised


def regulariser_alone(objective, regularised):
    """Weighted divergence minus entropy, means over the residues of each move that is regularised."""
    total = 0.0
    for move in range(1 if objective.trajectory in ("one-step", "whole-path") else 2):
        of_student, of_teacher = (torch.cat([rows[move] for rows in side]).float() for side in regularised)
        total = total - objective.entropy_weight * entropy(of_student).mean()
        total = total + objective.divergence_weight * divergence("forward", of_teacher.detach(), of_student).mean()
    return total


def student_loss_alone(method, drawn):
    objective, canvas = method.settings.objective, drawn.canvas
    discriminator = method.discriminator
    rewards = torch.stack(
        [
            log_ratio_alone(discriminator, z_t[:width])
            for row, width in rows_and_lengths(canvas)
            for z_t in drawn.z_t[row].flatten(0, 1)
        ]
    ).view(drawn.z_t.shape[:3])
    regulariser = 0.0
    if objective.trajectory == "whole-path":
        first, second = scores_of_paths_alone(method.student, drawn, objective.moves)
        if method._reference:
            of_reference = sum(scores_of_paths_alone(method._reference.network, drawn, objective.moves))
            rewards = rewards + (first + second - of_reference).detach().float()[..., None]
        first = first[:, 0]
    else:
        first, second, regularised = scores_alone(method, drawn)
        regulariser = regulariser_alone(objective, regularised)
    if objective.pg_reduction == "token-mean":
        num_residues = canvas.is_real.sum(1) - 2
        first, second = first / num_residues, second / num_residues[:, None]
    advantage = advantages(rewards, grouping=objective.advantage)
    return policy_loss(first, second[..., None], advantage, torch.ones(len(canvas))).mean() + regulariser


def test_the_students_gradient_is_that_of_the_proteins_alone(method):
    batch = method.prepare(STUDENT, 0)
    drawn = batch.rollout
    assert drawn.canvas.has_padding
    loss, _ = method._student_loss(batch)
    expected = student_loss_alone(method, drawn)
    torch.testing.assert_close(loss.double(), expected.double(), **CLOSE)
    assert_same_gradients(loss, expected, method.student)


def test_the_discriminators_gradient_is_that_of_the_proteins_alone(method, monkeypatch):
    calls = []
    monkeypatch.setattr(method, "_compare", lambda *args: calls.append(args) or type(method)._compare(method, *args))
    batch = method.prepare(STUDENT, 0)
    for repeat in range(method.settings.discriminator.steps_per_student_step):
        loss, metrics = method._discriminator_loss(repeat, batch)
        fake, real, *_ = calls[-1]
        is_right, losses = [], {1: [], 0: []}
        for side, label in ((fake, 1), (real, 0)):
            for row, width in rows_and_lengths(side):
                z = side.tokens[row : row + 1, :width]
                logits = method.discriminator(z)[0].double()
                target = torch.full_like(logits, float(label))
                terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
                counted = (z[0] == MASK_ID) if (z == MASK_ID).any() else torch.ones_like(z[0], dtype=torch.bool)
                losses[label].append(terms if terms.ndim == 0 else terms[counted].mean())
                ratio = logits if logits.ndim == 0 else logits[counted].mean()
                is_right.append(float((ratio > 0) == bool(label)))
        expected = (torch.stack(losses[1]).mean() + torch.stack(losses[0]).mean()) / 2
        assert float(metrics["discriminator_accuracy"]) == pytest.approx(sum(is_right) / len(is_right))
        torch.testing.assert_close(loss.double(), expected, **CLOSE)
        assert_same_gradients(loss, expected, method.discriminator)


@pytest.mark.slow
def test_the_embedding_of_padding_has_no_effect(method):
    """Losses and gradients of all phases, and validation, do not depend on it."""

    def losses_and_validation():
        losses, batch = [], method.prepare(STUDENT, 0)
        for repeat in range(method.settings.discriminator.steps_per_student_step):
            losses.append(method._discriminator_loss(repeat, batch)[0])
            assert not gradients(losses[-1], method.discriminator)["trunk.vocab_embed.embedding"][PAD_ID].any()
        losses.append(method._student_loss(batch)[0])
        assert not gradients(losses[-1], method.student)["vocab_embed.embedding"][PAD_ID].any()
        losses.append(method._guidance_loss(method.prepare(GUIDANCE, 0))[0])
        return [*(float(loss.detach()) for loss in losses), *method.validate().values()]

    before = losses_and_validation()
    networks = [method.student, method.teacher, method.discriminator.trunk, method.runtime.averaged()]
    for network in [*networks, *([method._reference.network] if method._reference else [])]:
        change_padding_embedding(network)
    assert losses_and_validation() == pytest.approx(before, rel=1e-6)


def test_samples_have_the_lengths_and_special_symbols_of_their_real_rows(method, monkeypatch):
    calls = []
    monkeypatch.setattr(method, "_compare", lambda *args: calls.append(args) or type(method)._compare(method, *args))
    settings, batch = method.settings, method.prepare(STUDENT, 0)
    for repeat in range(settings.discriminator.steps_per_student_step):
        method._discriminator_loss(repeat, batch)
    method._guidance_loss(method.prepare(GUIDANCE, 0))
    is_same = settings.objective.completions == 1  # otherwise only the first completion has the length of its row
    for number, (fake, real, *_) in enumerate(calls):
        is_guidance = number + 1 == len(calls)
        for side in (fake, real):
            canvas = method.source.canvas(torch.where(side.tokens == MASK_ID, 5, side.tokens))
            assert torch.equal(canvas.is_free, side.is_free)
            assert torch.equal(canvas.is_real, side.is_real)
        if is_same or is_guidance:
            assert torch.equal(fake.is_real, real.is_real)
        elif number == 0 or settings.discriminator.fresh_rollouts:
            num = settings.objective.completions
            assert torch.equal(fake.is_real[::num], real.is_real[::num])
    sizes = {(fake.is_real.sum(1)).sum().item() for fake, *_ in calls}
    assert len(sizes) > 1  # updates have different rows


@pytest.mark.parametrize("branch", [1, 3])
def test_paths_of_a_batch_equal_those_of_each_protein_alone(randomise, branch):
    """With equal uniform numbers, tokens and scores of a protein are the same with and without padding."""
    network, source = protein_teacher(randomise).teacher.double(), protein_source()
    canvas, process = source.canvas(source.batch(0, 4)), protein_teacher(randomise).process
    uniforms = torch.rand(2, 4, 2, canvas.length, dtype=torch.float64, generator=named_generator("paths"))

    class FixedUniforms(Uniforms):
        """The uniform numbers of some proteins, for the first ``width`` positions."""

        def __init__(self, rows, width):
            self.parts = [numbers[rows, :, :width].clone() for numbers in uniforms]

        def __call__(self, *shape):
            return self.parts.pop(0)

    batch = MaskedMoves.of(network, process, 3, canvas).branches(branch, 2, FixedUniforms(slice(None), canvas.length))
    for row, width in rows_and_lengths(canvas):
        here = slice(row, row + 1)
        alone = source.canvas(canvas.tokens[here, :width])
        single = MaskedMoves.of(network, process, 3, alone).branches(branch, 2, FixedUniforms(here, width))
        assert torch.equal(batch.completions.x[row, :, :width], single.completions.x[0])
        assert torch.equal(batch.z[row, :width], single.z[0])
        torch.testing.assert_close(batch.first_score[row], single.first_score[0], **CLOSE)
        log_probs = single.completions.log_probs[0]
        torch.testing.assert_close(batch.completions.log_probs[row, :, :width], log_probs, **CLOSE)
        assert torch.equal(batch.completions.x[row, :, width:], canvas.tokens[row, width:].expand(2, -1))
        again = path_log_probs(network, process, single.completions.x, single.record, 3, canvas=alone)
        torch.testing.assert_close(again[0], single.first_score + log_probs.sum(-1), **CLOSE)


def test_the_teachers_first_log_probs_are_computed_anew_for_the_lengths_of_each_step(make_method):
    """Unlike those of sequences of one length, first states differ between steps, so that none may be cached."""
    method = make_method(CASES["two moves"])
    for step in (STUDENT, STUDENT + 1):
        drawn = method.prepare(step, 0).rollout
        first, _ = method._teacher_log_probs(method.teacher, drawn)
        alone = []
        for row, width in rows_and_lengths(drawn.canvas):
            is_residue = drawn.canvas.is_free[row, :width]
            start = torch.where(is_residue, MASK_ID, drawn.z_tau[row, :width])
            alone.append(log_probs_alone(method.teacher, start)[is_residue])
        torch.testing.assert_close(first.double(), torch.cat(alone).detach(), **CLOSE)


def test_processes_share_the_proteins_of_a_rollout(make_method, monkeypatch):
    method = make_method(DISTILL)
    whole = method.prepare(STUDENT, 0).rollout
    for rank in range(2):
        monkeypatch.setattr("didi.process_group._current", ProcessGroup(rank, 2))
        local, here = method.prepare(STUDENT, 0).rollout, slice(2 * rank, 2 * rank + 2)
        assert torch.equal(local.x, whole.x[here])
        assert torch.equal(local.canvas.is_real, whole.canvas.is_real[here])
        torch.testing.assert_close(local.first_score, whole.first_score[here], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole paths", "two moves"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(randomise, assert_resumes_exactly, name):
    config = CASES[name]
    teacher = protein_teacher(randomise)
    assert_resumes_exactly(
        lambda folder: make_trainer(config, Inputs(protein_source(), CPU, folder, teacher)), config.loop, stop_in=2
    )


def test_settings_that_do_not_support_proteins_are_refused(make_method):
    for config, message in (
        (
            distillation(discriminator={"real_source": "teacher-pool"}),
            "real_source is corpus for sequences of different",
        ),
        (distillation({"moves": 1, "initial_mask_ratio": 0.5}, {"guidance_steps": 0}), "initial_mask_ratio is 1 for"),
        (SdttConfig(data=DISTILL.data, loop=DISTILL.loop), "need method didi"),
    ):
        with pytest.raises(UsageError, match=message):
            make_method(config)


def test_rollouts_without_a_canvas_have_free_positions_only(randomise):
    network = protein_teacher(randomise).teacher
    process = protein_teacher(randomise).process
    drawn = rollout(network, process, 3, 8, CASES["two moves"].objective, named_generator("free"), CPU)
    assert drawn.canvas.is_all_free
    assert torch.equal(drawn.canvas.is_free, Canvas.blank(3, 8).is_free)
