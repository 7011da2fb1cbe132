"""Exact divergences for the rows of an evaluation, where the sampler and the world of a bundle allow them."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing
from didi.evaluation.exact.divergences import ExactDivergences, exact_divergences
from didi.evaluation.exact.guided import guided_distribution
from didi.evaluation.exact.latent import latent_distributions
from didi.evaluation.exact.one_step import one_step_distributions
from didi.evaluation.exact.product import PositionwiseSampler, positionwise_distribution
from didi.evaluation.exact.sampler import Table, network_predictions, sampler_distribution
from didi.evaluation.exact.states import MAX_STATES, States
from didi.evaluation.exact.uniform_guided import uniform_guided_distribution
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.latent import num_codes
from didi.sampling.ancestral import Ancestral, tau_leaping_alphas
from didi.sampling.base import path_alphas
from didi.sampling.guided import Guided
from didi.sampling.one_step import OneStep
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import make_sampler
from didi.sampling.token_distribution import TokenDistribution
from didi.sampling.uniform_guided import UniformGuided

Predictions = Callable[[Float[Tensor, ""]], Table]
KEPT_TABLES = 16  # of a time-conditioned network; 17 MB each at 4 symbols and 7 positions


class ExactRows:
    """Divergences of the samplers of a bundle from a chain; network passes are kept from one row to the next.

    Args:
        bundle: its networks are sampled.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[TokenDistribution, dict[tuple[DiT, int | None], Predictions]] = {}

    def __call__(self, chain: MarkovChain, options: SamplingOptions, num_moves: int) -> ExactDivergences | None:
        """ExactDivergences of a sampler from the chain, or None where ``distribution`` has none.

        Args:
            chain: gives the distribution of the data.
            options: sampler, role and settings.
            num_moves: of the time grid, unless ``options`` give the times.
        """
        parts = self._distributions(chain.num_symbols, options, num_moves)
        if parts is None:
            return None
        log_q = chain.log_likelihood(States(chain.num_symbols, self._length(options)).clean)
        found = exact_divergences(parts.mean(0), log_q)
        if len(parts) == 1:
            return found
        bias = sum(exact_divergences(one, log_q).kl for one in parts) / len(parts) - found.kl
        drawn = "latent codes" if num_codes(self._bundle.network(options.role)) else "embedding noise"
        return replace(found, note=f"{drawn} averaged over draws: KL is high by about {bias:.1g} nats")

    def distribution(self, num_symbols: int, options: SamplingOptions, num_moves: int) -> Float[Tensor, " c"] | None:
        """Probability of every clean sequence, or None where the sampler has no distribution that can be enumerated.

        It has one for at most ``MAX_STATES`` states, in float64, at any time grid, temperature and top-p. Samplers: for
        masked diffusion the ancestral one, tau-leaping, guided sampling that draws among its candidates and one-step
        sampling; those of uniform-state diffusion, guided sampling that draws among them, and of score networks.
        Embedding noise (``one_step``) and latent codes (``latent``) are averaged over draws; guided sampling with
        latent codes has no distribution here.

        Args:
            num_symbols: symbols of the data, without the mask.
            options: sampler, role and settings.
            num_moves: of the time grid, unless ``options`` give the times.
        """
        parts = self._distributions(num_symbols, options, num_moves)
        return None if parts is None else parts.mean(0)

    def _distributions(self, num_symbols: int, options: SamplingOptions, num_moves: int) -> Float[Tensor, "h c"] | None:
        """Independent estimates of the distribution, each from as many draws; a single one that is exact."""
        network = self._bundle.network(options.role)
        is_large = (num_symbols + 1) ** network.length > MAX_STATES
        has_symbols = isinstance(network, DiT) and network.mask_id in (None, num_symbols)
        if not isinstance(network, DiT) or is_large or not has_symbols:
            return None
        times, states = options.move_times(num_moves), States(num_symbols, network.length)
        sampler = make_sampler(self._bundle, options, len(times) - 1)
        if isinstance(sampler, PositionwiseSampler):
            p = positionwise_distribution(sampler, num_symbols, network.length, times)
            sampler.token_distribution.draw_check.finish()
            return p[None]
        if isinstance(sampler, UniformGuided):
            is_drawn = sampler.guidance.select == "sample"
            return uniform_guided_distribution(sampler, num_symbols, network.length, times)[None] if is_drawn else None
        if isinstance(sampler, OneStep):
            parts = one_step_distributions(sampler, num_symbols, network.length)
            sampler.token_distribution.draw_check.finish()
            return parts
        if num_codes(network):
            if not isinstance(sampler, Ancestral):
                return None
            parts = latent_distributions(sampler, states, times, _alphas(sampler, times))
            sampler.token_distribution.draw_check.finish()
            return parts
        predictions = self._predictions(network, len(times) - 1, states, options.token_distribution)
        if isinstance(sampler, Ancestral):
            return sampler_distribution(states, _alphas(sampler, times), lambda move: predictions(times[move]))[None]
        if isinstance(sampler, Guided) and sampler.guidance.select == "sample":
            return guided_distribution(states, sampler, times, predictions)[None]
        return None

    def _length(self, options: SamplingOptions) -> int:
        return self._bundle.network(options.role).length

    def _predictions(
        self, given: DiT, num_moves: int, states: States, token_distribution: TokenDistribution
    ) -> Predictions:
        """What a network predicts at a time; passes over all states are made once for each number that it reads."""
        of_network, network = self._tables.setdefault(token_distribution, {}), given.at_budget(num_moves)
        key = given, network.budget  # ``network`` may be a copy, another one at each call
        if key not in of_network:

            @lru_cache(maxsize=KEPT_TABLES)
            def at(t: float) -> Table:
                time = torch.tensor(t, dtype=torch.float64)
                is_first = network.is_time_conditioned and t == 1  # all is masked then
                process = cast(Absorbing, self._bundle.process)
                table = network_predictions(network, process, states, time, token_distribution, is_first=is_first)
                token_distribution.draw_check.finish()
                return table

            of_network[key] = lambda t: at(float(t) if network.is_time_conditioned else 1.0)
        return of_network[key]


def _alphas(sampler: Ancestral, times: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Signal rates that the sampler follows at the times of its path."""
    return (path_alphas if sampler.leap == "exact" else tau_leaping_alphas)(sampler.process.schedule, times)
