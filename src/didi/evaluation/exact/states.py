"""Enumeration of all states of a masked sequence of few symbols, for exact distributions.

A state is a sequence of ``length`` entries, each a symbol or the mask. Its index is its value as a number in base
``num_symbols + 1``, with the first position as the most significant digit and the mask as the largest digit. States
with the same masked positions form a pattern. A table over all states can be viewed as a tensor with one axis for each
position; the states that moves from a pattern can reach are a slice of it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.errors import UsageError

MAX_STATES = 5**8


@dataclass(frozen=True)
class Pattern:
    """The states with one set of masked positions.

    Attributes:
        masked: masked positions, in increasing order.
        visible: the other positions, in increasing order.
        num_symbols: number V of symbols, without the mask.
    """

    masked: tuple[int, ...]
    visible: tuple[int, ...]
    num_symbols: int

    def successors(self, values: Float[Tensor, " n"]) -> Float[Tensor, "r s"]:
        """For each state of the pattern, a row of the entries of the (V + 1)^masked states that a move can reach."""
        return (
            self._block(values).permute(*self.visible, *self.masked).reshape(self.num_symbols ** len(self.visible), -1)
        )

    def add_to(self, totals: Float[Tensor, " n"], values: Float[Tensor, "r s"]) -> None:
        """Add ``values``, in the layout of ``successors``, to a table over all states, in place."""
        shape = [self.num_symbols] * len(self.visible) + [self.num_symbols + 1] * len(self.masked)
        order = (*self.visible, *self.masked)
        back = sorted(range(len(order)), key=order.__getitem__)
        self._block(totals).add_(values.view(shape).permute(back))

    def _block(self, values: Float[Tensor, " n"]) -> Float[Tensor, "..."]:
        length = len(self.masked) + len(self.visible)
        grid = values.view((self.num_symbols + 1,) * length)
        return grid[tuple(slice(self.num_symbols + (pos in self.masked)) for pos in range(length))]


@dataclass(frozen=True)
class States:
    """Every masked state of sequences of ``length`` positions over ``num_symbols`` symbols.

    Attributes:
        num_symbols: number V of symbols; the mask is symbol V.
        length: number L of positions.

    Raises:
        UsageError: there are more than ``MAX_STATES`` states, or none.
    """

    num_symbols: int
    length: int

    def __post_init__(self) -> None:
        if min(self.num_symbols, self.length) < 1 or (self.num_symbols + 1) ** self.length > MAX_STATES:
            raise UsageError(
                f"an exact distribution enumerates (symbols + 1)^length states, at most {MAX_STATES:,}; got "
                f"{self.num_symbols} symbols and length {self.length}: choose fewer symbols or a smaller length"
            )

    def __len__(self) -> int:
        return int((self.num_symbols + 1) ** self.length)

    @cached_property
    def tokens(self) -> Int[Tensor, "n l"]:
        """All states, in the order of their indices."""
        return all_states(self.num_symbols + 1, self.length)

    @cached_property
    def clean(self) -> Int[Tensor, "c l"]:
        """The V^L sequences without masks, in the order of every distribution over clean sequences."""
        return all_states(self.num_symbols, self.length)

    @property
    def is_masked(self) -> Bool[Tensor, "n l"]:
        """Masked positions of every state."""
        return self.tokens == self.num_symbols

    @cached_property
    def patterns(self) -> list[Pattern]:
        """Every pattern, the clean one first and the fully masked one last."""
        patterns = []
        for number in range(2**self.length):
            masked = tuple(pos for pos in range(self.length) if number >> pos & 1)
            visible = tuple(pos for pos in range(self.length) if pos not in masked)
            patterns.append(Pattern(masked, visible, self.num_symbols))
        return patterns

    @cached_property
    def _order(self) -> Int[Tensor, " n"]:
        """Indices of the states, sorted by pattern."""
        number = (self.is_masked.long() * 2 ** torch.arange(self.length)).sum(1)
        return number.argsort(stable=True)

    def by_pattern(self, table: Float[Tensor, "n *k"]) -> tuple[Float[Tensor, "_ *k"], ...]:
        """The entries of each pattern's V^visible states, in the order of ``patterns``."""
        return table[self._order].split([self.num_symbols ** len(pattern.visible) for pattern in self.patterns])

    def of_clean(self, values: Float[Tensor, " n"]) -> Float[Tensor, " c"]:
        """The entries of the clean sequences in a table over all states."""
        grid = values.view((self.num_symbols + 1,) * self.length)
        return grid[(slice(self.num_symbols),) * self.length].reshape(-1)

    def all_masked(self) -> Float[Tensor, " n"]:
        """The distribution before the first move: probability 1 of the fully masked state, the last one; float64."""
        mass = torch.zeros(len(self), dtype=torch.float64)
        mass[-1] = 1
        return mass


def all_states(num: int, length: int) -> Int[Tensor, "n l"]:
    """All sequences of ``length`` symbols out of ``num``, ordered with the first position most significant."""
    powers = num ** torch.arange(length - 1, -1, -1)
    return torch.arange(num**length)[:, None] // powers % num
