"""Divergences of a sample set from its reference, by the fields of ``row.EvaluationRow`` that they fill."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Int
from torch import Tensor

from didi.data.markov import WORLDS
from didi.errors import UsageError
from didi.evaluation.frontier import Interval
from didi.evaluation.joint import JointEstimate, Reference, default_settings, joint_divergence
from didi.evaluation.ngrams import ngram_divergence
from didi.evaluation.perplexity import ExactJudge, Judge
from didi.models.bundle import Bundle
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions


class DivergenceFields(TypedDict, total=False):
    """Fields of ``row.EvaluationRow`` of the same names."""

    pair_kl: float
    pair_kl_ci: Interval
    pair_reverse_kl: float
    pair_reverse_kl_ci: Interval
    triple_kl: float
    triple_kl_ci: Interval
    triple_reverse_kl: float
    triple_reverse_kl_ci: Interval
    joint_kl: float
    joint_kl_ci: Interval
    joint_reference: str


@dataclass(frozen=True)
class JointReference:
    """What a joint divergence is measured from.

    Attributes:
        name: Name of the chain or of the network's bundle.
        distribution: A Markov chain, or an autoregressive network.
    """

    name: str
    distribution: Reference

    def estimate(self, tokens: Int[Tensor, "b l"]) -> JointEstimate:
        """See ``joint.joint_divergence``."""
        return joint_divergence(tokens, self.distribution)


def find_reference(
    bundle: Bundle, judges: Sequence[Judge], joint: bool | Bundle, num_samples: int
) -> JointReference | None:
    """The reference of the joint divergence of a bundle's samples; None if it is not wanted.

    Args:
        bundle: Whose samples are measured.
        judges: An exact judge's chain is the reference where ``joint`` is True.
        joint: Whether it is wanted, or the bundle of an autoregressive network over the same tokens to measure from;
            where it is True and no judge is exact, the chain of the world of ``bundle``, or else ``bundle`` itself.
        num_samples: Number of samples to come.

    Raises:
        UsageError: There is no such network, its tokens are others, or the samples are too few.
    """
    if joint is False:
        return None
    found = _find(bundle, [one for one in judges if isinstance(one, ExactJudge)], None if joint is True else joint)
    least = default_settings(found.distribution).least_samples
    if num_samples < least:
        raise UsageError(f"a joint divergence takes {least} samples or more; got num_samples {num_samples}")
    return found


def _find(bundle: Bundle, exact: Sequence[ExactJudge], given: Bundle | None) -> JointReference:
    if given is None and exact:
        return JointReference(exact[0].name, exact[0].chain)
    world = str(bundle.provenance.get("corpus"))
    if given is None and world in WORLDS:
        return JointReference(world, WORLDS[world]())
    source = given or bundle
    if source.autoregressive is None:
        raise UsageError(
            f"a joint divergence is measured from an autoregressive network over the same tokens; bundle {source.name} "
            "has none: train one with didi pretrain (tiny-news-ar, prose-ar) and name its bundle with --joint-reference"
        )
    if source is not bundle and _symbols(source) != _symbols(bundle):
        raise UsageError(
            f"a joint divergence is measured over one tokenizer; bundle {source.name} has another than {bundle.name}: "
            "train its network on the same corpus with data.vocab_size of the same value"
        )
    if source.autoregressive.length < bundle.network().length:
        raise UsageError(
            f"the reference of a joint divergence reads whole sequences; bundle {source.name} reads "
            f"{source.autoregressive.length} tokens, {bundle.name} writes {bundle.network().length}"
        )
    device = next(bundle.network().parameters()).device
    return JointReference(source.name, source.autoregressive.to(device))


def joint_of_sampler(
    bundle: Bundle, reference: Bundle, nfe: int, num_samples: int, seed: int, options: SamplingOptions
) -> JointEstimate:
    """Sample a network and estimate the joint divergence of its samples.

    Args:
        bundle: Whose network is sampled.
        reference: Whose autoregressive network it is measured from.
        nfe: Number of moves.
        num_samples: Number of samples.
        seed: Of the samples.
        options: How they are drawn.

    Raises:
        UsageError: See ``find_reference``.
    """
    found = find_reference(bundle, (), reference, num_samples)
    assert found is not None
    return found.estimate(generate(bundle, num_samples=num_samples, nfe=nfe, seed=seed, options=options).tokens)


def divergences(tokens: Int[Tensor, "b l"], judge: Judge) -> DivergenceFields:
    """Divergences of pairs and triples under an exact judge, where sequences are as long; none under another.

    Args:
        tokens: The samples.
        judge: The judge of the row.
    """
    found: DivergenceFields = {}
    if not isinstance(judge, ExactJudge):
        return found
    length = tokens.shape[1]
    if length >= 2:
        pairs = ngram_divergence(tokens, judge.chain, 2)
        found |= {"pair_kl": pairs.kl, "pair_kl_ci": pairs.kl_ci}
        found |= {"pair_reverse_kl": pairs.reverse_kl, "pair_reverse_kl_ci": pairs.reverse_kl_ci}
    if length >= 3:
        triples = ngram_divergence(tokens, judge.chain, 3)
        found |= {"triple_kl": triples.kl, "triple_kl_ci": triples.kl_ci}
        found |= {"triple_reverse_kl": triples.reverse_kl, "triple_reverse_kl_ci": triples.reverse_kl_ci}
    return found


def _symbols(bundle: Bundle) -> object:
    return None if bundle.tokenizer is None else bundle.tokenizer.get_vocab()
