"""Pre-training of a masked-diffusion teacher by its continuous-time NELBO, Eq. 3, and of its autoregressive twin."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.data.source import Source
from didi.diffusion.masked import corrupt, nelbo
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import (
    Schedule,
    low_discrepancy_times,
    nelbo_weight,
    schedule_from_name,
    sigma,
    time_weight,
)
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.denoiser import Denoiser, logits_at, noise_level
from didi.models.dit import DiT, DiTConfig
from didi.models.hub import Bundle
from didi.training.config import PretrainConfig
from didi.training.distributed import Synchronised, check_divides, full_state, load_full_state, shard, unsharded
from didi.training.loop import Metrics, autocast_dtype
from didi.training.optim import averaged, averaged_network, learning_rate, make_optimizer, update
from didi.world import world


def masked_losses(
    denoiser: Denoiser,
    x0: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    schedule: Schedule,
    uniforms: Float[Tensor, "b l"],
) -> tuple[Float[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Cross-entropy in nats at the masked positions of one corruption (0 elsewhere), and where they are.

    The vocabulary head runs at masked positions only: the others have no loss under the SUBS rule.
    """
    z_t = corrupt(x0, schedule.alpha(t).to(x0.device), denoiser.mask_id, uniforms.to(x0.device))
    is_masked = z_t == denoiser.mask_id
    level = noise_level(denoiser, sigma(schedule, t).float().to(x0.device))
    logits = logits_at(denoiser, z_t, is_masked, level).float()
    is_mask = torch.arange(denoiser.vocab_size, device=x0.device) == denoiser.mask_id
    losses = F.cross_entropy(logits.masked_fill(is_mask, -torch.inf), x0[is_masked], reduction="none")
    return torch.zeros(x0.shape, device=x0.device).masked_scatter(is_masked, losses), is_masked


def nelbo_of(
    denoiser: Denoiser, x0: Int[Tensor, "b l"], schedule: Schedule, generator: torch.Generator, *, t_min: float = 1e-3
) -> Float[Tensor, " b"]:
    """One-sample NELBO of this process's sequences in nats, at low-discrepancy times across the whole batch."""
    t = low_discrepancy_times(len(x0), generator, t_min=t_min)
    uniforms = torch.rand(x0.shape, dtype=torch.float64, generator=generator)
    x0, t, uniforms = map(world().mine, (x0, t, uniforms))
    nll, is_masked = masked_losses(denoiser, x0, t, schedule, uniforms)
    return nelbo(nll, is_masked, nelbo_weight(schedule, t).float().to(x0.device))


@torch.no_grad()
def validation_nll(
    network: DiT | AutoregressiveLM,
    rows: Int[Tensor, "n l"],
    schedule: Schedule,
    *,
    batch_size: int,
    device: torch.device,
) -> float:
    """Nats per token over ``rows``: exact for an autoregressive network, else its NELBO, an upper bound.

    Times and masks are the same whenever it is asked. Several processes share each batch.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(rows.to(device).split(batch_size)):
        if isinstance(network, AutoregressiveLM):
            total += network.nll(world().mine(batch)).double().sum()
        else:
            total += nelbo_of(network, batch, schedule, named_generator(0, "validation", number)).double().sum()
    return float(world().sum(total)) / rows.numel()


def make_denoiser(config: PretrainConfig, source: Source) -> DiT:
    """A fresh diffusion transformer; weights come from the global generator."""
    shape = vars(config.network)
    return DiT(DiTConfig(vocab_size=source.vocab_size, mask_id=source.mask_id, length=config.data.length, **shape))


def make_autoregressive(config: PretrainConfig, source: Source) -> AutoregressiveLM:
    """A fresh GPT-2 of the same width, depth and heads; weights come from the global generator."""
    shape = {name: getattr(config.network, name) for name in ("hidden_size", "num_blocks", "num_heads", "dropout")}
    return AutoregressiveLM(
        AutoregressiveConfig(vocab_size=source.vocab_size, mask_id=source.mask_id, length=config.data.length, **shape)
    )


class Pretraining:
    """A teacher, or its autoregressive twin, in training; a ``loop.Job``.

    Args:
        config: the resolved recipe.
        source: its data.
        device: where the network lives.
    """

    def __init__(self, config: PretrainConfig, source: Source, device: torch.device) -> None:
        self.config, self.source, self.device = config, source, device
        check_divides(config.loop.batch_size)
        self.schedule = schedule_from_name(config.schedule)
        torch.manual_seed(config.seed)  # layers draw their initial weights from the global generator
        make = make_denoiser if config.model == "masked-diffusion" else make_autoregressive
        self.network: DiT | AutoregressiveLM = make(config, source).to(device)
        self.average = averaged(self.network, config.loop.ema_decay, is_ramped=config.loop.ema_ramp)
        if isinstance(self.network, DiT):
            self.network.keeps_activations = not config.loop.activation_checkpointing
        if config.loop.fsdp:
            shard(self.network)
            shard(self.average.module, is_trained=False)
        self._passes = Synchronised(self.network)
        self.optimizer = make_optimizer(self.network, config.optimizer)
        self.num_steps = config.loop.steps
        self.sequences_per_step = config.loop.batch_size * config.loop.accumulation
        self.tokens_per_step = self.sequences_per_step * config.data.length
        self._autocast = autocast_dtype(config.loop.precision, device)
        self._figure = "nelbo" if config.model == "masked-diffusion" else "nll"

    def step(self, step: int) -> Metrics:
        """One update on ``accumulation`` micro-batches."""
        config = self.config
        self.network.train()
        rows = self.source.batch(step, self.sequences_per_step)
        others = (world().rank,) if world().rank else ()
        total: Metrics = {}
        for number, batch in enumerate(rows.split(config.loop.batch_size)):
            # Dropout draws from the global generator, hence the seed; the noise has its own.
            torch.manual_seed(derive_seed(config.seed, "dropout", step, number, *others))
            generator = named_generator(config.seed, "pretrain", step, number)
            is_last = number + 1 == config.loop.accumulation
            cast = torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None)
            with cast, self._passes.until(is_last):
                loss, figures = self._loss(batch, generator)
            (loss / config.loop.accumulation).backward()
            total = {
                name: total.get(name, 0.0) + value.detach() / config.loop.accumulation
                for name, value in figures.items()
            }
        rate = learning_rate(config.optimizer, step, config.loop.steps)
        norm = update(self.network, self.optimizer, config.optimizer, rate)
        self.average.update_parameters(self.network)
        return {**total, "gradient_norm": norm, "learning_rate": rate}

    def _loss(self, batch: Int[Tensor, "b l"], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, per token, and the figure that is logged, over this process's share of the batch."""
        mine = world().mine
        rows = mine(batch).to(self.device)
        if isinstance(self.network, AutoregressiveLM):
            nll = self._passes(AutoregressiveLM.nll, rows).mean()
            return nll, {"nll": nll}
        t = mine(low_discrepancy_times(len(batch), generator, t_min=self.config.t_min))
        uniforms = mine(torch.rand(batch.shape, dtype=torch.float64, generator=generator))
        nll, is_masked = self._passes(masked_losses, rows, t, self.schedule, uniforms)
        weighted = {
            name: nelbo(nll, is_masked, time_weight(name, self.schedule, t).float().to(self.device)).sum()
            / rows.numel()
            for name in {"nelbo", self.config.weight}
        }
        return weighted[self.config.weight], {"nelbo": weighted["nelbo"]}

    def validate(self) -> dict[str, float]:
        """Nats per token of the averaged weights on held-out sequences."""
        rows = self.source.validation[: self.config.loop.validation_sequences]
        network, batch_size = averaged_network(self.average), self.config.loop.batch_size
        value = validation_nll(network, rows, self.schedule, batch_size=batch_size, device=self.device)
        return {f"validation_{self._figure}": value}

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average and the optimizer's moments."""
        return {
            "network": full_state(self.network.state_dict()),
            "average": full_state(self.average.state_dict()),
            "optimizer": full_state(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a state of ``state_dict``."""
        load_full_state(self.network, state["network"])
        load_full_state(self.average, state["average"])
        load_full_state(self.optimizer, state["optimizer"])

    def bundle(self) -> Bundle:
        """The averaged network, in its role, with its tokenizer."""
        role = "teacher" if self.config.model == "masked-diffusion" else "autoregressive"
        network = averaged_network(self.average)
        network = unsharded(network) if isinstance(network, DiT) else network
        return Bundle(**{role: network}, tokenizer=self.source.tokenizer, schedule=self.schedule)  # type: ignore[arg-type]
