"""Divergences of a sample set from a reference distribution, as fields of ``row.EvaluationRow``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Int
from torch import Tensor

from didi.data.markov import CHAINS
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
    """The reference distribution of a joint divergence.

    Attributes:
        name: Name of the chain, or of the bundle of the network.
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
    """The reference distribution of the joint divergence of a bundle's samples.

    Args:
        bundle: The model whose samples are measured.
        judges: Judges of the evaluation.
        joint: False for no joint divergence; a bundle whose autoregressive network, over the same tokens, is the
            reference; or True for the first that exists of the chain of an exact judge, the chain of the corpus of
            ``bundle``, and the autoregressive network of ``bundle``.
        num_samples: Number of samples that will be drawn.

    Returns:
        The reference; None if ``joint`` is False.

    Raises:
        UsageError: There is no such network, its tokenizer differs or its context is too short, or ``num_samples`` is
            too small.
    """
    if joint is False:
        return None
    exact = [judge for judge in judges if isinstance(judge, ExactJudge)]
    reference = _find(bundle, exact, None if joint is True else joint)
    min_samples = default_settings(reference.distribution).min_samples
    if num_samples < min_samples:
        raise UsageError(f"a joint divergence takes {min_samples} samples or more; got num_samples {num_samples}")
    return reference


def _find(bundle: Bundle, exact: Sequence[ExactJudge], named: Bundle | None) -> JointReference:
    if named is None and exact:
        return JointReference(exact[0].name, exact[0].chain)
    corpus = str(bundle.provenance.get("corpus"))
    if named is None and corpus in CHAINS:
        return JointReference(corpus, CHAINS[corpus]())
    source = named or bundle
    if source.autoregressive is None:
        raise UsageError(
            f"a joint divergence is measured from an autoregressive network over the same tokens; bundle {source.name} "
            "has none: train one with didi pretrain (tiny-news-ar, prose-ar) and give its bundle as joint "
            "(--joint-reference)"
        )
    if source is not bundle and _symbols(source) != _symbols(bundle):
        raise UsageError(
            f"a joint divergence needs equal tokenizers; those of bundles {source.name} and {bundle.name} differ: "
            "train its network on the same corpus with data.vocab_size of the same value"
        )
    if source.autoregressive.length < bundle.network().length:
        raise UsageError(
            f"the reference of a joint divergence reads whole sequences; that of bundle {source.name} has a context of "
            f"{source.autoregressive.length} tokens, sequences of {bundle.name} have {bundle.network().length}: train "
            "its network with a larger data.length"
        )
    device = next(bundle.network().parameters()).device
    return JointReference(source.name, source.autoregressive.to(device))


def joint_of_sampler(
    bundle: Bundle, reference: Bundle, nfe: int, num_samples: int, seed: int, options: SamplingOptions
) -> JointEstimate:
    """Sample a network and estimate the joint divergence of its samples.

    Args:
        bundle: The model that is sampled.
        reference: The bundle whose autoregressive network is the reference.
        nfe: Number of moves.
        num_samples: Number of samples.
        seed: Random seed of the samples.
        options: Sampling options.

    Raises:
        UsageError: See ``find_reference``.
    """
    joint_reference = find_reference(bundle, (), reference, num_samples)
    assert joint_reference is not None
    samples = generate(bundle, num_samples=num_samples, nfe=nfe, seed=seed, options=options)
    return joint_reference.estimate(samples.tokens)


def divergences(tokens: Int[Tensor, "b l"], judge: Judge) -> DivergenceFields:
    """Divergences of adjacent pairs and triples from the chain of an exact judge; no fields for another judge.

    Pairs need sequences of 2 tokens or more, triples of 3 or more.

    Args:
        tokens: The samples.
        judge: The judge of the row.
    """
    fields: DivergenceFields = {}
    if not isinstance(judge, ExactJudge):
        return fields
    length = tokens.shape[1]
    if length >= 2:
        pairs = ngram_divergence(tokens, judge.chain, 2)
        fields |= {"pair_kl": pairs.kl, "pair_kl_ci": pairs.kl_ci}
        fields |= {"pair_reverse_kl": pairs.reverse_kl, "pair_reverse_kl_ci": pairs.reverse_kl_ci}
    if length >= 3:
        triples = ngram_divergence(tokens, judge.chain, 3)
        fields |= {"triple_kl": triples.kl, "triple_kl_ci": triples.kl_ci}
        fields |= {"triple_reverse_kl": triples.reverse_kl, "triple_reverse_kl_ci": triples.reverse_kl_ci}
    return fields


def _symbols(bundle: Bundle) -> object:
    return None if bundle.tokenizer is None else bundle.tokenizer.get_vocab()
