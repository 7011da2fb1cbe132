"""Conversion between public checkpoints and networks, strict in names and shapes."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.checkpoint_keys import BACKBONE, bare_keys
from didi.models.discriminator import TRUNK, Discriminator, DiscriminatorConfig, current_names
from didi.models.dit import DiT, DiTConfig
from didi.models.layers import Rotary

BACKBONE_PREFIX = f"{BACKBONE}."
EMBEDDING, HEAD = "vocab_embed.embedding", "output_layer.linear.weight"
BUFFERS = ("rotary_emb.inv_freq",)  # entries of a state dict that are not parameters
LAST_LAYER = "output_layer.main.2."


def dit_from_state_dict(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    *,
    mask_id: int | None = None,
    length: int = 1024,
    is_time_conditioned: bool = False,
    is_uniform: bool = False,
    is_tied: bool = False,
) -> DiT:
    """A DiT from a state dict in the public MDLM layout, which Duo, SDTT, SEDD and DiDi-Instruct share.

    Args:
        state_dict: bare keys, or keys with the prefixes of ``checkpoint_keys`` (``backbone.``, ``module.``); weights of
            any floating-point type.
        num_heads: attention heads; inferred from the rotary frequencies by default.
        mask_id: index of [MASK]; the last symbol by default.
        length: context length; no tensor determines it, because positions are rotary.
        is_time_conditioned: whether samplers pass the noise level.
        is_uniform: whether the network denoises uniform-state diffusion, which has no mask.
        is_tied: whether the head is the embedding matrix; the state dict may then omit it.

    Raises:
        UsageError: a key is missing, extra, or has another shape; all of them are named.
    """
    weights = bare_keys(state_dict)
    if is_tied:
        if HEAD in weights and EMBEDDING in weights and not torch.equal(weights[HEAD], weights[EMBEDDING]):
            raise UsageError(f"the head of a tied checkpoint is its embedding; {HEAD} differs: leave tied out")
        weights.setdefault(HEAD, weights.get(EMBEDDING, torch.empty(0)))
    config = _infer_config(weights, num_heads, mask_id, length, is_time_conditioned, is_uniform)
    with torch.device("meta"):
        network = DiT(config)
    check_keys(network.state_dict(), weights, source="an MDLM checkpoint")
    network.load_state_dict(_network_weights(weights), strict=True, assign=True)
    return network.requires_grad_(True)


def discriminator_from_state_dict(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    *,
    mask_id: int | None = None,
    length: int = 1024,
) -> Discriminator:
    """Convert the state dict of a DiDi-Instruct release, with old or new keys of spectral norm, to a discriminator.

    The released discriminators give real text the label 1; here the student's text has the label 1
    (docs/deviations.md, row 2). Therefore the sign of the last layer is changed.

    Args:
        state_dict: As in ``dit_from_state_dict``, with ``output_layer.main.{0,2}`` as the head.
        num_heads: Number of attention heads; inferred from the rotary frequencies by default.
        mask_id: Index of [MASK]; the last symbol by default.
        length: Context length.

    Raises:
        UsageError: Keys are missing or unknown or have other shapes; the message names all of them.
    """
    weights = {_new_spectral_name(name): value for name, value in bare_keys(state_dict).items()}
    shape = _infer_config(weights, num_heads, mask_id, length, is_time_conditioned=True, is_uniform=False)
    with torch.device("meta"):
        network = Discriminator(DiscriminatorConfig(**vars(shape)))
    expected = {name.removeprefix(TRUNK): value for name, value in network.state_dict().items()}
    check_keys(expected, weights, source="a discriminator checkpoint")
    weights = _network_weights(weights)
    for name in ("bias", "parametrizations.weight.original", "parametrizations.weight.0._u"):
        weights[LAST_LAYER + name].neg_()  # u too: the norm u W v in W / (u W v) must stay positive
    network.load_state_dict(current_names(weights), strict=True, assign=True)
    return network.requires_grad_(True).eval()


def mdlm_state_dict(network: DiT) -> dict[str, Tensor]:
    """The weights in the public MDLM layout, keys under ``backbone.``; the inverse of ``dit_from_state_dict``.

    Raises:
        UsageError: the network has parts that do not exist in this layout.
    """
    if network.config.conv_radius:
        raise UsageError("the MDLM layout has no convolutions; this network has some (conv_radius is not 0)")
    if network.config.is_budget_conditioned:
        raise UsageError(
            "the MDLM layout has no weights that read the number of moves; this network has some "
            "(is_budget_conditioned is true)"
        )
    if network.config.num_codes:
        raise UsageError("the MDLM layout has no latent codes; this network reads some (num_codes is not 0)")
    return {BACKBONE_PREFIX + name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def averaged_weights(
    state_dict: Mapping[str, Tensor], shadow: Sequence[Tensor], *, is_tied: bool = False
) -> dict[str, Tensor]:
    """A state dict with the parameters of an exponential moving average, which is a list without names.

    The list has the order of ``network.parameters()``, which is that of the state dict without buffers; a tied matrix
    occurs once.

    Args:
        state_dict: state dict of the same network, in its original order.
        shadow: ``ema["shadow_params"]`` of the public code bases.
        is_tied: whether the head is the embedding matrix.

    Raises:
        UsageError: the list does not match the state dict in number or shapes.
    """
    state_dict = bare_keys(state_dict)
    names = [name for name in state_dict if name not in BUFFERS and not (is_tied and name == HEAD)]
    if len(names) != len(shadow):
        raise UsageError(
            f"averaged weights fit the named ones one by one; there are {len(shadow)} of {len(names)}: use raw weights"
        )
    for name, value in zip(names, shadow, strict=True):
        if value.shape != state_dict[name].shape:
            raise UsageError(
                f"averaged weights fit the named ones one by one; that of {name} has shape {list(value.shape)}, not "
                f"{list(state_dict[name].shape)}: use raw weights"
            )
    averaged = state_dict | dict(zip(names, shadow, strict=True))
    return {name: value for name, value in averaged.items() if not (is_tied and name == HEAD)}


def check_keys(expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a state dict whose keys or shapes differ from ``expected``.

    Args:
        expected: tensors with the expected names and shapes.
        state_dict: the state dict to check.
        source: name of the state dict in messages, with an article.

    Raises:
        UsageError: a key is missing, extra or has another shape; the message names all of them.
    """
    problems = [f"missing {name}" for name in expected if name not in state_dict]
    problems += [f"extra {name}" for name in state_dict if name not in expected]
    problems += [
        f"{name} has shape {list(state_dict[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if problems:
        raise UsageError(f"every key of {source} is used and has its shape; {'; '.join(problems)}")


def float32_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float32, the data type of all networks; they share no memory.

    Raises:
        UsageError: Weights are integers or quantized; a state dict does not hold their scales.
    """
    for name, value in weights.items():
        if not value.is_floating_point():
            raise UsageError(
                f"weights are floating-point numbers; {name} has {value.dtype}: give weights before quantization"
            )
    return {name: value.detach().float().clone() for name, value in weights.items()}


def _network_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As ``float32_copies``, with exact rotary frequencies instead of rounded ones.

    Raises:
        UsageError: As ``float32_copies``.
    """
    copies = float32_copies(weights)
    for name in BUFFERS:
        # A frequency near 1 that is rounded to 8 bits is wrong by some radians at position 1,000. Training used
        # float32.
        exact = Rotary(2 * len(copies[name])).inv_freq
        if weights[name].dtype != torch.float32 and torch.allclose(copies[name], exact, rtol=2**-8, atol=0):
            copies[name] = exact
    return copies


def _new_spectral_name(name: str) -> str:
    """The name of a tensor of ``torch.nn.utils.spectral_norm`` in ``torch.nn.utils.parametrizations``."""
    for old, new in (
        ("weight_orig", "parametrizations.weight.original"),
        ("weight_u", "parametrizations.weight.0._u"),
        ("weight_v", "parametrizations.weight.0._v"),
    ):
        if name.startswith("output_layer.main.") and name.endswith(f".{old}"):
            return name.removesuffix(old) + new
    return name


def _infer_config(
    weights: Mapping[str, Tensor],
    num_heads: int | None,
    mask_id: int | None,
    length: int,
    is_time_conditioned: bool,
    is_uniform: bool,
) -> DiTConfig:
    for name, ndim in ((EMBEDDING, 2), ("sigma_map.mlp.2.weight", 2), ("rotary_emb.inv_freq", 1)):
        if name not in weights:
            raise UsageError(f"an MDLM checkpoint holds {name}, from which its sizes are read; missing {name}")
        if weights[name].ndim != ndim:
            raise UsageError(f"{name} has {ndim} axes; got shape {list(weights[name].shape)}")
    vocab_size, hidden_size = weights[EMBEDDING].shape
    indices = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    if mask_id is None and not is_uniform:
        mask_id = vocab_size - 1
    return DiTConfig(
        vocab_size=vocab_size,
        mask_id=mask_id,
        length=length,
        hidden_size=hidden_size,
        num_blocks=max(indices, default=-1) + 1,
        num_heads=hidden_size // max(1, 2 * len(weights["rotary_emb.inv_freq"])) if num_heads is None else num_heads,
        cond_dim=weights["sigma_map.mlp.2.weight"].shape[0],
        is_time_conditioned=is_time_conditioned,
    )
