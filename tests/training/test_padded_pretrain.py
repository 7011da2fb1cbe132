"""Pre-training on proteins of different lengths: padding changes neither the loss nor its gradient."""

from dataclasses import replace

import pytest
import torch

from didi.data.source import MarkovSource
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.models.autoregressive import AutoregressiveLM
from didi.models.nelbo import nats_per_token, nelbo_draws
from didi.models.proteins import ALPHABET, BEGIN_ID, END_ID, MASK_ID, PAD_ID
from didi.process_group import ProcessGroup
from didi.training.trainer import make_trainer

from .padded_case import (
    CLOSE,
    CPU,
    PRETRAIN,
    assert_same_gradients,
    gradients,
    log_probs_alone,
    protein_source,
    rows_and_lengths,
    summed_log_prob,
)


@pytest.fixture(scope="module")
def source():
    return protein_source()


@pytest.fixture
def job(source, randomise):
    """A pre-training whose float64 network has random weights."""
    job = make_trainer(PRETRAIN, Inputs(source, CPU))
    randomise(job.method.trained["network"].double(), seed=3)
    return job


def test_the_loss_of_a_padded_batch_is_the_mean_over_proteins_of_the_loss_per_residue(job):
    network, process = job.method.trained["network"], job.method.process
    for weight in ("nelbo", "constant"):
        job.method.settings = replace(PRETRAIN, weight=weight)
        batch = job.method.prepare(0, 0)
        assert batch.canvas.has_padding
        loss, metrics = job.method._nelbo(batch)
        alone = []
        for row, width in rows_and_lengths(batch.canvas):
            x0, z = batch.x0[row, :width], batch.z[row, :width]
            scale = process.loss_weight(batch.t[row]) if weight == "nelbo" else 1.0
            alone.append(-scale * summed_log_prob(log_probs_alone(network, z), x0, z == MASK_ID) / (width - 2))
        expected = torch.stack(alone).mean()
        torch.testing.assert_close(loss.double(), expected, **CLOSE)
        if weight == "nelbo":
            torch.testing.assert_close(metrics["nelbo"].double(), expected.detach(), **CLOSE)
        assert_same_gradients(loss, expected, network)


def test_neither_special_symbols_nor_padding_are_masked_or_predicted(job):
    network = job.method.trained["network"]
    num_masks = 0
    for step in range(12):
        batch = job.method.prepare(step, 0)
        is_special = (batch.x0 == BEGIN_ID) | (batch.x0 == END_ID) | (batch.x0 == PAD_ID)
        assert torch.equal(batch.z[is_special], batch.x0[is_special])
        assert torch.equal(batch.canvas.is_free, ~is_special)
        num_masks += int((batch.z == MASK_ID).sum())
        assert batch.num_predicted == (batch.z == MASK_ID).sum()
    assert num_masks > 50
    gradient_of = gradients(job.method._nelbo(batch)[0], network)
    assert not gradient_of["vocab_embed.embedding"][PAD_ID].any()
    assert gradient_of["vocab_embed.embedding"][BEGIN_ID].any()
    is_possible = network(batch.z, None, batch.canvas.attention_mask).isfinite()
    is_residue = [name.isalpha() and name != "X" for name in ALPHABET]
    assert torch.equal(
        is_possible[batch.canvas.is_real], torch.tensor(is_residue).expand(int(batch.canvas.is_real.sum()), -1)
    )


@torch.no_grad()
def test_validation_is_the_bound_of_each_protein_alone_per_residue(job, source):
    network, process, rows = job.method.trained["network"], job.method.process, source.validation
    value = nats_per_token(network, process, rows, batch_size=4, canvas_of=source.canvas)
    total, num_residues = 0.0, 0
    for number, row in enumerate(rows):
        canvas = source.canvas(row[row != PAD_ID][None])
        assert not canvas.has_padding
        total += float(nelbo_draws(network, process, canvas, 1, [named_generator(0, "validation", number)]).sum())
        num_residues += int(canvas.is_free.sum())
    assert value == pytest.approx(total / num_residues, rel=1e-5)


def test_a_process_without_a_row_of_the_last_batch_adds_nothing_to_the_bound(job, source, monkeypatch):
    class FirstProcess(ProcessGroup):
        def sum(self, value):
            return value  # as if the other processes added 0

    monkeypatch.setattr("didi.models.nelbo.process_group", lambda: FirstProcess(0, 2))
    network, process, rows = job.method.trained["network"], job.method.process, source.validation[:1]
    assert nats_per_token(network, process, rows, batch_size=4, canvas_of=source.canvas) == 0


def test_an_autoregressive_network_learns_residues_only(source):
    config = replace(PRETRAIN, model="autoregressive", network=replace(PRETRAIN.network, kind="dit"))
    job = make_trainer(config, Inputs(source, CPU))
    network = job.method.trained["network"].double()
    batch = job.method.prepare(0, 0)
    loss, _ = job.method._nll(batch)
    alone = []
    for row, width in rows_and_lengths(batch.canvas):
        terms = AutoregressiveLM.nll(network, batch.x0[row : row + 1, :width])[0]
        alone.append(terms[1:-1].mean())
    torch.testing.assert_close(loss, torch.stack(alone).mean(), **CLOSE)
    assert_same_gradients(loss, torch.stack(alone).mean(), network)
    rows = source.validation
    with torch.no_grad():
        value = nats_per_token(network, job.method.process, rows, batch_size=4, canvas_of=source.canvas)
        parts = [AutoregressiveLM.nll(network, row[row != PAD_ID][None])[0, 1:-1] for row in rows]
    assert value == pytest.approx(float(torch.cat(parts).mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["masked-diffusion", "autoregressive"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(assert_resumes_exactly, model):
    config = replace(PRETRAIN, model=model)
    assert_resumes_exactly(lambda folder: make_trainer(config, Inputs(protein_source(), CPU)), config.loop, stop_in=1)


def test_processes_share_the_proteins_of_a_batch(job, monkeypatch):
    whole = job.method.prepare(1, 0)
    loss, parts = job.method._nelbo(whole)[0], []
    for rank in range(2):
        monkeypatch.setattr("didi.process_group._current", ProcessGroup(rank, 2))
        batch = job.method.prepare(1, 0)
        here = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(batch.x0, whole.x0[here])
        assert torch.equal(batch.z, whole.z[here])
        parts.append(job.method._nelbo(batch)[0])
    torch.testing.assert_close(torch.stack(parts).mean(), loss)  # DDP averages their gradients


def test_settings_that_do_not_support_proteins_are_refused(source):
    for changes, message in (
        ({"process": "uniform"}, "need process absorbing; got uniform"),
        ({"process": "sedd-absorb"}, "need process absorbing; got sedd-absorb"),
    ):
        config = replace(PRETRAIN, network=replace(PRETRAIN.network, kind="dit"), **changes)
        with pytest.raises(UsageError, match=message):
            make_trainer(config, Inputs(source, CPU))
    with pytest.raises(UsageError, match=r"network\.kind esm2 reads proteins, of 33 symbols"):
        make_trainer(replace(PRETRAIN, data=replace(PRETRAIN.data, length=7)), Inputs(MarkovSource(7, 0, "exact"), CPU))
    with pytest.raises(UsageError, match="has no time input"):
        replace(PRETRAIN.network, is_time_conditioned=True)
