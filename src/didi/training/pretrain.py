"""Pre-training of a masked-diffusion teacher by its continuous-time NELBO, Eq. 3."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.data.source import Source
from didi.diffusion.masked import corrupt, nelbo
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import Schedule, low_discrepancy_times, nelbo_weight, schedule_from_name, sigma
from didi.models.denoiser import Denoiser, logits_at, noise_level
from didi.models.dit import DiT, DiTConfig
from didi.models.hub import Bundle
from didi.training.config import PretrainConfig
from didi.training.loop import Metrics, autocast_dtype
from didi.training.optim import averaged, averaged_network, learning_rate, make_optimizer, update


def nelbo_of(
    denoiser: Denoiser, x0: Int[Tensor, "b l"], schedule: Schedule, generator: torch.Generator, *, t_min: float = 1e-3
) -> Float[Tensor, " b"]:
    """One-sample NELBO of each sequence in nats, at low-discrepancy times across the batch.

    The vocabulary head runs at masked positions only: the others have no loss under the SUBS rule.
    """
    t = low_discrepancy_times(len(x0), generator, t_min=t_min)
    uniforms = torch.rand(x0.shape, dtype=torch.float64, generator=generator).to(x0.device)
    z_t = corrupt(x0, schedule.alpha(t).to(x0.device), denoiser.mask_id, uniforms)
    is_masked = z_t == denoiser.mask_id
    level = noise_level(denoiser, sigma(schedule, t).float().to(x0.device))
    logits = logits_at(denoiser, z_t, is_masked, level).float()
    is_mask = torch.arange(denoiser.vocab_size, device=x0.device) == denoiser.mask_id
    losses = F.cross_entropy(logits.masked_fill(is_mask, -torch.inf), x0[is_masked], reduction="none")
    nll = torch.zeros(x0.shape, device=x0.device).masked_scatter(is_masked, losses)
    return nelbo(nll, is_masked, nelbo_weight(schedule, t).float().to(x0.device))


@torch.no_grad()
def validation_nelbo(
    denoiser: Denoiser, rows: Int[Tensor, "n l"], schedule: Schedule, *, batch_size: int, device: torch.device
) -> float:
    """NELBO per token in nats over ``rows``, with times and masks that are the same whenever it is asked."""
    total = 0.0
    for number, batch in enumerate(rows.split(batch_size)):
        generator = named_generator(0, "validation", number)
        total += float(nelbo_of(denoiser, batch.to(device), schedule, generator).sum())
    return total / rows.numel()


class Pretraining:
    """A teacher in training; a ``loop.Job``.

    Args:
        config: the resolved recipe.
        source: its data.
        device: where the network lives.
    """

    def __init__(self, config: PretrainConfig, source: Source, device: torch.device) -> None:
        self.config, self.source, self.device = config, source, device
        self.schedule = schedule_from_name(config.schedule)
        torch.manual_seed(config.seed)  # layers draw their initial weights from the global generator
        shape = vars(config.network)
        self.network = DiT(
            DiTConfig(vocab_size=source.vocab_size, mask_id=source.mask_id, length=config.data.length, **shape)
        ).to(device)
        self.optimizer = make_optimizer(self.network, config.optimizer)
        self.average = averaged(self.network, config.loop.ema_decay, is_ramped=config.loop.ema_ramp)
        self.num_steps = config.loop.steps
        self.sequences_per_step = config.loop.batch_size * config.loop.accumulation
        self.tokens_per_step = self.sequences_per_step * config.data.length
        self._autocast = autocast_dtype(config.loop.precision, device)

    def step(self, step: int) -> Metrics:
        """One update on ``accumulation`` micro-batches."""
        config = self.config
        self.network.train()
        rows = self.source.batch(step, self.sequences_per_step).to(self.device)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(rows.split(config.loop.batch_size)):
            # Dropout draws from the global generator, hence the seed; the noise has its own.
            torch.manual_seed(derive_seed(config.seed, "dropout", step, number))
            generator = named_generator(config.seed, "pretrain", step, number)
            with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                loss = nelbo_of(self.network, batch, self.schedule, generator, t_min=config.t_min).sum() / rows.numel()
            loss.backward()
            total += loss.detach()
        rate = learning_rate(config.optimizer, step, config.loop.steps)
        norm = update(self.network, self.optimizer, config.optimizer, rate)
        self.average.update_parameters(self.network)
        return {"nelbo": total, "gradient_norm": norm, "learning_rate": rate}

    def validate(self) -> dict[str, float]:
        """NELBO per token of the averaged weights on held-out sequences, in nats."""
        rows = self.source.validation[: self.config.loop.validation_sequences]
        value = validation_nelbo(
            averaged_network(self.average),
            rows,
            self.schedule,
            batch_size=self.config.loop.batch_size,
            device=self.device,
        )
        return {"validation_nelbo": value}

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average and the optimizer's moments."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a state of ``state_dict``."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def bundle(self) -> Bundle:
        """The averaged teacher with its tokenizer."""
        return Bundle(teacher=averaged_network(self.average), tokenizer=self.source.tokenizer, schedule=self.schedule)
