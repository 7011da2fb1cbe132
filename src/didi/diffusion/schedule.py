r"""Noise schedules, time weights and time densities.

A schedule is the probability :math:`\alpha_t` that a token is still visible at time ``t`` in [0, 1]; it falls from 1 or
nearly 1 at ``t = 0`` to 0 or nearly 0 at ``t = 1``. The cosine and the geometric schedule are those of Shi et al. 2024
(MD4), Table 1, https://arxiv.org/abs/2406.04329; its linear schedule is called log-linear here, as in MDLM.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError


@runtime_checkable
class Schedule(Protocol):
    r"""A noise schedule; for example, :math:`\alpha_t = 1 - t` for ``LogLinear()``.

    Times lie in [0, 1]; values have the shape, precision and device of ``t``.
    """

    @property
    def name(self) -> str:
        """Argument of ``schedule_from_name``."""
        ...

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Signal rate :math:`\alpha_t`: the probability in [0, 1] that a token is visible at time ``t``."""
        ...

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Derivative :math:`\alpha'_t = d\alpha_t/dt`, negative."""
        ...


@dataclass(frozen=True)
class LogLinear:
    r""":math:`\alpha_t = 1 - (1 - \epsilon) t`: the total noise :math:`-\log\alpha_t` is log-linear (MDLM's default).

    Attributes:
        eps: :math:`\alpha_1`, in [0, 1). Public code (SEDD, MDLM, Duo) uses 1e-3, so that the total noise is finite.
    """

    name: str = "log-linear"
    eps: float = 0.0

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha``."""
        return 1 - (1 - self.eps) * t

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha_prime``."""
        return torch.full_like(t, self.eps - 1)


@dataclass(frozen=True)
class Stepwise:
    r"""The log-linear schedule in T steps, :math:`\alpha_t = 1 - \lceil T t \rceil / T`: DPLM uses T = 500.

    ``alpha_prime`` is the slope of a whole step, so that ``nelbo_weight`` at a step's end is the weight of the bound in
    discrete time (Wang et al. 2024, https://arxiv.org/abs/2402.18567).

    Attributes:
        num_steps: T.
    """

    name: str = "log-linear-500"
    num_steps: int = 500

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha``."""
        steps = t * self.num_steps
        return 1 - (steps - 1e-3).ceil() / self.num_steps  # the time k/T belongs to step k despite rounding

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha_prime``."""
        return -torch.ones_like(t)


@dataclass(frozen=True)
class Cosine:
    r""":math:`\alpha_t = 1 - \cos(\tfrac{\pi}{2}(1 - t))` (MD4, Table 1)."""

    name: str = "cosine"

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha``."""
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha_prime``."""
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


@dataclass(frozen=True)
class Geometric:
    r""":math:`\alpha_t = \exp(-\beta_{min}^{1-t}\beta_{max}^{t})` (MD4, Table 1).

    Attributes:
        beta_min: total noise at ``t = 0``, positive.
        beta_max: total noise at ``t = 1``, larger than ``beta_min``.
    """

    name: str = "geometric"
    beta_min: float = 1e-5
    beta_max: float = 20.0

    def _total_noise(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.beta_min ** (1 - t) * self.beta_max**t

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha``."""
        return torch.exp(-self._total_noise(t))

    def alpha_prime(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See ``Schedule.alpha_prime``."""
        return -self.alpha(t) * self._total_noise(t) * math.log(self.beta_max / self.beta_min)


_SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        LogLinear(),
        LogLinear("log-linear-eps", eps=1e-3),
        Stepwise(),
        Cosine(),
        Geometric(),
        Geometric("geometric-1e-4", beta_min=1e-4),
    )
}


def schedule_from_name(name: str) -> Schedule:
    """The schedule called ``name``.

    Raises:
        UsageError: no schedule has that name.
    """
    if name not in _SCHEDULES:
        raise UsageError(f"a schedule is one of {', '.join(_SCHEDULES)}; got {name!r}")
    return _SCHEDULES[name]


def sigma(schedule: Schedule, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    r"""Total noise :math:`\sigma_t = -\log\alpha_t`, on which MDLM networks are conditioned.

    If :math:`\alpha_1 = 0` it is clamped to at most :math:`-\log 10^{-3}`, the value at ``t = 1`` in the public MDLM
    code, where 0.1% of the tokens stay visible.
    """
    minimum = float(schedule.alpha(torch.ones((), dtype=torch.float64))) or 1e-3
    return -schedule.alpha(t).clamp_min(minimum).log()


def time_at(schedule: Schedule, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The time in [0, 1] at which a schedule has the signal rate ``alpha``, by bisection to about 1e-15."""
    low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
    for _ in range(50):
        middle = (low + high) / 2
        is_earlier = schedule.alpha(middle) > alpha
        low, high = torch.where(is_earlier, middle, low), torch.where(is_earlier, high, middle)
    return (low + high) / 2


WeightName = Literal["constant", "nelbo"]


def nelbo_weight(schedule: Schedule, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The NELBO's weight :math:`-\alpha'_t / (1 - \alpha_t)` of Eq. 3; :math:`1/t` for the log-linear schedule."""
    return -schedule.alpha_prime(t) / (1 - schedule.alpha(t))


def time_weight(
    name: WeightName, schedule: Schedule, t: Float[Tensor, "*shape"], *, low: float = 0.0, high: float = math.inf
) -> Float[Tensor, "*shape"]:
    r"""Time weight :math:`\omega(t)` of the integral KL, Eq. 4 and App. F.3.

    Args:
        name: ``constant`` is 1; ``nelbo`` is ``nelbo_weight``.
        schedule: the noise schedule.
        t: times in (0, 1].
        low: lower bound of the weight.
        high: upper bound of the weight; the ``nelbo`` weight grows without bound as ``t`` goes to 0.

    Raises:
        UsageError: no weight has that name.
    """
    if name not in get_args(WeightName):
        raise UsageError(f"a time weight is one of {', '.join(get_args(WeightName))}; got {name!r}")
    weight = torch.ones_like(t) if name == "constant" else nelbo_weight(schedule, t)
    return weight.clamp(low, high)


@dataclass(frozen=True)
class TimeDensity:
    r"""The Beta(a, b) density :math:`\pi(t)` from which training times are drawn, Table 5 and App. F.3.

    Beta(1, 1) is uniform; Beta(2, 5) favours small times (few masks), Beta(5, 2) large ones.

    Raises:
        UsageError: a parameter is not positive and finite.
    """

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.a < math.inf and 0 < self.b < math.inf):
            raise UsageError(f"both parameters of a Beta density are positive and finite; got ({self.a}, {self.b})")

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """``num`` independent times in [1e-6, 1 - 1e-6], float64."""
        concentration = torch.tensor([self.a, self.b], dtype=torch.float64).expand(num, 2)
        gammas = torch._standard_gamma(concentration, generator=generator)
        return (gammas[:, 0] / gammas.sum(-1)).clamp(1e-6, 1 - 1e-6)

    def density(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Value of the density at ``t`` in [0, 1]."""
        log_norm = math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)
        return torch.exp(torch.xlogy(self.a - 1, t) + torch.xlogy(self.b - 1, 1 - t) - log_norm)


def low_discrepancy_times(num: int, generator: torch.Generator, *, t_min: float = 1e-3) -> Float[Tensor, " b"]:
    """``num`` times, one in each of ``num`` equal parts of [t_min, 1], float64; each time is uniform on [t_min, 1].

    An even grid is moved by one random shift (Kingma et al. 2021, App. I.1), which lowers the variance of the NELBO
    across a batch without biasing it on [t_min, 1].
    """
    shift = torch.rand((), dtype=torch.float64, generator=generator)
    grid = (torch.arange(num, dtype=torch.float64) / num + shift) % 1
    return t_min + (1 - t_min) * grid
