"""Trunk passes and draws for several samplers at once; each sampler gets the values that it would get alone.

On a CPU, kernels round a row in the same way for any other rows of the batch, provided that rows have at least 16
positions and matrices at least 16 rows. Therefore the padded length of a row depends only on its own length, and the
input of the vocabulary head is padded to 16 rows.
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
"""Smallest padded length. CPU kernels process blocks of 8 or 16 positions and round the remainder differently."""
POSITIONS = {"cpu": 2**11, "cuda": 2**16}
"""Limit on the positions of a pass, by type of device. On a CPU, more do not fit into the cache and save no time."""

FEWEST_ROWS = 16
"""Smallest number of rows of the vocabulary head; products of fewer rows are rounded differently."""
LOGITS = 2**22
"""Limit on the logits of a draw, 16 MiB in float32; a single job may have more."""


def padded_length(length: int, context: int) -> int:
    """Length that a row is padded to: the next power of two, at least ``SHORTEST``, at most the context length."""
    return max(length, min(context, max(SHORTEST, 1 << (length - 1).bit_length())))


@torch.inference_mode()
def shared_features(
    denoiser: Denoiser, process: Process, passes: Sequence[TrunkPass]
) -> list[Float[Tensor, "_r _l d"]]:
    """Features of each of ``passes``, from one pass of the trunk.

    Args:
        denoiser: the network of all passes.
        process: its diffusion process.
        passes: one or more, of equal padded length.
    """
    length = padded_length(passes[0].inputs.shape[1], denoiser.length)
    rows = [len(trunk_pass.inputs) for trunk_pass in passes]
    device = passes[0].inputs.device
    inputs = torch.zeros(sum(rows), length, dtype=torch.long, device=device)
    is_real = torch.zeros_like(inputs, dtype=torch.bool)
    for trunk_pass, padded, mask in zip(passes, inputs.split(rows), is_real.split(rows), strict=True):
        width = trunk_pass.inputs.shape[1]
        padded[:, :width] = trunk_pass.inputs
        mask[:, :width] = True if trunk_pass.attention_mask is None else trunk_pass.attention_mask
    codes = None if passes[0].codes is None else torch.zeros_like(inputs)  # all passes are of one network
    if codes is not None:
        for trunk_pass, padded in zip(passes, codes.split(rows), strict=True):
            padded[:, : trunk_pass.inputs.shape[1]] = trunk_pass.codes
    has_padding = any(
        trunk_pass.attention_mask is not None or trunk_pass.inputs.shape[1] < length for trunk_pass in passes
    )
    levels = [noise_levels(denoiser, process, trunk_pass.t, trunk_pass.inputs) for trunk_pass in passes]
    level = None if levels[0] is None else torch.cat([each for each in levels if each is not None])
    features = features_with(denoiser, inputs, level, is_real if has_padding else None, codes)
    return [
        padded[:, : trunk_pass.inputs.shape[1]] for trunk_pass, padded in zip(passes, features.split(rows), strict=True)
    ]


@torch.inference_mode()
def shared_tokens(samplers: Sequence[PassSampler], draws: Sequence[TokenDraw]) -> list[Int[Tensor, " _n"]]:
    """Tokens of each of ``draws``, from one product with the vocabulary head.

    Args:
        samplers: the sampler of each draw; all have the same network, temperature and top-p.
        draws: features and uniform random numbers.

    Raises:
        NotFinite: logits of a draw are not finite; on a GPU the sampler raises it at the end of its job.
    """
    features = torch.cat([draw.features for draw in draws])
    num_rows = len(features)
    if num_rows < FEWEST_ROWS:
        features = torch.cat([features, features[:1].expand(FEWEST_ROWS - num_rows, -1)])
    first, sizes = samplers[0], [len(draw.features) for draw in draws]
    logits = first.denoiser.head(features)[:num_rows]
    for sampler, part in zip(samplers, logits.split(sizes), strict=True):
        sampler.token_distribution.draw_check.check(part)  # on a GPU it raises at the end of its own job
    uniforms = torch.cat([draw.uniforms for draw in draws])
    token_distribution = replace(first.token_distribution, draw_check=DrawCheck())
    tokens = token_distribution.sample(logits, first.process.mask_id, uniforms)
    return list(tokens.split(sizes))
