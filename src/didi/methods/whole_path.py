"""A whole path (ours): the student's own sampler of ``objective.moves`` moves, from the all-mask state to the sample.

Every move is scored, and the reward is that of the finished sample or of its corruption. With exact rewards of finished
samples the policy gradient is the gradient of the divergence of this sampler p from the discriminator's real side q:

    d KL(p || q) / d theta = E[(log p(x) - log q(x)) * sum over moves of d log p(tokens of the move | state) / d theta],

since the score of the whole path has mean 0. ``tests/objectives/test_whole_path.py`` compares the two in an enumerated
world. Normalised advantages scale the gradient by the spread of the batch; a clamp of the rewards changes it.

With several completions (``objective.completions``) the path branches at its state before a random move: from there
the completions are independent. The moves up to that state are scored by the mean reward of its completions against
the other states, the moves after it by the reward of a completion against the others of its state (``shared-state``).
The expected gradient is the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.schedule import TimeDensity
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.trajectories import Completions, Trajectory, Uniforms, all_mask_log_probs
from didi.models.dit import DiT
from didi.sampling.base import path_alphas
from didi.world import world


def reward_times(objective: ObjectiveConfig, draw: Uniforms) -> Float[Tensor, " s"]:
    """Times at which finished samples are judged: 0, drawn from the density pi(t), or 0 in every other row."""
    num_states = draw.num_states
    if objective.reward_time == "finished":
        return world().mine(torch.zeros(num_states, dtype=torch.float64))
    t = TimeDensity(objective.time_a, objective.time_b).sample(num_states, draw.generator)
    if objective.reward_time == "both":
        t[::2] = 0
    return world().mine(t)


@dataclass(frozen=True)
class _Sampler:
    """The student's own sampler of evenly spaced moves.

    Attributes:
        student: the few-step generator.
        process: masked diffusion.
        times: before every move, and 0.
        first_log_probs: the student's log-probabilities at the all-mask state.
    """

    student: DiT
    process: Absorbing
    times: Float[Tensor, " k"]
    first_log_probs: Float[Tensor, "l v"]

    def moves(
        self,
        numbers: range,
        z: Int[Tensor, "s l"],
        reveal: Float[Tensor, "s g l"],
        uniforms: Float[Tensor, "s g l"],
    ) -> Completions:
        """Where the moves numbered lead from each of the states, ``g`` times.

        Args:
            numbers: consecutive moves; 0 starts from the all-mask state.
            z: states before the first of them.
            reveal: numbers that say which positions are revealed when.
            uniforms: numbers that say which tokens they get.
        """
        shape, num_alike = reveal.shape, reveal.shape[1]  # the paths of one state are alike until they have moved
        z, reveal, uniforms = z.repeat_interleave(num_alike, 0), reveal.flatten(0, 1), uniforms.flatten(0, 1)
        alphas = path_alphas(self.process.schedule, self.times).to(z.device)
        scores = torch.zeros(z.shape, device=z.device)
        for number in numbers:
            is_revealed = self.process.is_predicted(z) & ~is_masked_at(reveal, alphas[number + 1].expand(len(z)))
            path, position = is_revealed.nonzero(as_tuple=True)
            if number == 0:
                log_probs = self.first_log_probs[position]
            else:
                read, row = (path // num_alike).unique_consecutive(return_inverse=True)
                level = self.process.noise_level(self.student, self.times[number].to(z.device).expand(len(read)))
                features = self.student.features(z[read * num_alike], level)
                log_probs = self.process.log_probs(self.student.head(features[row, position]))
            tokens = sample_categorical(log_probs.detach(), uniforms[is_revealed])
            z = z.masked_scatter(is_revealed, tokens)
            scores = scores.index_put((path, position), log_probs.gather(1, tokens[:, None]).squeeze(1))
            num_alike = 1
        return Completions(z.view(shape), scores.view(shape))


def whole_path(student: DiT, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms) -> Trajectory:
    """All moves of the student's own sampler of ``objective.moves`` moves, every one scored (ours).

    With several completions the number of moves up to the branch is drawn, the same for all states; with one, the
    branch is the finished sample. With ``objective.budgets`` the student is conditioned on the number of moves, where
    it reads it.
    """
    num_moves, num_completions = objective.moves, objective.completions
    assert num_moves is not None
    if objective.budgets:
        student = student.at_budget(num_moves)
    branch = num_moves if num_completions == 1 else int(torch.randint(num_moves, (), generator=draw.generator))
    t = reward_times(objective, draw)
    reveal, uniforms = draw(num_completions, length), draw(num_completions, length)
    times = 1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves
    of_first = all_mask_log_probs(student, length, process, draw.device)
    sampler = _Sampler(student, process, times, of_first)
    start = process.prior(Canvas.blank(len(t), length, draw.device))
    prefix = sampler.moves(range(branch), start, reveal[:, :1], uniforms[:, :1])
    reveal[:, 1:] *= 1 - path_alphas(process.schedule, times)[branch]  # what is masked there has a number below this
    z_tau = prefix.x[:, 0]
    return Trajectory(
        tau=times[branch].expand(len(t)),
        t=t,
        z_tau=z_tau,
        first_score=prefix.log_probs.sum((1, 2)),
        first_log_probs=of_first,
        second_log_probs=of_first[:0],
        kind="whole-path",
        num_moves=num_moves,
        completions=sampler.moves(range(branch, num_moves), z_tau, reveal, uniforms),
    )
