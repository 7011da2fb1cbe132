"""The discriminator that estimates the student-over-teacher log-density ratio. Lemma 4.2, Table 3, App. D."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from didi.errors import UsageError
from didi.models.denoiser import Simplex, Tokens, Trunk
from didi.models.dit import DiTConfig, DiTTrunk
from didi.models.shallow_copy import shallow_copy

TRUNK, HEAD = "trunk.", "output_layer."  # prefixes of the names of all weights
Output = Literal["token", "sequence"]


@dataclass(frozen=True)
class DiscriminatorConfig(DiTConfig):
    """Settings of a discriminator with the trunk of a diffusion transformer.

    Attributes:
        output: ``token`` gives one logit for each position (text), ``sequence`` one for each sequence (proteins,
            App. F.6).
        is_time_conditioned: whether the discriminator reads the noise level; independent of the denoisers.
    """

    output: Output = "token"
    is_time_conditioned: bool = True

    @classmethod
    def for_denoiser(cls, shape: DiTConfig, *, output: Output, is_time_conditioned: bool) -> "DiscriminatorConfig":
        """See ``DiscriminatorShape.for_denoiser``."""
        values = asdict(shape) | {"dropout": 0.0, "is_time_conditioned": is_time_conditioned}
        return cls(**values, output=output)

    def make_trunk(self) -> DiTTrunk:
        """See ``DiscriminatorShape.make_trunk``."""
        return DiTTrunk(self)


@runtime_checkable
class DiscriminatorShape(Protocol):
    """Settings of a discriminator: those of its trunk, and ``output``. A dataclass that bundles store."""

    @property
    def output(self) -> Output:
        """``token`` for one logit per position, ``sequence`` for one logit per sequence."""
        ...

    @classmethod
    def for_denoiser(cls, shape: Any, *, output: Output, is_time_conditioned: bool) -> "DiscriminatorShape":
        """Settings of a discriminator with the trunk of a denoiser that has the settings ``shape``."""
        ...

    def make_trunk(self) -> Any:
        """A ``denoiser.Trunk`` with new weights."""
        ...


SHAPES: dict[type[Any], type[DiscriminatorShape]] = {DiTConfig: DiscriminatorConfig}
"""Settings class of a denoiser -> settings class of the discriminators with its trunk."""


class DiscriminatorHead(nn.Module):
    """Two linear layers with spectral normalisation and SiLU between them (Table 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # On the meta device, spectral_norm imports torch._dynamo, which takes a second. Therefore the layers are built
        # on the CPU and moved; the fork keeps the global random state unchanged.
        is_meta = torch.get_default_device().type == "meta"
        device = torch.device("cpu") if is_meta else contextlib.nullcontext()
        with torch.random.fork_rng(devices=(), enabled=is_meta), device:
            self.main = nn.Sequential(spectral_norm(nn.Linear(dim, dim)), nn.SiLU(), spectral_norm(nn.Linear(dim, 1)))
        if is_meta:
            self.main.to("meta")

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """One logit for each row."""
        return torch.squeeze_copy(self.main(x), -1)  # a copy, because FSDP2 warns of views


class Discriminator(nn.Module):
    """A trunk and a small head that classify samples of the student (label 1) and of the teacher or data (label 0).

    A logit estimates the log-ratio of student over teacher in nats.

    Attributes:
        config: settings of the trunk, and the output.
        trunk: a ``denoiser.Trunk``, from ``config.make_trunk``.
        output_layer: the head.
    """

    def __init__(self, config: DiscriminatorShape) -> None:
        super().__init__()
        self.config: Any = config
        self.trunk = config.make_trunk()
        self.output_layer = DiscriminatorHead(self.trunk.hidden_size)

    @classmethod
    def from_denoiser(
        cls,
        denoiser: nn.Module,
        *,
        output: Output = "token",
        is_time_conditioned: bool = True,
        shares_trunk: bool = False,
    ) -> "Discriminator":
        """A discriminator with a new head and the trunk of ``denoiser``.

        Args:
            denoiser: a network whose settings class is in ``SHAPES``; the weights of its trunk have the same names.
            output: ``token`` for one logit per position, ``sequence`` for one logit per sequence.
            is_time_conditioned: whether the discriminator reads the noise level.
            shares_trunk: share the weights of ``denoiser`` instead of copying them.

        Raises:
            UsageError: there is no discriminator for this class of networks.
        """
        shape: Any = denoiser.config
        if type(shape) not in SHAPES:
            names = ", ".join(settings.__name__ for settings in SHAPES)
            raise UsageError(f"a discriminator has the trunk of a network with {names}; got {type(shape).__name__}")
        config = SHAPES[type(shape)].for_denoiser(shape, output=output, is_time_conditioned=is_time_conditioned)
        with torch.device("meta") if shares_trunk else contextlib.nullcontext():
            discriminator = cls(config)
        if shares_trunk:
            discriminator.output_layer = DiscriminatorHead(discriminator.trunk.hidden_size)
        weights = denoiser.state_dict()
        trunk_weights = {name: weights[name] for name in discriminator.trunk.state_dict()}
        discriminator.trunk.load_state_dict(trunk_weights, assign=shares_trunk)
        return discriminator

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks of the trunk."""
        return self.trunk.blocks

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        return self.trunk.vocab_size

    @property
    def mask_id(self) -> int | None:
        """Index of [MASK]; None in a network of a process without one."""
        return self.trunk.mask_id

    @property
    def length(self) -> int:
        """Context length L."""
        return self.trunk.length

    @property
    def is_time_conditioned(self) -> bool:
        """Whether callers pass the noise level."""
        return self.trunk.is_time_conditioned

    def forward(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l"]:
        """Logits before the sigmoid, student = 1: ``[b, l]``, or ``[b]`` for ``output="sequence"``.

        Args:
            inputs: token ids ``[b, l]``, or distributions over tokens ``[b, l, v]``.
            sigma: noise level of each sequence; None is zero.
            attention_mask: False at padding; None without padding.
        """
        return self.from_embeddings(self.embed(inputs), sigma, attention_mask)

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b d"]:
        """Embeddings of token ids, or expected embeddings of distributions over tokens."""
        return self.trunk.embed(inputs)

    def from_embeddings(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l"]:
        """As ``forward``, from embeddings."""
        hidden = self.trunk.hidden_states(embedded, sigma, attention_mask)
        if self.config.output == "sequence":
            hidden = hidden.mean(1) if attention_mask is None else _mean_without_padding(hidden, attention_mask)
        return self.output_layer(hidden)

    def at_budget(self, num_moves: int | None) -> "Discriminator":
        """The discriminator conditioned on ``num_moves``: itself, or a copy that shares all weights.

        See ``DiTTrunk.at_budget``; other trunks do not read the number of moves.
        """
        trunk = self.trunk.at_budget(num_moves) if isinstance(self.trunk, DiTTrunk) else self.trunk
        if trunk is self.trunk:
            return self
        conditioned = shallow_copy(self)
        conditioned.trunk = trunk
        return conditioned

    def train_last_blocks(self, num_blocks: int | None) -> None:
        """Freeze all weights except the head and the last ``num_blocks`` blocks; None trains the whole network.

        The weights that read the number of moves are always trained.

        Raises:
            UsageError: the network has fewer blocks.
        """
        if num_blocks is None:
            self.requires_grad_(True)
            return
        self.requires_grad_(False)
        self.output_layer.requires_grad_(True)
        if isinstance(self.trunk, DiTTrunk) and self.trunk.config.is_budget_conditioned:
            self.trunk.budget_map.requires_grad_(True)
        for block in last_blocks(self, num_blocks):
            block.requires_grad_(True)


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a discriminator under the current names of its state dict.

    In older bundles and in the public layout, names of the trunk lack the prefix ``trunk.``: ``blocks.0.norm1.weight``
    is now ``trunk.blocks.0.norm1.weight``. Names of the head have not changed.
    """
    if any(name.startswith(TRUNK) for name in weights):
        return dict(weights)
    return {name if name.startswith(HEAD) else TRUNK + name: value for name, value in weights.items()}


def trunk_of(network: nn.Module) -> Trunk | None:
    """The trunk of a discriminator, or the network itself if it is a trunk (a denoiser); None for other networks."""
    trunk = network.trunk if isinstance(network, Discriminator) else network
    return trunk if isinstance(trunk, Trunk) else None


def last_blocks(network: nn.Module, num_blocks: int | None) -> list[nn.Module]:
    """The last ``num_blocks`` transformer blocks; None is all.

    Raises:
        UsageError: the network has fewer blocks.
    """
    blocks: list[nn.Module] = list(network.blocks)  # type: ignore[arg-type]
    if num_blocks is None:
        return blocks
    if not 0 <= num_blocks <= len(blocks):
        raise UsageError(f"trainable blocks lie in [0, {len(blocks)}] for this network; got {num_blocks}")
    return blocks[len(blocks) - num_blocks :]


def num_parameters(network: nn.Module) -> int:
    """Number of parameters, without buffers such as power-iteration vectors."""
    return sum(parameter.numel() for parameter in network.parameters())


def _mean_without_padding(hidden: Float[Tensor, "b l d"], is_real: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    weight = is_real[..., None].to(hidden)
    return (hidden * weight).sum(1) / weight.sum(1)


def logits_at_budget(
    discriminator: Discriminator,
    num_moves: int | None,
    inputs: Tokens | Simplex,
    sigma: Float[Tensor, " b"] | None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b *l"]:
    """``discriminator.at_budget(num_moves)(...)`` as a function whose first argument is the trained network."""
    logits: Tensor = discriminator.at_budget(num_moves)(inputs, sigma, attention_mask)
    return logits


@torch.no_grad()
def log_ratio_logits(
    discriminator: Discriminator,
    inputs: Tokens | Simplex,
    sigma: Float[Tensor, " b"] | None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b *l"]:
    """Logits of the discriminator in evaluation mode, float32.

    A forward pass in training mode updates the power-iteration vectors of the spectral norms even without gradients.
    The logits of a sequence would then depend on the number of earlier passes.
    """
    was_training = discriminator.training
    discriminator.eval()
    try:
        return discriminator(inputs, sigma, attention_mask).float()
    finally:
        discriminator.train(was_training)
