"""Peers: other teachers, trained on the same tokens, for Table 7 and Figure 1.

All have the shape, the batches and the number of steps of one recipe; they differ in process, parametrisation and loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from didi.apps.reproduce.cells import Cell, LikelihoodCell, Run
from didi.apps.reproduce.study import Study
from didi.errors import UsageError
from didi.evaluation.zero_shot import LikelihoodRow
from didi.markdown import markdown_table
from didi.methods.elbo import PretrainConfig
from didi.models.bundle import Role, manifest_of
from didi.recipes import PRETRAIN

RECIPE_SUFFIXES = {
    "MDLM": "",
    "SEDD absorb": "-sedd-absorb",
    "SEDD uniform": "-sedd-uniform",
    "UDLM": "-udlm",
    "Duo": "-duo",
    "AR": "-ar",
}
"""Suffixes that make the recipe's name from that of the masked teacher, by names in tables and figures."""

ORDER = (
    ("AR", "MDLM", "the paper, Table 7: on average"),
    ("MDLM", "SEDD absorb", "the paper, Table 7: on all seven corpora"),
    ("SEDD absorb", "Duo", "Sahoo et al. 2025, validation on OpenWebText and LM1B"),
    ("Duo", "UDLM", "Sahoo et al. 2025, validation on OpenWebText and LM1B"),
    ("UDLM", "SEDD uniform", "Schiff et al. 2025, validation on LM1B"),
)
"""(Teacher with the lower perplexity in a publication, teacher with the higher perplexity, the publication)."""

TINY_PEER_STEPS = 1200
"""Training steps of each peer at scale ``tiny``, an eighth of the recipe: about an hour on two cores for all six."""

Peers = Mapping[str, "Run | str"]


def trained_peers(recipe: str, steps: int) -> dict[str, Run | str]:
    """A pre-training run of each kind.

    Args:
        recipe: recipe of the masked teacher.
        steps: number of steps of each run; schedules and Duo's curriculum are fitted to it.
    """
    runs: dict[str, Run | str] = {}
    for name, suffix in RECIPE_SUFFIXES.items():
        config = PRETRAIN.get(f"{recipe}{suffix}")
        if config is None:  # markov and exact have no recipe for an autoregressive network
            config = replace(PRETRAIN[recipe], recipe=f"{recipe}{suffix}", model="autoregressive")
        limited = config.limited(steps)
        assert isinstance(limited, PretrainConfig)
        runs[name] = Run(limited)
    return runs


def named_peers(bundles: Sequence[str]) -> dict[str, Run | str]:
    """Bundles by the shortest suffixes of their paths that differ; for ``RUN/bundle``, of the path ``RUN``.

    Raises:
        UsageError: a bundle is given twice.
    """
    if len({*bundles}) < len(bundles):
        raise UsageError(f"--peers names each bundle once; got {', '.join(bundles)}")
    paths = [Path(bundle).parent if Path(bundle).name == "bundle" else Path(bundle) for bundle in bundles]
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len({*names}) == len(names):
            return dict(zip(names, bundles, strict=True))
    return {bundle: bundle for bundle in bundles}


def role_of(peer: "Run | str") -> Role:
    """Role of the compared network of a peer."""
    if isinstance(peer, Run):
        is_autoregressive = isinstance(peer.config, PretrainConfig) and peer.config.model == "autoregressive"
        return "autoregressive" if is_autoregressive else "teacher"
    networks = manifest_of(peer).networks
    return next(role for role in ("teacher", "student", "autoregressive") if role in networks)


def likelihood_cells(peers: Peers, corpora: Sequence[str]) -> list[LikelihoodCell]:
    """Likelihood cells of every peer on every corpus."""
    return [LikelihoodCell(peer, role_of(peer), corpus) for peer in peers.values() for corpus in corpora]


def sample_cells(peers: Peers, nfes: Sequence[int]) -> dict[str, list[Cell]]:
    """Cells of every peer at every number of moves; an autoregressive peer has a single cell."""
    return {
        name: [Cell(peer, role, nfe=nfe) for nfe in ((1,) if role == "autoregressive" else nfes)]
        for name, peer in peers.items()
        for role in [role_of(peer)]
    }


def peers_table(peers: Peers, corpora: Sequence[str], study: Study) -> list[str]:
    """A table of perplexities with a row for each peer; if all kinds take part, also a check of the published order."""
    likelihoods = {
        name: {cell.corpus: study.likelihood(cell) for cell in likelihood_cells({name: peer}, corpora)}
        for name, peer in peers.items()
    }
    body = [[name, *(_perplexity(row) for row in by_corpus.values())] for name, by_corpus in likelihoods.items()]
    lines = [*caption(peers), *markdown_table(["perplexity [95% CI]", *corpora], body)]
    return [*lines, "", *_order(likelihoods, corpora)] if set(RECIPE_SUFFIXES) <= set(peers) else lines


def caption(peers: Peers) -> list[str]:
    """A sentence about the training of peers that the study trains; nothing without such peers."""
    runs = [peer.config for peer in peers.values() if isinstance(peer, Run)]
    if not runs:
        return []
    loop, length = runs[0].loop, runs[0].data.length
    tokens = loop.steps * loop.batch_size * loop.accumulation * length
    unweighted = [name for name, peer in peers.items() if isinstance(peer, Run) and _is_unweighted(peer)]
    weights = f"; the losses of {' and '.join(unweighted)} have no time weight of the NELBO" if unweighted else ""
    return [
        f"Each trained for {loop.steps:,} steps of {loop.batch_size * loop.accumulation} sequences of {length}, "
        f"{tokens / 1e6:.1f} million tokens, seed {runs[0].seed}{weights}. ≤: an upper bound.\n"
    ]


def _is_unweighted(run: Run) -> bool:
    config = run.config
    return isinstance(config, PretrainConfig) and config.model != "autoregressive" and config.weight == "constant"


def _perplexity(row: LikelihoodRow) -> str:
    low, high = row.likelihood.perplexity_ci
    return f"{'' if row.likelihood.is_exact else '≤ '}{row.likelihood.perplexity:.1f} [{low:.1f}, {high:.1f}]"


def _order(likelihoods: Mapping[str, Mapping[str, LikelihoodRow]], corpora: Sequence[str]) -> list[str]:
    """A table of the number of corpora on which the published order of each pair holds, also beyond the intervals."""
    body = []
    for better, worse, source in ORDER:
        pairs = [[likelihoods[name][corpus].likelihood for name in (better, worse)] for corpus in corpora]
        num_lower = sum(first.perplexity < second.perplexity for first, second in pairs)
        num_apart = sum(first.perplexity_ci[1] < second.perplexity_ci[0] for first, second in pairs)
        num_opposite = sum(second.perplexity_ci[1] < first.perplexity_ci[0] for first, second in pairs)
        counts = (f"{number} of {len(pairs)}" for number in (num_lower, num_apart, num_opposite))
        body.append([f"{better} below {worse}", *counts, source])
    header = ["published order", "same order", "same and disjoint", "opposite and disjoint", "published in"]
    return [
        *markdown_table(header, body),
        "",
        "Numbers of corpora; disjoint: the two 95% intervals do not overlap. An upper bound may be far above the "
        "perplexity.",
    ]
