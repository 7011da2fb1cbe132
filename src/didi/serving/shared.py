"""Passes and draws for the requests of several samplers at once, each as it would be alone.

On a CPU, kernels round a row in one way whatever stands beside it, if rows have 16 positions or more and matrices 16
rows or more. The padded length of a row follows from its own length, and a vocabulary head never has fewer rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.models.denoiser import Denoiser
from didi.models.latent import features_with
from didi.sampling.base import noise_levels
from didi.sampling.draw_check import DrawCheck
from didi.sampling.passes import PassSampler, TokenDraw, TrunkPass

SHORTEST = 16
"""Least padded length. Kernels on a CPU work on 8 or 16 positions at a time and round what is left over otherwise."""
POSITIONS = {"cpu": 2**11, "cuda": 2**16}
"""Most positions in a pass: on a CPU, more do not fit in its cache and gain no time."""

FEWEST_ROWS = 16
"""Rows of the vocabulary head; products of fewer rows are rounded in another way."""
LOGITS = 2**22
"""Most logits that exist at the same time, 16 MiB, unless one job has more."""


def padded_length(length: int, context: int) -> int:
    """Positions that a row of ``length`` takes in a pass: a power of two, and at most the network's ``context``."""
    return max(length, min(context, max(SHORTEST, 1 << (length - 1).bit_length())))


@torch.inference_mode()
def shared_features(
    denoiser: Denoiser, process: Process, passes: Sequence[TrunkPass]
) -> list[Float[Tensor, "_r _l d"]]:
    """Features of each of ``passes``, from one pass of the trunk; all have one padded length."""
    length = padded_length(passes[0].inputs.shape[1], denoiser.length)
    rows = [len(one.inputs) for one in passes]
    device = passes[0].inputs.device
    inputs = torch.zeros(sum(rows), length, dtype=torch.long, device=device)
    is_real = torch.zeros_like(inputs, dtype=torch.bool)
    for one, there, real in zip(passes, inputs.split(rows), is_real.split(rows), strict=True):
        width = one.inputs.shape[1]
        there[:, :width] = one.inputs
        real[:, :width] = True if one.attention_mask is None else one.attention_mask
    codes = None if passes[0].codes is None else torch.zeros_like(inputs)  # all are of one network
    if codes is not None:
        for one, there in zip(passes, codes.split(rows), strict=True):
            there[:, : one.inputs.shape[1]] = one.codes
    has_padding = any(one.attention_mask is not None or one.inputs.shape[1] < length for one in passes)
    levels = [noise_levels(denoiser, process, one.t, one.inputs) for one in passes]
    level = None if levels[0] is None else torch.cat([one for one in levels if one is not None])
    features = features_with(denoiser, inputs, level, is_real if has_padding else None, codes)
    return [own[:, : one.inputs.shape[1]] for one, own in zip(passes, features.split(rows), strict=True)]


@torch.inference_mode()
def shared_tokens(samplers: Sequence[PassSampler], draws: Sequence[TokenDraw]) -> list[Int[Tensor, " _n"]]:
    """Tokens of each of ``draws``, from one product with the vocabulary head.

    Args:
        samplers: of each of them; all have one network, temperature and top-p.
        draws: features and uniforms.

    Raises:
        NotFinite: logits of one of them are not finite.
    """
    features = torch.cat([one.features for one in draws])
    num_rows = len(features)
    if num_rows < FEWEST_ROWS:
        features = torch.cat([features, features[:1].expand(FEWEST_ROWS - num_rows, -1)])
    first, sizes = samplers[0], [len(one.features) for one in draws]
    logits = first.denoiser.head(features)[:num_rows]
    for sampler, own in zip(samplers, logits.split(sizes), strict=True):
        sampler.token_distribution.draw_check.check(own)  # on a GPU it answers at the end of its own request
    uniforms = torch.cat([one.uniforms for one in draws])
    token_distribution = replace(first.token_distribution, draw_check=DrawCheck())
    tokens = token_distribution.sample(logits, first.process.mask_id, uniforms)
    return list(tokens.split(sizes))
