"""Student states of the guidance steps: states of the finished student's ancestral sampler, as in guided sampling.

Each state is the state before a random move or the finished sample; the initial state of pure noise is excluded.
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

States = Callable[[Denoiser, Any, Int[Tensor, " s"], int, Float[Tensor, "k s l"], Canvas], Int[Tensor, "s l"]]


class _Kind(NamedTuple):
    """How the states of a process are drawn, and the uniform numbers that this needs at each position.

    Attributes:
        states: draws the states.
        num_shared: uniform numbers that all moves share.
        num_per_move: uniform numbers of each move; a student with latent codes needs one more.
    """

    states: States
    num_shared: int
    num_per_move: int


_KINDS: Mapping[str, _Kind] = {
    Absorbing.name: _Kind(states_before_a_move, 2, 0),
    Uniform.name: _Kind(uniform_states_before_a_move, 1, 1),
}
"""How the states are drawn, by the name of the process."""


def num_guidance_uniforms(student: Denoiser, process: Process, num_moves: int) -> int:
    """Number of uniform numbers that ``guidance_states`` needs at each position."""
    kind = _KINDS[process.name]
    return kind.num_shared + (kind.num_per_move + (num_codes(student) > 0)) * num_moves


def guidance_states(
    student: Denoiser,
    process: Process,
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "k s l"],
    canvas: Canvas | None = None,
) -> Int[Tensor, "s l"]:
    """States of the student's ancestral sampler of ``num_moves`` equal moves, each after ``move`` moves.

    Args:
        student: the few-step generator.
        process: process of the student.
        move: for each state, the number of moves before it.
        num_moves: moves of the whole path.
        uniforms: uniform numbers, k of ``num_guidance_uniforms``; float64, on the student's device.
        canvas: the sequences, on the student's device; None if all positions are free.
    """
    canvas = canvas or Canvas.blank(len(move), uniforms.shape[-1], uniforms.device)
    return _KINDS[process.name].states(student, process, move, num_moves, uniforms, canvas)
