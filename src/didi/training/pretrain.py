"""Pre-training of a masked-diffusion teacher by its continuous-time NELBO, Eq. 3, and of its autoregressive twin."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.data.source import Source
from didi.diffusion import Process, find_process
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import low_discrepancy_times, schedule_from_name
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.denoiser import Denoiser, logits_at
from didi.models.dit import DiT, DiTConfig
from didi.models.nelbo import nats_per_token
from didi.training.config import PretrainConfig
from didi.training.distributed import Synchronised, check_divides, full_state, load_full_state, shard, unsharded
from didi.training.loop import Metrics, autocast_dtype
from didi.training.optim import averaged, averaged_network, learning_rate, make_optimizer, update
from didi.world import world


def losses(
    denoiser: Denoiser,
    process: Process,
    x0: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    draws: Float[Tensor, "b l k"],
) -> Float[Tensor, "b l"]:
    """Loss terms of one corruption in nats; see ``Process.loss_terms``. The head runs at predicted positions only."""
    t = t.to(x0.device)
    z = process.corrupt(x0, t, draws.to(x0.device))
    logits = logits_at(denoiser, z, process.is_predicted(z), process.noise_level(denoiser, t))
    return process.loss_terms(logits, x0, z, t)


def make_denoiser(config: PretrainConfig, source: Source, process: Process) -> DiT:
    """A fresh diffusion transformer; weights come from the global generator."""
    vocab_size, shape = process.num_symbols(source.vocab_size), vars(config.network)
    return DiT(DiTConfig(vocab_size=vocab_size, mask_id=process.mask_id, length=config.data.length, **shape))


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
        schedule = schedule_from_name(config.schedule)
        self.process = find_process(config.process).of_tokenizer(source.vocab_size, source.mask_id, schedule)
        torch.manual_seed(config.seed)  # layers draw their initial weights from the global generator
        if config.model == "masked-diffusion":
            self.network: DiT | AutoregressiveLM = make_denoiser(config, source, self.process).to(device)
        else:
            self.network = make_autoregressive(config, source).to(device)
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
        shape = (*batch.shape, self.process.draws_per_position)
        draws = mine(torch.rand(shape, dtype=torch.float64, generator=generator))
        sums = self._passes(losses, self.process, rows, t, draws).sum(-1)
        weights = {"nelbo": self.process.loss_weight(t), "constant": torch.ones_like(t)}
        weighted = {
            name: (weight.float().to(self.device) * sums).sum() / rows.numel() for name, weight in weights.items()
        }
        return weighted[self.config.weight], {"nelbo": weighted["nelbo"]}

    def validate(self) -> dict[str, float]:
        """Nats per token of the averaged weights on held-out sequences."""
        rows = self.source.validation[: self.config.loop.validation_sequences]
        network, batch_size = averaged_network(self.average), self.config.loop.batch_size
        value = nats_per_token(network, self.process, rows, batch_size=batch_size)
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
        return Bundle(**{role: network}, tokenizer=self.source.tokenizer, process=self.process)  # type: ignore[arg-type]
