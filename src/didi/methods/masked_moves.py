"""The moves of the student's own sampler of masked diffusion: the tokens of the positions that a move reveals.

Which positions are revealed does not depend on the network and is not scored, nor are latent codes (``models.latent``):
with the exact log-ratio R of finished samples, p(x) = E_c p(path | c) summed over the paths to x, and

    E_c E[R(x) * d log p(path | c) / d theta] = sum over x of R(x) * d p(x) / d theta = d KL(p || q) / d theta.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.methods.student_moves import Branches, move_times
from didi.methods.trajectories import Completions, FirstStates, Uniforms, first_states
from didi.models.latent import codes_from, features_with, num_codes
from didi.models.networks import DenoiserNetwork
from didi.sampling.base import path_alphas


@dataclass(frozen=True)
class MaskedMoves:
    """See ``StudentMoves``; the record of a path has uniform numbers, ``[s, g, 1 + codes, l]``.

    The first of a position says when it is revealed: it is masked at t if below 1 - alpha_t. For a network that reads
    latent codes there is one more for each move, which gives the code.

    Attributes:
        network: the few-step generator.
        process: masked diffusion.
        times: before every move, and 0.
        canvas: the sequences, of which each has its own positions.
        first: the network's predictions in their all-mask states; None for one that reads latent codes, of which each
            path has others.
    """

    network: DenoiserNetwork
    process: Absorbing
    times: Float[Tensor, " k"]
    canvas: Canvas
    first: FirstStates | None

    @classmethod
    def of(cls, network: DenoiserNetwork, num_moves: int, canvas: Canvas, process: Process) -> "MaskedMoves":
        """See ``StudentMoves.of``."""
        assert isinstance(process, Absorbing)
        first = None if num_codes(network) else first_states(network, canvas, process)
        return cls(network, process, move_times(num_moves), canvas, first)

    @property
    def first_log_probs(self) -> Float[Tensor, "n v"] | None:
        """See ``StudentMoves.first_log_probs``."""
        return None if self.first is None else self.first.log_probs

    @property
    def alphas(self) -> Float[Tensor, " k"]:
        """Share of visible positions at each of the times."""
        return path_alphas(self.process.schedule, self.times).to(self.canvas.tokens.device)

    def branches(self, branch: int, num_completions: int, draw: Uniforms) -> Branches:
        """See ``StudentMoves.branches``."""
        length, num_moves, alpha = self.canvas.length, len(self.times) - 1, self.alphas[branch]
        reveal, uniforms = draw(num_completions, length), draw(num_completions, length)
        codes = reveal.new_empty(len(reveal), num_completions, 0, length)
        if num_codes(self.network):
            codes = draw(num_completions, num_moves, length)
            codes[:, 1:, :branch] = codes[:, :1, :branch]
        sequence = torch.arange(len(reveal), device=reveal.device)
        start = self.process.prior(self.canvas)
        prefix = self._moved(range(branch), start, sequence, reveal[:, :1], codes[:, :1], _drawn(uniforms[:, :1]))
        # A position that is masked at the branch has a number below this; the others keep theirs.
        is_open = is_masked_at(reveal[:, 0], alpha.expand(len(reveal)))
        reveal[:, 1:] = torch.where(is_open[:, None], reveal[:, 1:] * (1 - alpha), reveal[:, :1])
        z = prefix.x[:, 0]
        completions = self._moved(range(branch, num_moves), z, sequence, reveal, codes, _drawn(uniforms))
        return Branches(z, prefix.log_probs.sum((1, 2)), completions, torch.cat([reveal[:, :, None], codes], 2))

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Float[Tensor, "s g k l"]) -> Float[Tensor, "s g"]:
        """See ``StudentMoves.path_log_probs``."""
        samples, (reveal, codes) = x.flatten(0, 1), record.flatten(0, 1)[:, None].tensor_split([1], 2)
        sequence = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
        moves = range(len(self.times) - 1)
        start = self.process.prior(self.canvas)[sequence]
        taken = self._moved(moves, start, sequence, reveal[:, :, 0], codes, lambda _, is_revealed: samples[is_revealed])
        return taken.log_probs.sum((1, 2)).view(x.shape[:2])

    def _moved(
        self,
        numbers: range,
        z: Int[Tensor, "s l"],
        sequence: Int[Tensor, " s"],
        reveal: Float[Tensor, "s g l"],
        codes: Float[Tensor, "s g k l"],
        chosen: Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]],
    ) -> Completions:
        """Where the moves numbered lead from each of the states, ``g`` times.

        Args:
            numbers: consecutive moves; 0 starts from the all-mask state.
            z: states before the first of them.
            sequence: of the canvas, for each state.
            reveal: numbers that say which positions are revealed when.
            codes: numbers that give the latent codes of every move; none for a network without.
            chosen: the tokens of revealed positions, from their log-probabilities and where they are.
        """
        shape, number_of_codes = reveal.shape, num_codes(self.network)
        codes = codes_from(codes.flatten(0, 1), number_of_codes)
        num_alike = 1 if number_of_codes else shape[1]  # the paths of one state are alike until they have moved
        z, sequence = (one.repeat_interleave(shape[1], 0) for one in (z, sequence))
        reveal, alphas = reveal.flatten(0, 1), self.alphas
        scores = torch.zeros(z.shape, device=z.device)
        for number in numbers:
            is_revealed = self.process.is_predicted(z) & ~is_masked_at(reveal, alphas[number + 1].expand(len(z)))
            path, position = is_revealed.nonzero(as_tuple=True)
            if number == 0 and self.first is not None:
                log_probs = self.first.log_probs[self.first.row[sequence[path], position]]
            else:
                read, row = (path // num_alike).unique_consecutive(return_inverse=True)
                level = self.process.noise_level(self.network, self.times[number].to(z.device).expand(len(read)))
                inputs = read * num_alike
                mask = self.canvas.rows(sequence[inputs]).attention_mask
                of_move = codes[read, number] if number_of_codes else None
                features = features_with(self.network, z[inputs], level, mask, of_move)
                log_probs = self.process.log_probs(self.network.head(features[row, position]))
            tokens = chosen(log_probs.detach(), is_revealed)
            z = z.masked_scatter(is_revealed, tokens)
            scores = scores.index_put((path, position), log_probs.gather(1, tokens[:, None]).squeeze(1))
            num_alike = 1
        return Completions(z.view(shape), scores.view(shape))


def _drawn(
    uniforms: Float[Tensor, "s g l"],
) -> Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]]:
    """Tokens that are sampled with these numbers."""
    return lambda log_probs, is_revealed: sample_categorical(log_probs, uniforms.flatten(0, 1)[is_revealed])
