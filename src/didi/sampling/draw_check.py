"""A check that tokens are drawn from finite logits only."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from didi.errors import NotFinite

_is_off = False


@contextmanager
def no_draw_checks() -> Iterator[None]:
    """Turn all checks off within the context; for dry runs on the meta device, where logits have no values."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def are_draws_checked() -> bool:
    """False within ``no_draw_checks``."""
    return not _is_off


class DrawCheck:
    """Checks that each row of scores has a finite entry and neither NaN nor +inf.

    On a CUDA device the results are collected on the device, so that the host does not wait in every move; ``finish``
    reads them. On other devices a failed check raises at once.
    """

    def __init__(self) -> None:
        self._is_bad: Tensor | None = None

    def check(self, scores: Float[Tensor, "... v"]) -> None:
        """Check rows of logits or log-probabilities; -inf means that a symbol is impossible.

        Raises:
            NotFinite: a row fails; on a CUDA device ``finish`` raises it instead.
        """
        if _is_off:
            return
        is_bad = ~scores.detach().amax(-1).isfinite().all()  # NaN and +inf are the largest of their row
        if scores.device.type == "cuda":
            self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad
        elif bool(is_bad):
            self._fail()

    def finish(self) -> None:
        """Read and reset the results that were collected on a CUDA device.

        Raises:
            NotFinite: a checked row failed.
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
