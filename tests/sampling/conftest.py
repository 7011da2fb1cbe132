"""A model of K = 3 symbols and L = 2 positions, small enough for the exact distribution of samples by enumeration."""

import itertools

import pytest
import torch

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise, named_generator
from didi.models.discriminator import Discriminator, DiscriminatorConfig
from didi.sampling.base import alpha_at, time_grid


class EnumeratedModel:
    """Logits of all 16 states, a distribution of clean sequences, and the distributions that samples must have."""

    MASK = 3
    STATES = torch.tensor(list(itertools.product(range(4), repeat=2)))
    CLEAN = torch.tensor(list(itertools.product(range(3), repeat=2)))

    def __init__(self):
        generator = named_generator("world")
        # Logits of two positions in each of the 16 states; samplers must ignore those of the mask.
        self.table = 0.7 * torch.randn(16, 2, 4, generator=generator)
        self.data_probs = (torch.randn(9, dtype=torch.float64, generator=generator)).softmax(0)

    @staticmethod
    def state_index(z):
        return z[..., 0] * 4 + z[..., 1]

    @staticmethod
    def all_masked():
        """Probabilities of the states before the first move: both positions are masked."""
        state_probs = torch.zeros(16, dtype=torch.float64)
        state_probs[-1] = 1
        return state_probs

    def of_clean(self, state_probs):
        """Probabilities of the clean sequences after the last move, [9]."""
        clean = state_probs[self.state_index(self.CLEAN)]
        assert float(clean.sum()) == pytest.approx(1)
        return clean

    def after_move(self, state_probs, token_probs, reveal, remask=0.0):
        """Probabilities of the states after a move.

        A mask is revealed with probability ``reveal``; a visible token is masked with probability ``remask``.
        """
        after = torch.zeros(16, dtype=torch.float64)
        for state, mass in zip(self.STATES.tolist(), state_probs.tolist(), strict=True):
            options = []
            for position, token in enumerate(state):
                if token != self.MASK:
                    options.append([(token, 1 - remask), (self.MASK, remask)])
                    continue
                revealed = token_probs[state[0] * 4 + state[1], position].tolist()
                options.append([(k, reveal * revealed[k]) for k in range(3)] + [(self.MASK, 1 - reveal)])
            for (first, p), (second, q) in itertools.product(*options):
                after[first * 4 + second] += mass * p * q
        return after

    def sample_probs(self, tables, process):
        """Probabilities of the clean sequences after one move with each table of logits, [9]."""
        state_probs = self.all_masked()
        alphas = [float(alpha_at(process.schedule, t)) for t in time_grid(len(tables))]
        for table, (alpha_t, alpha_s) in zip(tables, itertools.pairwise(alphas), strict=True):
            probs = table[..., :3].double().softmax(-1)
            state_probs = self.after_move(state_probs, probs, (alpha_s - alpha_t) / (1 - alpha_t))
        return self.of_clean(state_probs)

    def exact_table(self):
        """Logits of the exact posterior of ``data_probs``."""
        table = torch.full((16, 2, 4), -torch.inf, dtype=torch.float64)
        for number, z in enumerate(self.STATES):
            consistent = ((z == self.MASK) | (z == self.CLEAN)).all(1)
            for position, k in itertools.product(range(2), range(3)):
                matching = consistent & (self.CLEAN[:, position] == k)
                table[number, position, k] = self.data_probs[matching].sum().log()
        return table.float()


class TabularDenoiser:
    """A denoiser with a table of logits; records how many rows its trunk and its head read in each pass."""

    vocab_size, mask_id, length, is_time_conditioned = 4, EnumeratedModel.MASK, 2, False

    def __init__(self, table):
        self.table = table
        self.trunk_rows, self.head_rows = [], []

    def features(self, inputs, sigma=None, attention_mask=None):
        self.trunk_rows.append(len(inputs))
        return self.table[EnumeratedModel.state_index(inputs)]

    def head(self, features):
        self.head_rows.append(features[..., 0].numel())
        return features


class LinearDiscriminator(Discriminator):
    """A discriminator whose logit at a position is the score of its token, or the mean score of a distribution."""

    def __init__(self, scores, **options):
        sizes = {"hidden_size": 4, "num_blocks": 1, "num_heads": 1, "cond_dim": 4}
        super().__init__(DiscriminatorConfig(vocab_size=4, mask_id=3, length=2, **sizes, **options))
        self.scores = torch.tensor(scores)
        self.inputs = []

    def embed(self, inputs):
        """Distributions unchanged; tokens as one-hot vectors."""
        return inputs if inputs.is_floating_point() else torch.nn.functional.one_hot(inputs, 4).float()

    def from_embeddings(self, embedded, sigma=None, attention_mask=None):
        self.inputs.append((embedded.detach(), sigma))
        return embedded @ self.scores


@pytest.fixture(scope="session")
def enumerated():
    return EnumeratedModel()


@pytest.fixture(scope="session")
def tabular():
    return TabularDenoiser


@pytest.fixture(scope="session")
def linear_discriminator():
    return LinearDiscriminator


@pytest.fixture(scope="session")
def canvas_of():
    """Function that returns the canvas of a state: its masks are free, its tokens given."""

    def canvas(z, mask_id=EnumeratedModel.MASK):
        return Canvas.given(z, z == mask_id)

    return canvas


@pytest.fixture(scope="session")
def draw():
    """Function that runs a sampler, from state ``z`` if given.

    Returns its moves, and for each row the index of the final sequence in ``EnumeratedModel.CLEAN``.
    """

    def moves_and_indices(sampler, *, num, nfe, seed=0, z=None):
        canvas = Canvas.blank(num, 2) if z is None else Canvas.given(z, z == EnumeratedModel.MASK)
        steps = list(sampler(canvas, time_grid(nfe), SequenceNoise(seed, range(num))))
        final = steps[-1].z
        assert (final != EnumeratedModel.MASK).all()
        return steps, final[:, 0] * 3 + final[:, 1]

    return moves_and_indices
