"""The scored move of a one-step generator that starts from random tokens (``models.initial_state``).

As in Di[M]O, the distribution of samples is a mixture, over initial states, of products over positions; from all masks
it would be a single product. The initial state does not depend on the network and is not scored: with the exact
log-ratio R of finished samples,

    E[R(x) * d log p(x | initial state) / d theta] = sum over x of R(x) * d p(x) / d theta = d KL(p || q) / d theta.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.methods.student_moves import Branches
from didi.methods.trajectories import Completions, Uniforms
from didi.models.initial_state import InitialState
from didi.models.networks import DenoiserNetwork


@dataclass(frozen=True)
class OneStepMoves:
    """The methods of ``StudentMoves`` for paths without branches; the record of a path is its initial state.

    Attributes:
        network: the one-step generator.
        process: masked diffusion.
        length: positions of a sequence.
        initial_state: distribution of the network's input, without noise in its embeddings.
        first_log_probs: None, since initial states differ between paths.
    """

    network: DenoiserNetwork
    process: Absorbing
    length: int
    initial_state: InitialState
    first_log_probs: None = None

    def branches(self, branch: int, num_completions: int, draw: Uniforms) -> Branches:
        """See ``StudentMoves.branches``; the only branch is the finished sample."""
        assert (branch, num_completions) == (1, 1)
        state, uniforms = draw(self.length, 2), draw(self.length)
        canvas = Canvas.blank(len(state), self.length, state.device)
        start = self.initial_state.tokens(canvas, state, self.process.mask_id, self.network.vocab_size)
        log_probs = self._log_probs(start)
        x = sample_categorical(log_probs.detach(), uniforms.flatten()).view_as(start)
        score = log_probs.gather(1, x.flatten()[:, None]).view_as(x).sum(-1)
        completions = Completions(x[:, None], torch.zeros_like(x[:, None], dtype=score.dtype))
        return Branches(x, score, completions, start[:, None])

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Int[Tensor, "s g l"]) -> Float[Tensor, "s g"]:
        """See ``StudentMoves.path_log_probs``."""
        chosen = self._log_probs(record.flatten(0, 1)).gather(1, x.flatten()[:, None])
        return chosen.view(x.shape).sum(-1)

    def _log_probs(self, start: Int[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """Log-probabilities of the tokens at every position, in row-major order."""
        level = self.process.noise_level(self.network, torch.ones(len(start), dtype=torch.float64, device=start.device))
        return self.process.log_probs(self.network.head(self.network.features(start, level).flatten(0, 1)))
