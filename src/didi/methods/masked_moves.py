"""Moves of the student's ancestral sampler of masked diffusion; the tokens at revealed positions are scored.

Revealed positions and latent codes c (``models.latent``) do not depend on the network and are not scored. With the
exact log-ratio R of finished samples, and p(x) the sum of E_c p(path | c) over the paths to x,

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
    """See ``StudentMoves``; the record of a path holds uniform numbers, ``[s, g, 1 + codes, l]``.

    The first number of a position determines when it is revealed: the position is masked at t if the number is below
    1 - alpha_t. If the network reads latent codes, each move has one more number, which determines the code.

    Attributes:
        network: the few-step generator.
        process: masked diffusion.
        times: times before the moves, and 0 at the end.
        canvas: the sequences, with masks of their free and real positions.
        first: the network's predictions in the all-mask states; None if the network reads latent codes, which differ
            between paths.
    """

    network: DenoiserNetwork
    process: Absorbing
    times: Float[Tensor, " k"]
    canvas: Canvas
    first: FirstStates | None

    @classmethod
    def of(cls, network: DenoiserNetwork, process: Process, num_moves: int, canvas: Canvas) -> "MaskedMoves":
        """See ``StudentMoves.of``."""
        assert isinstance(process, Absorbing)
        first = None if num_codes(network) else first_states(network, process, canvas)
        return cls(network, process, move_times(num_moves), canvas, first)

    @property
    def first_log_probs(self) -> Float[Tensor, "n v"] | None:
        """See ``StudentMoves.first_log_probs``."""
        return None if self.first is None else self.first.log_probs

    @property
    def alphas(self) -> Float[Tensor, " k"]:
        """Expected share of visible positions at each of ``times``."""
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
        prefix = self._run_moves(
            range(branch), start, sequence, reveal[:, :1], codes[:, :1], _sampled_tokens(uniforms[:, :1])
        )
        # Masked positions at the branch have numbers below 1 - alpha: rescale the other paths' numbers to that range.
        # Revealed positions have the same number on all paths.
        is_masked = is_masked_at(reveal[:, 0], alpha.expand(len(reveal)))
        reveal[:, 1:] = torch.where(is_masked[:, None], reveal[:, 1:] * (1 - alpha), reveal[:, :1])
        z = prefix.x[:, 0]
        completions = self._run_moves(range(branch, num_moves), z, sequence, reveal, codes, _sampled_tokens(uniforms))
        return Branches(z, prefix.log_probs.sum((1, 2)), completions, torch.cat([reveal[:, :, None], codes], 2))

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Float[Tensor, "s g k l"]) -> Float[Tensor, "s g"]:
        """See ``StudentMoves.path_log_probs``."""
        samples, (reveal, codes) = x.flatten(0, 1), record.flatten(0, 1)[:, None].tensor_split([1], 2)
        sequence = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
        moves = range(len(self.times) - 1)
        start = self.process.prior(self.canvas)[sequence]
        path = self._run_moves(
            moves, start, sequence, reveal[:, :, 0], codes, lambda _, is_revealed: samples[is_revealed]
        )
        return path.log_probs.sum((1, 2)).view(x.shape[:2])

    def _run_moves(
        self,
        moves: range,
        z: Int[Tensor, "s l"],
        sequence: Int[Tensor, " s"],
        reveal: Float[Tensor, "s g l"],
        codes: Float[Tensor, "s g k l"],
        choose: Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]],
    ) -> Completions:
        """Run consecutive moves from each of the states, on ``g`` paths for each.

        Args:
            moves: numbers of the moves; move 0 starts from the all-mask state.
            z: states before the first of the moves.
            sequence: index of the sequence of ``canvas``, for each state.
            reveal: numbers that determine when positions are revealed.
            codes: numbers that determine the latent codes of every move; k = 0 if the network reads no codes.
            choose: maps the log-probabilities of revealed positions and their mask to their tokens.
        """
        shape, number_of_codes = reveal.shape, num_codes(self.network)
        codes = codes_from(codes.flatten(0, 1), number_of_codes)
        # Until the first move, the paths of one state have equal network inputs, which need one pass only.
        num_equal = 1 if number_of_codes else shape[1]
        z, sequence = z.repeat_interleave(shape[1], 0), sequence.repeat_interleave(shape[1], 0)
        reveal, alphas = reveal.flatten(0, 1), self.alphas
        scores = torch.zeros(z.shape, device=z.device)
        for move in moves:
            is_revealed = self.process.is_predicted(z) & ~is_masked_at(reveal, alphas[move + 1].expand(len(z)))
            path, position = is_revealed.nonzero(as_tuple=True)
            if move == 0 and self.first is not None:
                log_probs = self.first.log_probs[self.first.row[sequence[path], position]]
            else:
                distinct, row = (path // num_equal).unique_consecutive(return_inverse=True)
                level = self.process.noise_level(self.network, self.times[move].to(z.device).expand(len(distinct)))
                inputs = distinct * num_equal
                mask = self.canvas.rows(sequence[inputs]).attention_mask
                move_codes = codes[distinct, move] if number_of_codes else None
                features = features_with(self.network, z[inputs], level, mask, move_codes)
                log_probs = self.process.log_probs(self.network.head(features[row, position]))
            tokens = choose(log_probs.detach(), is_revealed)
            z = z.masked_scatter(is_revealed, tokens)
            scores = scores.index_put((path, position), log_probs.gather(1, tokens[:, None]).squeeze(1))
            num_equal = 1
        return Completions(z.view(shape), scores.view(shape))


def _sampled_tokens(
    uniforms: Float[Tensor, "s g l"],
) -> Callable[[Float[Tensor, "n v"], Bool[Tensor, "s*g l"]], Int[Tensor, " n"]]:
    """The argument ``choose`` that samples tokens by uniform numbers."""
    return lambda log_probs, is_revealed: sample_categorical(log_probs, uniforms.flatten(0, 1)[is_revealed])
