"""A whole path (ours): the student's own sampler of ``objective.moves`` moves, from the all-mask state to the sample.

Every move is scored, and the reward is that of the finished sample or of its corruption. With exact rewards of finished
samples the policy gradient is the gradient of the divergence of this sampler p from the discriminator's real side q:

    d KL(p || q) / d theta = E[(log p(x) - log q(x)) * sum over moves of d log p(tokens of the move | state) / d theta],

since the score of the whole path has mean 0. ``tests/objectives/test_whole_path.py`` compares the two in an enumerated
world. Normalised advantages scale the gradient by the spread of the batch; a clamp of the rewards changes it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.schedule import TimeDensity
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.trajectories import Trajectory, Uniforms, all_mask_log_probs
from didi.models.dit import DiT
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


def whole_path(student: DiT, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms) -> Trajectory:
    """All moves of the student's own sampler of ``objective.moves`` moves, every one scored (ours).

    With ``objective.budgets`` the student is conditioned on their number, where it reads it.
    """
    num_moves = objective.moves
    assert num_moves is not None
    if objective.budgets:
        student = student.at_budget(num_moves)
    t = reward_times(objective, draw)
    reveal, uniforms = draw(length), draw(length)
    z = process.prior(Canvas.blank(len(t), length, draw.device))
    score = torch.zeros(len(t), device=draw.device)
    of_first = all_mask_log_probs(student, length, process, draw.device)
    for number in range(num_moves):
        before, after = (torch.tensor([1 - done / num_moves], dtype=torch.float64) for done in (number, number + 1))
        alpha = process.schedule.alpha(after).to(draw.device).expand(len(z))
        is_revealed = process.is_predicted(z) & ~is_masked_at(reveal, alpha)
        rows = is_revealed.any(1).nonzero().squeeze(1)
        row, position = is_revealed[rows].nonzero(as_tuple=True)
        if number == 0:
            log_probs = of_first[position]
        else:
            level = process.noise_level(student, before.to(draw.device).expand(len(rows)))
            log_probs = process.log_probs(student.head(student.features(z[rows], level)[row, position]))
        tokens = sample_categorical(log_probs.detach(), uniforms[is_revealed])
        z = z.masked_scatter(is_revealed, tokens)
        score = score.index_add(0, rows[row], log_probs.gather(1, tokens[:, None]).squeeze(1))
    return Trajectory(torch.zeros_like(t), t, z, score, of_first, of_first[:0], "whole-path", num_moves)
