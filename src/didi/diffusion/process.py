r"""The protocol of discrete diffusion processes, for training, sampling and evaluation.

A process corrupts clean tokens ``x0`` to a state ``z_t`` independently at each position, from ``t = 0`` (clean) to
``t = 1`` (the prior). Everything that depends on the kind of process is part of this protocol: its kernel, its
reverse kernel, its bound on the likelihood, and the noise level that a network reads.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.schedule import Schedule


@runtime_checkable
class TimeConditioned(Protocol):
    """A network whose input may include the noise level."""

    @property
    def is_time_conditioned(self) -> bool:
        """Whether the noise level is an input of the network."""
        ...


class ElboDraws(NamedTuple):
    """Corrupted states of a batch, d for each sequence; their weighted losses are unbiased estimates of the NELBO.

    Attributes:
        z: corrupted states; the draws of one sequence are consecutive.
        t: times of the states, float64.
        weight: factor of the summed loss terms of each state, float64.
        prior_divergence: KL divergence of z_1 from the prior in nats, of each free position; a term of the NELBO.
    """

    z: Int[Tensor, "n l"]
    t: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    prior_divergence: float = 0.0


@runtime_checkable
class Process(Protocol):
    """A diffusion process on token sequences. Implementations are frozen dataclasses whose fields are their settings.

    Attributes:
        name: name in bundles, recipes and ``didi.diffusion.PROCESSES``.
        draws_per_position: number of uniform numbers that the corruption of one position takes, k below.
        schedule: the noise schedule.
    """

    name: ClassVar[str]
    draws_per_position: ClassVar[int]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        ...

    @property
    def mask_id(self) -> int | None:
        """Index of [MASK]; None for a process without one."""
        ...

    @classmethod
    def of_tokenizer(cls, vocab_size: int, mask_id: int, schedule: Schedule) -> "Process":
        """The process on the tokens of a tokenizer that has ``vocab_size`` symbols, [MASK] included."""
        ...

    def num_symbols(self, vocab_size: int) -> int:
        """Number of symbols of a network, for a tokenizer of ``vocab_size`` symbols, [MASK] included."""
        ...

    def prior(self, canvas: Canvas, draws: Float[Tensor, "b l k"]) -> Int[Tensor, "b l"]:
        """A state at ``t = 1``: free positions are drawn from the prior, other positions keep their tokens."""
        ...

    def corrupt(
        self, x0: Int[Tensor, "b l"], t: Float[Tensor, " b"], draws: Float[Tensor, "b l k"]
    ) -> Int[Tensor, "b l"]:
        """A draw of z_t given x0.

        With the same ``draws``, a token that is replaced at s is replaced by the same symbol at all t > s.
        """
        ...

    def posterior(
        self,
        z: Int[Tensor, "b l"],
        x0_log_probs: Float[Tensor, "b l v"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l v"]:
        """Probabilities of z_s given z_t, with x0 distributed as ``x0_log_probs``; rows sum to 1."""
        ...

    def reverse_weights(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], alpha_t: float, alpha_s: float
    ) -> Float[Tensor, "n v"]:
        """Non-negative numbers proportional to the probabilities of the tokens of z_s at predicted positions.

        Args:
            logits: outputs of the network at these positions; the result has at least their precision.
            z: tokens of z_t at these positions.
            alpha_t: signal rate of z_t.
            alpha_s: signal rate of z_s, larger than ``alpha_t``; at 1, z_s is clean.
        """
        ...

    def is_predicted(self, z: Int[Tensor, "*b l"]) -> Bool[Tensor, "*b l"]:
        """Positions at which the sampler and the loss need a prediction; the head of the network runs at these only."""
        ...

    def log_probs(self, logits: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        """Normalised log-probabilities of x0 at predicted positions from a network's logits, float32."""
        ...

    def noise_level(self, network: TimeConditioned, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        """Noise level that a network reads at time ``t``; None if it is not conditioned on time.

        Float32, on the device of ``t``. All callers use this function, so that training and sampling agree.
        """
        ...

    def loss_terms(
        self,
        logits: Float[Tensor, "n v"],
        x0: Int[Tensor, "b l"],
        z: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b l"]:
        """Loss of each position in nats, 0 where nothing is predicted.

        Their sum times ``loss_weight``, in expectation and integrated over t, is the NELBO without
        ``ElboDraws.prior_divergence``.

        Args:
            logits: at the predicted positions of ``z``, in row-major order.
            x0: clean tokens.
            z: corrupted state.
            t: time of ``z``.
        """
        ...

    def loss_weight(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Weight of the loss terms at ``t`` in the continuous-time NELBO."""
        ...

    def elbo_draws(self, canvas: Canvas, num_draws: int, generators: Sequence[torch.Generator]) -> ElboDraws:
        """Corruptions of the free positions, for unbiased estimates of the NELBO of low variance.

        Args:
            canvas: clean tokens; given positions are never corrupted.
            num_draws: number d of corruptions of each sequence.
            generators: one for each sequence.
        """
        ...
