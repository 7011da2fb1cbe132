"""The check that tokens are drawn from finite scores only."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from didi.errors import NotFinite

_is_off = False


@contextmanager
def no_draw_checks() -> Iterator[None]:
    """Within the context no sample is checked: for dry runs, whose logits have no values."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def are_draws_checked() -> bool:
    """Whether this is outside ``no_draw_checks``."""
    return not _is_off


class DrawCheck:
    """Whether every distribution that was drawn from had a finite score and neither NaN nor +inf.

    On a CUDA device the answers are collected there, so that the host does not wait for it at every move; ``finish``
    reads them. Elsewhere a draw from other scores fails at once.
    """

    def __init__(self) -> None:
        self._is_bad: Tensor | None = None

    def see(self, scores: Float[Tensor, "... v"]) -> None:
        """Check rows of logits or log-probabilities, of which -inf rules out a symbol.

        Raises:
            NotFinite: a row cannot be drawn from; on a CUDA device later, from ``finish``.
        """
        if _is_off:
            return
        is_bad = ~scores.detach().amax(-1).isfinite().all()  # NaN and +inf are the largest of their row
        if scores.device.type == "cuda":
            self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad
        elif bool(is_bad):
            self._fail()

    def finish(self) -> None:
        """Read what was collected on a CUDA device, and forget it.

        Raises:
            NotFinite: a row that was seen could not be drawn from.
        """
        is_bad, self._is_bad = self._is_bad, None
        if is_bad is not None and bool(is_bad):
            self._fail()

    @staticmethod
    def _fail() -> None:
        raise NotFinite(
            "no token can be drawn from logits that are not finite (NaN or infinite): the weights of a network are "
            "damaged or its training diverged, or a setting such as guidance_scale is too large"
        )
