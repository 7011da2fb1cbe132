"""Exact divergences for the rows of an evaluation, for samplers and chains whose states can be enumerated."""

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
"""From a time to the predictions of a network."""
KEPT_TABLES = 16  # cached tables of a time-conditioned network; 17 MB each at 4 symbols and 7 positions


class ExactRows:
    """Divergences of the samplers of a bundle from a chain; predictions of the networks are cached between rows.

    Args:
        bundle: the model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tables: dict[TokenDistribution, dict[tuple[DiT, int | None], Predictions]] = {}

    def __call__(self, chain: MarkovChain, options: SamplingOptions, num_moves: int) -> ExactDivergences | None:
        """Divergences of a sampler from the chain, or None where ``distribution`` returns None.

        Args:
            chain: the distribution of the data.
            options: sampler, role and settings.
            num_moves: number of moves; not read if ``options`` have explicit times.
        """
        estimates = self._distributions(chain.num_symbols, options, num_moves)
        if estimates is None:
            return None
        log_q = chain.log_likelihood(States(chain.num_symbols, self._length(options)).clean)
        divergences = exact_divergences(estimates.mean(0), log_q)
        if len(estimates) == 1:
            return divergences
        # The bias is proportional to 1 / draws: an estimate from half of the draws has twice the bias of their
        # mean, so that the difference between the two is the bias of the mean.
        bias = sum(exact_divergences(p, log_q).kl for p in estimates) / len(estimates) - divergences.kl
        drawn = "latent codes" if num_codes(self._bundle.network(options.role)) else "embedding noise"
        return replace(divergences, note=f"{drawn} averaged over draws: KL is high by about {bias:.1g} nats")

    def distribution(self, num_symbols: int, options: SamplingOptions, num_moves: int) -> Float[Tensor, " c"] | None:
        """Probability of every clean sequence, float64, or None where the distribution cannot be enumerated.

        Up to ``MAX_STATES`` states are enumerated, at any time grid, temperature and top-p, for these samplers: in
        masked diffusion, ancestral sampling, tau-leaping, one-step sampling and guided sampling that draws among its
        candidates; in uniform-state diffusion, its samplers and guided sampling that draws among its candidates; the
        samplers of score networks. Embedding noise (``one_step``) and latent codes (``latent``) are averaged over
        draws; guided sampling with latent codes is not supported.

        Args:
            num_symbols: number of symbols of the data, without the mask.
            options: sampler, role and settings.
            num_moves: number of moves; not read if ``options`` have explicit times.
        """
        estimates = self._distributions(num_symbols, options, num_moves)
        return None if estimates is None else estimates.mean(0)

    def _distributions(self, num_symbols: int, options: SamplingOptions, num_moves: int) -> Float[Tensor, "h c"] | None:
        """The exact distribution as one row, or independent estimates of it from equal numbers of draws."""
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
            estimates = one_step_distributions(sampler, num_symbols, network.length)
            sampler.token_distribution.draw_check.finish()
            return estimates
        if num_codes(network):
            if not isinstance(sampler, Ancestral):
                return None
            estimates = latent_distributions(sampler, states, times, _alphas(sampler, times))
            sampler.token_distribution.draw_check.finish()
            return estimates
        predictions = self._predictions(network, len(times) - 1, states, options.token_distribution)
        if isinstance(sampler, Ancestral):
            return sampler_distribution(states, _alphas(sampler, times), lambda move: predictions(times[move]))[None]
        if isinstance(sampler, Guided) and sampler.guidance.select == "sample":
            return guided_distribution(states, sampler, times, predictions)[None]
        return None

    def _length(self, options: SamplingOptions) -> int:
        return self._bundle.network(options.role).length

    def _predictions(
        self, network: DiT, num_moves: int, states: States, token_distribution: TokenDistribution
    ) -> Predictions:
        """A cached function from a time to the network's predictions for all states.

        A network that is conditioned on the number of moves has separate tables for each number.
        """
        tables, at_budget = self._tables.setdefault(token_distribution, {}), network.at_budget(num_moves)
        key = network, at_budget.budget  # not ``at_budget``, which may be a new copy at each call
        if key not in tables:

            @lru_cache(maxsize=KEPT_TABLES)
            def at(t: float) -> Table:
                time = torch.tensor(t, dtype=torch.float64)
                is_first = at_budget.is_time_conditioned and t == 1  # only the fully masked state occurs at t = 1
                process = cast(Absorbing, self._bundle.process)
                table = network_predictions(at_budget, process, states, time, token_distribution, is_first=is_first)
                token_distribution.draw_check.finish()
                return table

            tables[key] = lambda t: at(float(t) if at_budget.is_time_conditioned else 1.0)
        return tables[key]


def _alphas(sampler: Ancestral, times: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Signal rates of the sampler at the times of its path."""
    return (path_alphas if sampler.leap == "exact" else tau_leaping_alphas)(sampler.process.schedule, times)
