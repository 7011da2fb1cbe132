r"""Uniform-state diffusion as the argmax of a Gaussian diffusion (Duo, Sahoo et al. 2025).

On the one-hot vector x of a clean token, Gaussian diffusion with the log noise-to-signal ratio :math:`\gamma` has the
latent

.. math:: w = a x + s \epsilon, \quad a^2 = \mathrm{sigmoid}(-\gamma), \quad s^2 = \mathrm{sigmoid}(\gamma).

The index of its largest entry is distributed as a state of uniform-state diffusion,
:math:`\mathrm{Cat}(\alpha x + (1 - \alpha)/K)`, with :math:`\alpha = \mathcal{T}(a)`, Eq. 10.
https://arxiv.org/abs/2506.10892
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.rowwise import rows_at_a_time
from didi.errors import UsageError

# Nodes of the trapezoidal rule for integrals against the standard normal density. The integrands are analytic, so that
# the error falls exponentially in 1 / _STEP: it is below 1e-14 for 2 to 50,257 symbols. The mass beyond _BOUND is
# 1e-19.
_STEP, _BOUND = 1 / 16, 9
_GAMMA_LOW, _GAMMA_HIGH = -12.0, 60.0  # alpha is 1 and 0 at these ends to about 1e-13, for any number of symbols


def uniform_alpha(gamma: Float[Tensor, "*shape"], num_symbols: int) -> Float[Tensor, "*shape"]:
    r"""Signal rate :math:`\alpha = \mathcal{T}(a)` of the argmax of a Gaussian latent, Eq. 10.

    .. math:: \alpha = \frac{K}{K - 1} \Bigl[\int \phi(y) \, \Phi(y + a/s)^{K-1} dy - \frac1K\Bigr],
        \quad a/s = e^{-\gamma/2}.

    Args:
        gamma: log noise-to-signal ratio.
        num_symbols: K, 2 or more.

    Returns:
        Values in [0, 1], float64, exact to about 1e-14; they fall as ``gamma`` rises.
    """
    nodes, ratio = _nodes(gamma), _signal_to_noise(gamma)[..., None]
    is_largest = ((num_symbols - 1) * torch.special.log_ndtr(nodes + ratio)).exp()
    mass = (_density(nodes) * is_largest).sum(-1) * _STEP
    return (num_symbols * mass - 1) / (num_symbols - 1)


def uniform_alpha_prime(gamma: Float[Tensor, "*shape"], num_symbols: int) -> Float[Tensor, "*shape"]:
    r"""Derivative of ``uniform_alpha`` with respect to ``gamma``; negative, float64.

    .. math:: \frac{d\alpha}{d\gamma} = -\frac{K a}{2 s} \int \phi(y) \, \phi(y + a/s) \, \Phi(y + a/s)^{K-2} dy.
    """
    nodes, ratio = _nodes(gamma), _signal_to_noise(gamma)[..., None]
    others_smaller = ((num_symbols - 2) * torch.special.log_ndtr(nodes + ratio)).exp()
    rate = (_density(nodes) * _density(nodes + ratio) * others_smaller).sum(-1) * _STEP
    return -num_symbols / 2 * ratio.squeeze(-1) * rate


def gamma_at(alpha: Float[Tensor, "*shape"], num_symbols: int) -> Float[Tensor, "*shape"]:
    """The log noise-to-signal ratio at which ``uniform_alpha`` is ``alpha``, by bisection.

    Args:
        alpha: signal rates in (0, 1).
        num_symbols: K, 2 or more.

    Returns:
        Float64, in [-12, 60]; exact to about 1e-14 where the derivative of ``uniform_alpha`` is not small.
    """
    target = alpha.double()
    low, high = torch.full_like(target, _GAMMA_LOW), torch.full_like(target, _GAMMA_HIGH)
    for _ in range(60):
        middle = (low + high) / 2
        is_less_noise = uniform_alpha(middle, num_symbols) > target
        low, high = torch.where(is_less_noise, middle, low), torch.where(is_less_noise, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class GaussianSchedule:
    r"""The ``Schedule`` of uniform-state diffusion whose :math:`\gamma` is linear in time.

    It covers a range of :math:`\gamma` only, so that :math:`\alpha_t` begins below 1 and ends above 0: a schedule for
    training, not for sampling or likelihoods.

    Attributes:
        num_symbols: K.
        gamma_min: log noise-to-signal ratio at ``t = 0``.
        gamma_max: log noise-to-signal ratio at ``t = 1``, larger than ``gamma_min``.

    Raises:
        UsageError: the range is empty or infinite, or there are fewer than 2 symbols.
    """

    num_symbols: int
    gamma_min: float
    gamma_max: float
    name: str = "gaussian"

    def __post_init__(self) -> None:
        if not -math.inf < self.gamma_min < self.gamma_max < math.inf:
            raise UsageError(
                f"gamma_min is less than gamma_max, both finite; got {self.gamma_min} and {self.gamma_max}"
            )
        if self.num_symbols < 2:
            raise UsageError(f"a Gaussian schedule is for 2 symbols or more; got {self.num_symbols}")

    def gamma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log noise-to-signal ratio at time ``t`` in [0, 1]."""
        return self.gamma_min + t * (self.gamma_max - self.gamma_min)

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha``; float64."""
        return uniform_alpha(self.gamma(t), self.num_symbols)

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha_prime``; float64."""
        return (self.gamma_max - self.gamma_min) * uniform_alpha_prime(self.gamma(t), self.num_symbols)


def latents(
    x0: Int[Tensor, "b l"], gamma: Float[Tensor, " b"], noise: Float[Tensor, "b l v"]
) -> Float[Tensor, "b l v"]:
    """Gaussian latents w in the precision of ``noise``, whose argmax is a state of uniform-state diffusion.

    The same noise with two values of gamma gives two states of one trajectory.

    Args:
        x0: clean tokens.
        gamma: log noise-to-signal ratio of each sequence.
        noise: standard normal numbers; not modified.
    """
    scale, signal = (torch.sigmoid(sign * gamma).sqrt().to(noise.dtype)[:, None, None] for sign in (1, -1))
    return (scale * noise).scatter_add_(-1, x0[..., None], signal.expand(*x0.shape, 1))


class Relaxed(NamedTuple):
    """A state of uniform-state diffusion, and its relaxation.

    Attributes:
        z: the argmax of the latent.
        soft: the softmax of the latent divided by the temperature; the one-hot vector of ``z`` in the limit of 0.
    """

    z: Int[Tensor, "b l"]
    soft: Float[Tensor, "b l v"]


def relaxed(x0: Int[Tensor, "b l"], gamma: Float[Tensor, " b"], noise: Float[Tensor, "b l v"], tau: float) -> Relaxed:
    """State and relaxed state of one Gaussian latent; see ``latents``.

    Args:
        x0: clean tokens.
        gamma: log noise-to-signal ratio of each sequence.
        noise: standard normal numbers.
        tau: temperature of the softmax, positive.
    """
    z, soft = torch.empty_like(x0), torch.empty_like(noise)
    size = rows_at_a_time(noise.shape[-1], noise.device)
    for row, row_gamma in enumerate(gamma.split(1)):
        parts = (tensor[row].split(size) for tensor in (x0, noise, z, soft))
        for clean, normals, state, relaxation in zip(*parts, strict=True):
            w = latents(clean[None], row_gamma, normals[None])[0]
            state.copy_(w.argmax(-1))
            relaxation.copy_(w.div_(tau).softmax(-1))
    return Relaxed(z, soft)


def _signal_to_noise(gamma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return (-gamma.double() / 2).exp()


def _nodes(gamma: Float[Tensor, "*shape"]) -> Float[Tensor, " n"]:
    half = int(_BOUND / _STEP)
    return torch.arange(-half, half + 1, dtype=torch.float64, device=gamma.device) * _STEP


def _density(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard normal density."""
    return (-y.square() / 2).exp() / math.sqrt(2 * math.pi)
