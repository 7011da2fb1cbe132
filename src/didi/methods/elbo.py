r"""Pre-training by the bound on the likelihood: Eq. 3 for masked diffusion, UDLM's for uniform-state diffusion.

One step:

1. Take a batch of clean sequences x0.
2. Draw low-discrepancy times t and corrupt, z_t ~ q(z_t | x0).
3. Descend weight(t) times the loss terms of the process, summed over positions, per token.

Sequences of different lengths, such as proteins, are padded to one length. Given positions and padding are neither
corrupted nor scored; the loss is the mean over sequences of the loss per free position.

The autoregressive baseline of a teacher is trained on the same batches by its exact negative log-likelihood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from didi.diffusion import Process, find_process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import WeightName, low_discrepancy_times, schedule_from_name
from didi.diffusion.score import ScoreUniform
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Runtime, Update
from didi.methods.new_networks import make_autoregressive, make_denoiser, network_config_of_start, start_of
from didi.methods.settings import NetworkConfig, OptimizerConfig, RunConfig, check_fraction, check_sharding
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.denoiser import Denoiser, Simplex, logits_at
from didi.models.nelbo import nats_per_token
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group, to_device


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Pre-training of a teacher by its NELBO, or of its autoregressive baseline."""

    model: Literal["masked-diffusion", "autoregressive"] = "masked-diffusion"
    """What is trained: a teacher, or a GPT-2 of the same shape on the same tokens, which ignores time settings."""
    process: str = "absorbing"
    """Diffusion process, a name in ``didi.diffusion.PROCESSES``; absorbing (masked diffusion) in the paper."""
    schedule: Literal["log-linear", "log-linear-eps", "log-linear-500", "cosine", "geometric", "geometric-1e-4"] = (
        "log-linear"
    )
    """Noise schedule; log-linear in MDLM and in the paper. log-linear-eps ends at 1e-3 as in public code,
    log-linear-500 has the 500 steps of DPLM, geometric-1e-4 is the schedule of SEDD."""
    t_min: float = 1e-3
    """Lower bound of the drawn times, in [0, 1); 1e-3 in MDLM."""
    weight: WeightName = "nelbo"
    """Weight of the loss as a function of time: that of the NELBO, or 1 (less variance; small networks learn
    faster)."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start: str = ""
    """Bundle whose teacher (or autoregressive network) is trained further; a run sets ``network`` to its shape, except
    for the dropout. Empty: a new network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "t_min")
        check_sharding(self.loop, self.optimizer)
        kind = find_process(self.process)
        if issubclass(kind, ScoreUniform) and not self.network.is_time_conditioned:
            raise UsageError(
                f"a network of process {self.process} reads its noise level, on which scores depend; set "
                "network.is_time_conditioned to true"
            )
        if self.model == "autoregressive" and self.process != "absorbing":
            raise UsageError(
                f"model autoregressive needs process absorbing, whose [MASK] begins its sequences; got {self.process}"
            )

    def for_dry_run(self) -> "PretrainConfig":
        """See ``RunConfig.for_dry_run``.

        A new network has the shape of that of ``start``, or of ``network`` if there is no such bundle.

        Raises:
            DidiError: see ``bundle.load``.
        """
        try:
            config = self.with_network_of_start()
        except UsageError:  # the start of a recipe is made by the user, perhaps later
            config = self
        return replace(config, start="")

    def with_network_of_start(self) -> "PretrainConfig":
        """The settings with the shape of the network of ``start`` in ``network``; unchanged without a start.

        Raises:
            UsageError: the bundle is missing or has no network to train.
            DidiError: see ``bundle.load``.
        """
        return replace(self, network=network_config_of_start(self)) if self.start else self

    @classmethod
    def upgraded(cls, settings: Mapping[str, Any], base: RunConfig | None = None) -> dict[str, Any]:
        """See ``RunConfig.upgraded``."""
        upgraded, names = super().upgraded(settings, base), NetworkConfig.__dataclass_fields__
        network = upgraded.get("network")
        if isinstance(network, Mapping) and len(network.keys() & names.keys()) >= len(names) - 1:
            upgraded["network"] = {"kind": "dit", **network}  # a complete record, from before other kinds existed
        if len(upgraded.keys() & cls.__dataclass_fields__.keys()) == len(cls.__dataclass_fields__) - 1:
            upgraded = {"start": "", **upgraded}  # likewise, from before this setting existed
        return upgraded


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process.

    Attributes:
        process: diffusion process of ``z``.
        canvas: clean sequences with masks of their free and real positions.
        t: times.
        z: corrupted sequences.
        weight: weights of the NELBO's integrand at ``t``.
        num_predicted: number of positions of ``z`` whose tokens are predicted.
        soft: network inputs that replace ``z``; None if the network reads ``z``.
    """

    process: Process
    canvas: Canvas
    t: Float[Tensor, " b"]
    z: Int[Tensor, "b l"]
    weight: Float[Tensor, " b"]
    num_predicted: int
    soft: Simplex | None = None

    @property
    def x0(self) -> Int[Tensor, "b l"]:
        """Clean sequences."""
        return self.canvas.tokens


def losses(
    denoiser: Denoiser,
    process: Process,
    x0: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    z: Int[Tensor, "b l"],
    num_predicted: int | None = None,
    soft: Simplex | None = None,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l"]:
    """Loss terms of one corruption; the head runs at predicted positions only.

    Args:
        denoiser: the network.
        process: diffusion process.
        x0: clean sequences.
        t: times, on the device of ``x0``.
        z: their corruptions.
        num_predicted: number of predicted positions of ``z``; None counts them, which synchronises host and device.
        soft: network inputs that replace ``z``.
        attention_mask: False at padding; None where all positions are real.

    Returns:
        Loss of each position in nats, see ``Process.loss_terms``.
    """
    level = process.noise_level(denoiser, t)
    inputs = z if soft is None else soft
    logits = logits_at(denoiser, inputs, process.is_predicted(z), level, attention_mask, num_predicted)
    return process.loss_terms(logits, x0, z, t)


class Elbo:
    """See ``methods.base.Method``; trains a teacher, or its autoregressive baseline."""

    name: ClassVar[str] = "elbo"
    settings_type: ClassVar[type[RunConfig]] = PretrainConfig
    averaged_network = "network"

    def __init__(self, settings: PretrainConfig, inputs: Inputs) -> None:
        self.settings, self.source = settings, inputs.source
        schedule = schedule_from_name(settings.schedule)
        kind = find_process(settings.process)
        if self.source.has_lengths and kind is not Absorbing:
            raise UsageError(
                f"sequences of different lengths, such as those of {settings.data.corpus}, need process absorbing; got "
                f"{settings.process}: set process to absorbing, or choose another corpus"
            )
        self.process: Process = kind.of_tokenizer(self.source.vocab_size, self.source.mask_id, schedule)
        torch.manual_seed(settings.seed)  # layers draw their initial weights from the global generator
        self.is_autoregressive = settings.model == "autoregressive"
        network: nn.Module
        self.origin: dict[str, Any] = {}  # digest and provenance of the start
        if settings.start:
            start = start_of(settings, self.source, self.process)
            network, self.origin = start.network, {"digest": start.digest, "provenance": start.provenance}
        elif self.is_autoregressive:
            network = make_autoregressive(settings, self.source)
        else:
            network = make_denoiser(settings, self.source, self.process)
        self.trained: dict[str, nn.Module] = {"network": network.to(inputs.device)}
        self.frozen: dict[str, nn.Module] = {}
        self.optimizers = {"network": settings.optimizer}
        self.num_steps = settings.num_steps
        self.sequences_per_step = settings.loop.batch_size * settings.loop.accumulation
        self.tokens_per_step = round(self.sequences_per_step * inputs.source.mean_length)

    def start(self, runtime: Runtime) -> None:
        """See ``Method.start``."""
        self.runtime = runtime

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """This process's clean sequences, times and corrupted sequences."""
        local_rows = process_group().local_rows
        x0, t, generator = self.drawn(step, micro_batch)
        draws = torch.rand((*x0.shape, self.process.draws_per_position), dtype=torch.float64, generator=generator)
        x0, t, draws = local_rows(x0), local_rows(t), local_rows(draws)
        canvas = self.source.canvas(x0)
        z = canvas.clamped(self.process.corrupt(x0, t, draws))
        num_predicted = int(self.process.is_predicted(z).sum())
        weight = self.process.loss_weight(t).float()
        t, z, weight = (to_device(values, self.runtime.device) for values in (t, z, weight))
        return Batch(self.process, canvas.to(self.runtime.device), t, z, weight, num_predicted)

    def drawn(self, step: int, micro_batch: int) -> tuple[Int[Tensor, "b l"], Float[Tensor, " b"], torch.Generator]:
        """Clean sequences and times of all processes, and the generator for the corruption; seeds dropout too."""
        settings = self.settings
        self.trained["network"].train()
        # Dropout draws from the global generator, with a different seed on each rank; the noise has its own generator.
        rank = (process_group().rank,) if process_group().rank else ()
        torch.manual_seed(derive_seed(settings.seed, "dropout", step, micro_batch, *rank))
        generator = named_generator(settings.seed, "pretrain", step, micro_batch)
        rows = self.source.batch(step, self.sequences_per_step)
        x0 = rows.split(settings.loop.batch_size)[micro_batch]
        return x0, low_discrepancy_times(len(x0), generator, t_min=settings.t_min), generator

    def updates(self, step: int) -> Sequence[Update]:
        """One update."""
        loss = self._nll if self.is_autoregressive else self._nelbo
        return [Update("network", loss, step, self.settings.loop.steps)]

    def _nll(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Negative log-likelihood per token of the autoregressive network, in nats."""
        terms = self.runtime.call("network", AutoregressiveLM.nll, batch.x0)
        nll = batch.canvas.mean_per_position(torch.where(batch.canvas.is_free, terms, 0.0).sum(-1))
        return nll, {"nll": nll.detach()}

    def _nelbo(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Weighted loss per token, and the NELBO for the log."""
        canvas = batch.canvas
        arguments = (batch.process, batch.x0, batch.t, batch.z, batch.num_predicted, batch.soft, canvas.attention_mask)
        sums = self.runtime.call("network", losses, *arguments).sum(-1)
        weights: dict[str, Tensor | float] = {"nelbo": batch.weight, "constant": 1.0}
        weighted = {name: canvas.mean_per_position(weight * sums) for name, weight in weights.items()}
        return weighted[self.settings.weight], {"nelbo": weighted["nelbo"].detach()}

    def end_step(self, step: int) -> None:
        """Does nothing."""

    def validate(self) -> dict[str, float]:
        """Loss of the averaged network on held-out sequences, in nats per token."""
        loop = self.settings.loop
        network = cast(DenoiserNetwork | AutoregressiveLM, self.runtime.averaged())
        rows = self.source.validation[: loop.validation_sequences]
        value = nats_per_token(network, self.process, rows, batch_size=loop.batch_size, canvas_of=self.source.canvas)
        return {f"validation_{'nll' if self.is_autoregressive else 'nelbo'}": value}

    def state_dict(self) -> dict[str, Any]:
        """Digest and provenance of the start; empty for a new network."""
        return {"start": self.origin} if self.origin else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``.

        Raises:
            UsageError: the state belongs to a run that started with other weights.
        """
        saved = state.get("start", {})
        if saved.get("digest") != self.origin.get("digest"):
            raise UsageError(
                f"a resumed run needs the start it had; the weights of {self.settings.start!r} have changed: restore "
                "them, or start again in another folder"
            )
        self.origin = saved

    def bundle(self) -> Bundle:
        """The averaged network as teacher or autoregressive network, with tokenizer and provenance of the start."""
        role = "autoregressive" if self.is_autoregressive else "teacher"
        networks: dict[str, Any] = {role: self.runtime.averaged()}
        provenance = {"start": self.origin["provenance"]} if self.origin else {}
        return Bundle(**networks, tokenizer=self.source.tokenizer, process=self.process, provenance=provenance)
