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

With ``objective.reference_steps`` the discriminator estimates the log-ratio of an earlier student r, the reference, and
the reward of a path adds how far the student has moved: log p(path) - log r(path) (``path_log_probs``). With exact
ratios the policy gradient is that of

    KL(p(path) || r(path | x) q(x)) = KL(p(x) || q(x)) + E KL(p(path | x) || r(path | x)),

a bound that is tight, and has the gradient of the divergence, where student and reference are one: a student whose
bound is below the divergence of the reference has a smaller divergence. It would be 0 where each path has the
probability r(path | x) q(x). With corruptions x is the state that is judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    """A network's own sampler of evenly spaced moves.

    Attributes:
        network: the few-step generator.
        process: masked diffusion.
        times: before every move, and 0.
        start: the all-mask state of one sequence.
        first_log_probs: the network's log-probabilities there.
    """

    network: DiT
    process: Absorbing
    times: Float[Tensor, " k"]
    start: Int[Tensor, "1 l"]
    first_log_probs: Float[Tensor, "l v"]

    @classmethod
    def of(cls, network: DiT, num_moves: int, length: int, process: Absorbing, device: torch.device) -> "_Sampler":
        """The sampler of so many moves."""
        times = 1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves
        of_first = all_mask_log_probs(network, length, process, device)
        return cls(network, process, times, process.prior(Canvas.blank(1, length, device)), of_first)

    @property
    def alphas(self) -> Float[Tensor, " k"]:
        """Share of visible positions at each of the times."""
        return path_alphas(self.process.schedule, self.times).to(self.start.device)

    def moves(
        self,
        numbers: range,
        z: Int[Tensor, "s l"],
        reveal: Float[Tensor, "s g l"],
        chosen: Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]],
    ) -> Completions:
        """Where the moves numbered lead from each of the states, ``g`` times.

        Args:
            numbers: consecutive moves; 0 starts from the all-mask state.
            z: states before the first of them.
            reveal: numbers that say which positions are revealed when.
            chosen: the tokens of revealed positions, from their log-probabilities and where they are.
        """
        shape, num_alike = reveal.shape, reveal.shape[1]  # the paths of one state are alike until they have moved
        z, reveal, alphas = z.repeat_interleave(num_alike, 0), reveal.flatten(0, 1), self.alphas
        scores = torch.zeros(z.shape, device=z.device)
        for number in numbers:
            is_revealed = self.process.is_predicted(z) & ~is_masked_at(reveal, alphas[number + 1].expand(len(z)))
            path, position = is_revealed.nonzero(as_tuple=True)
            if number == 0:
                log_probs = self.first_log_probs[position]
            else:
                read, row = (path // num_alike).unique_consecutive(return_inverse=True)
                level = self.process.noise_level(self.network, self.times[number].to(z.device).expand(len(read)))
                features = self.network.features(z[read * num_alike], level)
                log_probs = self.process.log_probs(self.network.head(features[row, position]))
            tokens = chosen(log_probs.detach(), is_revealed)
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
    sampler = _Sampler.of(student, num_moves, length, process, draw.device)
    start = sampler.start.expand(len(t), -1)
    prefix = sampler.moves(range(branch), start, reveal[:, :1], _drawn(uniforms[:, :1]))
    # A position that is masked at the branch has a number below this; the others keep theirs.
    is_open, alpha = is_masked_at(reveal[:, 0], sampler.alphas[branch].expand(len(t))), sampler.alphas[branch]
    reveal[:, 1:] = torch.where(is_open[:, None], reveal[:, 1:] * (1 - alpha), reveal[:, :1])
    z_tau = prefix.x[:, 0]
    return Trajectory(
        tau=sampler.times[branch].expand(len(t)),
        t=t,
        z_tau=z_tau,
        first_score=prefix.log_probs.sum((1, 2)),
        first_log_probs=sampler.first_log_probs,
        second_log_probs=sampler.first_log_probs[:0],
        kind="whole-path",
        num_moves=num_moves,
        completions=sampler.moves(range(branch, num_moves), z_tau, reveal, _drawn(uniforms)),
        reveal=reveal,
    )


def path_log_probs(
    network: DiT, x: Int[Tensor, "s g l"], reveal: Float[Tensor, "s g l"], num_moves: int, process: Absorbing
) -> Float[Tensor, "s g"]:
    """Log-probability of the tokens of whole paths under any network.

    Args:
        network: need not be the one that drew the paths.
        x: the finished samples.
        reveal: numbers that say which position was revealed when, of ``Rollout``.
        num_moves: of the paths.
        process: masked diffusion.
    """
    samples = x.flatten(0, 1)
    sampler = _Sampler.of(network, num_moves, x.shape[-1], process, x.device)
    start, reveal = sampler.start.expand(len(samples), -1), reveal.flatten(0, 1)[:, None]
    taken = sampler.moves(range(num_moves), start, reveal, lambda _, is_revealed: samples[is_revealed])
    return taken.log_probs.sum((1, 2)).view(x.shape[:2])


def _drawn(
    uniforms: Float[Tensor, "s g l"],
) -> Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]]:
    """Tokens that are sampled with these numbers."""
    return lambda log_probs, is_revealed: sample_categorical(log_probs, uniforms.flatten(0, 1)[is_revealed])
