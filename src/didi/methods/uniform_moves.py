"""Moves of the student's ancestral sampler of uniform-state diffusion; the tokens of every move are scored.

Every move draws every position from the posterior (``Process.reverse_weights``), so that a token may change in every
move. The initial state of a path is uniform noise, which does not depend on the network and is not scored.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.uniform import Uniform
from didi.diffusion.uniform_moves import draw_move, move_log_probs
from didi.methods.student_moves import Branches, move_times
from didi.methods.trajectories import Completions, Uniforms
from didi.models.denoiser import Denoiser
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group
from didi.sampling.base import features_at, path_alphas


@dataclass(frozen=True)
class UniformMoves:
    """See ``StudentMoves``; the record of a path holds all its states, ``[s, g, moves + 1, l]``.

    Log-probabilities are float64, since differences between the sums over a path of two similar networks are small.

    Attributes:
        network: the few-step generator.
        process: uniform-state diffusion.
        times: times before the moves, and 0 at the end.
        length: positions of a sequence.
        first_log_probs: None.
    """

    network: DenoiserNetwork
    process: Uniform
    times: Float[Tensor, " k"]
    length: int
    first_log_probs: None = None

    @classmethod
    def of(cls, network: DenoiserNetwork, process: Process, num_moves: int, canvas: Canvas) -> "UniformMoves":
        """See ``StudentMoves.of``; every position is free."""
        assert isinstance(process, Uniform)
        return cls(network, process, move_times(num_moves), canvas.length)

    def branches(self, branch: int, num_completions: int, draw: Uniforms) -> Branches:
        """See ``StudentMoves.branches``."""
        num_moves, noise = len(self.times) - 1, draw(self.length, self.process.draws_per_position)
        uniforms = draw(num_completions, num_moves, self.length)
        start = self.process.prior(Canvas.blank(len(noise), self.length, noise.device), noise)[:, None]
        prefix, first_log_probs = self._draw_moves(range(branch), start, uniforms[:, :1])
        z = prefix[-1]
        states, log_probs = self._draw_moves(range(branch, num_moves), z, uniforms)
        record = torch.stack([z.expand_as(states[-1]) for z in (*prefix[:-1], *states)], dim=2)
        return Branches(z[:, 0], first_log_probs.sum((1, 2)), Completions(record[:, :, -1], log_probs), record)

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Int[Tensor, "s g k l"]) -> Float[Tensor, "s g"]:
        """See ``StudentMoves.path_log_probs``."""
        states, total = record.flatten(0, 1), torch.zeros(x.shape[:2].numel(), dtype=torch.float64, device=x.device)
        for move in range(len(self.times) - 1):
            z, next_z = states[:, move], states[:, move + 1]
            total = total + self._scores(move, self._log_probs(move, z), z, next_z).sum(-1)
        return total.view(x.shape[:2])

    def _draw_moves(
        self, moves: range, z: Int[Tensor, "s n l"], uniforms: Float[Tensor, "s g k l"]
    ) -> tuple[list[Int[Tensor, "s _ l"]], Float[Tensor, "s g l"]]:
        """Draw consecutive moves.

        Args:
            moves: numbers of the moves.
            z: states before the first of the moves; n = 1.
            uniforms: uniform numbers of all moves of the sampler, for g paths of each state.

        Returns:
            The states before each of the moves and after the last, and the sum over moves of the log-probabilities of
            their tokens.
        """
        shape = (*uniforms.shape[:2], self.length)
        states, total = [z], torch.zeros(shape, dtype=torch.float64, device=z.device)
        for move in moves:
            log_probs = self._log_probs(move, z.flatten(0, 1))
            if z.shape[:2] != shape[:2]:  # before the first move the paths of one state are equal
                log_probs = log_probs.view(len(z), 1, self.length, -1).expand(*shape, -1).flatten(0, 2)
                z = z.expand(shape)
            alpha_t, alpha_s = self._alphas(move)
            numbers = uniforms[:, :, move].flatten()
            alphas_s = numbers.new_full(numbers.shape, alpha_s)
            next_z = draw_move(log_probs.detach(), z.flatten(), numbers, alpha_t, alphas_s).view(shape)
            total = total + self._scores(move, log_probs, z.flatten(0, 1), next_z.flatten(0, 1)).view(shape)
            z = next_z
            states.append(z)
        return states, total

    def _log_probs(self, move: int, z: Int[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """The network's log-probabilities of the clean token at every position before a move."""
        features = features_at(self.network, self.process, z, self.times[move])
        return self.process.log_probs(self.network.head(features.flatten(0, 1)))

    def _scores(
        self, move: int, log_probs: Float[Tensor, "n v"], z: Int[Tensor, "b l"], next_z: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """Log-probabilities of the tokens after a move."""
        return move_log_probs(log_probs, z.flatten(), next_z.flatten(), *self._alphas(move)).view(z.shape)

    def _alphas(self, move: int) -> tuple[float, float]:
        """Signal rates before and after a move."""
        alpha_t, alpha_s = path_alphas(self.process.schedule, self.times[move : move + 2]).tolist()
        return alpha_t, alpha_s


@torch.no_grad()
def uniform_states_before_a_move(
    student: Denoiser,
    process: Uniform,
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "k s l"],
    canvas: Canvas,
) -> Int[Tensor, "s l"]:
    """See ``guidance_states.guidance_states``; ``uniforms[0]`` is for the initial state, the others for the moves."""
    device, times = uniforms.device, move_times(num_moves)
    alphas = path_alphas(process.schedule, times).tolist()
    z = process.prior(canvas, uniforms[0, :, :, None].expand(-1, -1, process.draws_per_position))
    # Sharded weights are gathered in each pass, so all processes make equally many passes, some without rows.
    for number in range(num_moves if process_group().size > 1 else int(move.max())):
        rows = (move > number).nonzero().squeeze(1).to(device)
        features = features_at(student, process, z[rows], times[number])
        log_probs = process.log_probs(student.head(features.flatten(0, 1)))
        numbers = uniforms[number + 1, rows].flatten()
        alphas_s = torch.full_like(numbers, alphas[number + 1])
        z[rows] = draw_move(log_probs, z[rows].flatten(), numbers, alphas[number], alphas_s).view(len(rows), z.shape[1])
    return z
