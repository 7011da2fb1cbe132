"""Settings and helpers for padded batches of proteins, and reference values from each protein without padding."""

from dataclasses import replace

import torch

from didi.data.protein import ProteinData
from didi.data.protein_source import ProteinSource
from didi.diffusion.noise import named_generator
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.bundle import Bundle
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.proteins import MASK_ID, PAD_ID, RESIDUES
from didi.objectives.didi import log_density_ratio

CPU = torch.device("cpu")
LENGTH = 16
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
LOOP = LoopConfig(
    steps=3, batch_size=4, log_every=1, validate_every=2, validation_sequences=6, checkpoint_every=2, ema_decay=0.5
)
PRETRAIN = PretrainConfig(
    data=DataConfig(corpus="proteins.fasta", length=LENGTH),
    network=NetworkConfig(kind="esm2", hidden_size=16, num_blocks=2, num_heads=2, conv_radius=1),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=1),
    loop=LOOP,
)
WHOLE = ObjectiveConfig(
    trajectory="whole-path", moves=3, advantage="leave-one-out", divergence_weight=0.0, entropy_weight=0.0
)
DISTILL = DistillConfig(
    data=DataConfig(corpus="proteins.fasta", length=LENGTH),
    objective=WHOLE,
    discriminator=DiscriminatorSettings(output="sequence", warmup_steps=1, label_smoothing=0.0, guidance_steps=1),
    student_optimizer=OptimizerConfig(learning_rate=1e-3),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LOOP,
)


def random_proteins(num, low=3, high=LENGTH - 2, name="proteins"):
    generator = named_generator("padded", name)
    lengths = torch.randint(low, high + 1, (num,), generator=generator).tolist()
    letters = torch.randint(len(RESIDUES), (num, high), generator=generator).tolist()
    return ["".join(RESIDUES[index] for index in row[:n]) for row, n in zip(letters, lengths, strict=True)]


def protein_source(seed=0):
    """Batches of proteins with very different lengths, since all are in one bucket."""
    train, validation, test = (
        random_proteins(num, name=name) for num, name in ((41, "train"), (9, "val"), (5, "test"))
    )
    data = ProteinData([[residues] for residues in train], validation, test)
    return ProteinSource(data, seed, width=LENGTH)


def protein_teacher(randomise, seed=1, **shape):
    sizes = {"length": LENGTH, "hidden_size": 16, "num_blocks": 2, "num_heads": 2, "conv_radius": 1}
    return Bundle(teacher=randomise(Esm2(Esm2Config(**sizes | {"has_token_dropout": False} | shape)), seed))


def distillation(objective=None, discriminator=None, **changes):
    """``DISTILL`` with other settings."""
    return replace(
        DISTILL,
        objective=replace(WHOLE, **(objective or {})),
        discriminator=replace(DISTILL.discriminator, **(discriminator or {})),
        **changes,
    )


BRANCHES = {"completions": 2, "advantage": "shared-state"}
TWO_MOVES = {
    "trajectory": "two-moves", "moves": None, "completions": 2, "advantage": "shared-state",
    "divergence_weight": 0.5, "entropy_weight": 0.3,
}  # fmt: skip
FRESH = {"steps_per_student_step": 2, "fresh_rollouts": True}
CASES = {
    "whole paths": distillation(discriminator=FRESH),
    "branches": distillation(BRANCHES),
    "rewards at all times": distillation({"reward_time": "both"}),
    "reference": distillation({"reference_steps": 2}, FRESH),
    "two moves": distillation(TWO_MOVES),
    "two moves, a logit for each token": distillation(
        TWO_MOVES | {"revealed_only": True, "pg_reduction": "token-mean"}, {"output": "token"}
    ),
    "path": distillation(TWO_MOVES | {"trajectory": "path", "moves": 3}),
    "one step": distillation(TWO_MOVES | {"trajectory": "one-step"}),
    "corruptions of the same samples": distillation(TWO_MOVES, {"steps_per_student_step": 2}),
}


def rows_and_lengths(canvas):
    """Row and length without padding of each sequence."""
    return list(enumerate(canvas.is_real.sum(1).tolist()))


def log_probs_alone(network, z):
    """Log-probabilities of residues at every position of one state without padding; float64."""
    return network(z[None])[0].double().log_softmax(-1)


def summed_log_prob(log_probs, tokens, where):
    """Sum of the log-probabilities of ``tokens`` at the positions ``where``."""
    return log_probs[where].gather(1, tokens[where][:, None]).sum()


def log_ratio_alone(discriminator, z):
    """Log-ratio of one state without padding."""
    logits = discriminator.eval()(z[None])
    return log_density_ratio(logits, z[None] == MASK_ID)[0]


def gradients(loss, network):
    """Gradient of each trainable parameter by name, 0 for parameters that the loss does not use."""
    names, values = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, values, grads, strict=True)}


def assert_same_gradients(loss, expected_loss, network):
    actual, expected = gradients(loss, network), gradients(expected_loss, network)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-4
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def change_padding_embedding(network):
    """Change the embedding of padding in place."""
    with torch.no_grad():
        network.vocab_embed.embedding[PAD_ID] += 3.0
