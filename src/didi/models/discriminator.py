"""The discriminator that estimates the student-over-teacher log-density ratio. Lemma 4.2, Table 3, App. D."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from didi.errors import UsageError
from didi.models.denoiser import Simplex, Tokens
from didi.models.dit import DiT, DiTConfig, DiTTrunk


@dataclass(frozen=True)
class DiscriminatorConfig(DiTConfig):
    """Shape of a discriminator: a denoiser's trunk and a small head.

    Attributes:
        output: ``token`` gives one logit for each position (text), ``sequence`` one for all (proteins, App. F.6).
        is_time_conditioned: the discriminator reads the noise level even where the denoisers do not.
    """

    output: Literal["token", "sequence"] = "token"
    is_time_conditioned: bool = True


class DiscriminatorHead(nn.Module):
    """Two linear layers under spectral normalisation with SiLU between (Table 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # On the meta device, spectral_norm imports torch._dynamo, which takes a second: the layers are made on the CPU
        # and moved, without a change to the global random state.
        is_meta = torch.get_default_device().type == "meta"
        device = torch.device("cpu") if is_meta else contextlib.nullcontext()
        with torch.random.fork_rng(devices=(), enabled=is_meta), device:
            self.main = nn.Sequential(spectral_norm(nn.Linear(dim, dim)), nn.SiLU(), spectral_norm(nn.Linear(dim, 1)))
        if is_meta:
            self.main.to("meta")

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """One logit for each row."""
        return torch.squeeze_copy(self.main(x), -1)  # no view, which FSDP2 would warn of


class Discriminator(DiTTrunk):
    """Logits of "this came from the student", so that a logit is a log-ratio student over teacher in nats."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__(config)
        self.config: DiscriminatorConfig = config
        self.output_layer = DiscriminatorHead(config.hidden_size)

    @classmethod
    def from_denoiser(
        cls,
        denoiser: DiT,
        *,
        output: Literal["token", "sequence"] = "token",
        is_time_conditioned: bool = True,
        shares_trunk: bool = False,
    ) -> "Discriminator":
        """A discriminator with a fresh head on a copy of ``denoiser``'s trunk, or, if it is shared, on the trunk."""
        shape = asdict(denoiser.config) | {"dropout": 0.0, "is_time_conditioned": is_time_conditioned}
        config = DiscriminatorConfig(**shape, output=output)
        with torch.device("meta") if shares_trunk else contextlib.nullcontext():
            discriminator = cls(config)
        if shares_trunk:
            discriminator.output_layer = DiscriminatorHead(config.hidden_size)
        trunk = {name: value for name, value in denoiser.state_dict().items() if not name.startswith("output_layer.")}
        missing, unexpected = discriminator.load_state_dict(trunk, strict=False, assign=shares_trunk)
        stray = [name for name in missing if not name.startswith("output_layer.")] + unexpected
        if stray:  # cannot happen while both share DiTTrunk; a changed layout must not go unseen
            raise RuntimeError(f"denoiser and discriminator trunks differ: {', '.join(stray)}")
        return discriminator

    def forward(
        self,
        inputs: Tokens | Simplex,
        sigma: Float[Tensor, " b"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l"]:
        """Logits before the sigmoid, student = 1: ``[b, l]``, or ``[b]`` for ``output="sequence"``.

        Args:
            inputs: token ids ``[b, l]`` or a simplex ``[b, l, v]``.
            sigma: noise level of each sequence; None is zero.
            attention_mask: False at padding; None where all positions are real.
        """
        return self.from_embeddings(self.embed(inputs), sigma, attention_mask)

    def embed(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b d"]:
        """Embeddings of token ids, or expected ones of any rows of a simplex."""
        return self.vocab_embed(inputs)

    def from_embeddings(
        self,
        embedded: Float[Tensor, "b l d"],
        sigma: Float[Tensor, " b"] | None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l"]:
        """As ``forward``, of positions that are embedded already."""
        hidden, _ = self.trunk(embedded, sigma, attention_mask)
        if self.config.output == "sequence":
            hidden = hidden.mean(1) if attention_mask is None else _mean_of_real(hidden, attention_mask)
        return self.output_layer(hidden)

    def train_last_blocks(self, num_blocks: int | None) -> None:
        """Freeze everything but the head and the last ``num_blocks`` blocks; None trains the whole network.

        Raises:
            UsageError: there are fewer blocks than that.
        """
        if num_blocks is None:
            self.requires_grad_(True)
            return
        self.requires_grad_(False)
        self.output_layer.requires_grad_(True)
        for block in self.blocks[len(self.blocks) - check_num_blocks(self, num_blocks) :]:
            block.requires_grad_(True)


def check_num_blocks(network: DiTTrunk, num_blocks: int | None) -> int:
    """How many of the last blocks are trained; None is all.

    Raises:
        UsageError: there are fewer.
    """
    if num_blocks is None:
        return len(network.blocks)
    if not 0 <= num_blocks <= len(network.blocks):
        raise UsageError(f"trainable blocks lie in [0, {len(network.blocks)}] for this network; got {num_blocks}")
    return num_blocks


def num_parameters(network: nn.Module) -> int:
    """Number of learned parameters; buffers such as power-iteration vectors do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def _mean_of_real(hidden: Float[Tensor, "b l d"], is_real: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    weight = is_real[..., None].to(hidden)
    return (hidden * weight).sum(1) / weight.sum(1)


@torch.no_grad()
def log_ratio_logits(
    discriminator: Discriminator,
    inputs: Tokens | Simplex,
    sigma: Float[Tensor, " b"] | None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b *l"]:
    """The discriminator's logits with its spectral norms held still, float32.

    A forward pass in training mode would move the power-iteration vectors even without gradients, so the score of a
    sequence would depend on how often it was asked.
    """
    was_training = discriminator.training
    discriminator.eval()
    try:
        return discriminator(inputs, sigma, attention_mask).float()
    finally:
        discriminator.train(was_training)
