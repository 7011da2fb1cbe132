"""States of the lessons for guidance: those that guided sampling scores, from the finished student's own sampler.

A state is that before a random move of it, or the finished sample; the first one, pure noise, is not among them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.uniform import Uniform
from didi.methods.trajectories import states_before_a_move
from didi.methods.uniform_moves import uniform_states_before_a_move
from didi.models.denoiser import Denoiser
from didi.models.latent import num_codes

States = Callable[[Denoiser, Int[Tensor, " s"], int, Float[Tensor, "k s l"], Any, Canvas], Int[Tensor, "s l"]]


class _Kind(NamedTuple):
    """What makes the states, and the uniform numbers that it needs at each position, for all moves and for each.

    Latent codes need one more for each move.
    """

    states: States
    num_for_all: int
    num_for_each: int


_KINDS: Mapping[str, _Kind] = {
    Absorbing.name: _Kind(states_before_a_move, 2, 0),
    Uniform.name: _Kind(uniform_states_before_a_move, 1, 1),
}
"""By the name of the process."""


def numbers_of_lessons(student: Denoiser, process: Process, num_moves: int) -> int:
    """Uniform numbers at each position of a state of ``lesson_states``."""
    kind = _KINDS[process.name]
    return kind.num_for_all + (kind.num_for_each + (num_codes(student) > 0)) * num_moves


def lesson_states(
    student: Denoiser,
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "k s l"],
    process: Process,
    canvas: Canvas | None = None,
) -> Int[Tensor, "s l"]:
    """States of the student's own ancestral sampler of ``num_moves`` even moves, each before the move numbered.

    Args:
        student: the few-step generator.
        move: for each state, the number of moves that lead to it.
        num_moves: moves of the whole path.
        uniforms: as many as ``numbers_of_lessons`` says, float64, where the student lives.
        process: of the student.
        canvas: the sequences, where the student lives; None where all positions are free.
    """
    canvas = canvas or Canvas.blank(len(move), uniforms.shape[-1], uniforms.device)
    return _KINDS[process.name].states(student, move, num_moves, uniforms, process, canvas)
