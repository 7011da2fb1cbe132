"""Other teachers on the same tokens: Table 7 and the curves of Figures 1 and 3.

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

KINDS = {
    "MDLM": "",
    "SEDD absorb": "-sedd-absorb",
    "SEDD uniform": "-sedd-uniform",
    "UDLM": "-udlm",
    "Duo": "-duo",
    "AR": "-ar",
}
"""Names in tables and figures, and what is added to the name of the masked teacher's recipe."""

ORDER = (
    ("AR", "MDLM", "the paper, Table 7: on average"),
    ("MDLM", "SEDD absorb", "the paper, Table 7: on all seven corpora"),
    ("SEDD absorb", "Duo", "Sahoo et al. 2025, validation on OpenWebText and LM1B"),
    ("Duo", "UDLM", "Sahoo et al. 2025, validation on OpenWebText and LM1B"),
    ("UDLM", "SEDD uniform", "Schiff et al. 2025, validation on LM1B"),
)
"""Pairs of teachers: the one with the lower perplexity in a publication, the other one, and the publication."""

TINY_PEER_STEPS = 1200
"""Steps of each at scale ``tiny``, an eighth of the recipe: six networks in about an hour of two cores."""

Peers = Mapping[str, "Run | str"]


def trained_peers(recipe: str, steps: int) -> dict[str, Run | str]:
    """A run of each kind, of so many steps.

    Args:
        recipe: of the masked teacher.
        steps: of each; schedules and Duo's curriculum end with them.
    """
    found: dict[str, Run | str] = {}
    for name, suffix in KINDS.items():
        config = PRETRAIN.get(f"{recipe}{suffix}")
        if config is None:  # the worlds have no recipe of a twin
            config = replace(PRETRAIN[recipe], recipe=f"{recipe}{suffix}", model="autoregressive")
        limited = config.limited(steps)
        assert isinstance(limited, PretrainConfig)
        found[name] = Run(limited)
    return found


def given_peers(bundles: Sequence[str]) -> dict[str, Run | str]:
    """Bundles that are there, by the shortest ends of their paths that differ; ``RUN/bundle`` by that of its run.

    Raises:
        UsageError: a bundle is given twice.
    """
    if len({*bundles}) < len(bundles):
        raise UsageError(f"--peers names each bundle once; got {', '.join(bundles)}")
    paths = [Path(one).parent if Path(one).name == "bundle" else Path(one) for one in bundles]
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len({*names}) == len(names):
            return dict(zip(names, bundles, strict=True))
    return {one: one for one in bundles}


def role_of(peer: "Run | str") -> Role:
    """The network of a peer that is compared."""
    if isinstance(peer, Run):
        is_twin = isinstance(peer.config, PretrainConfig) and peer.config.model == "autoregressive"
        return "autoregressive" if is_twin else "teacher"
    held = manifest_of(peer).networks
    return next(role for role in ("teacher", "student", "autoregressive") if role in held)


def likelihood_cells(peers: Peers, corpora: Sequence[str]) -> list[LikelihoodCell]:
    """Every peer on every corpus."""
    return [LikelihoodCell(peer, role_of(peer), corpus) for peer in peers.values() for corpus in corpora]


def sample_cells(peers: Peers, nfes: Sequence[int]) -> dict[str, list[Cell]]:
    """Every peer at every number of moves; an autoregressive one has a single set."""
    return {
        name: [Cell(peer, role, nfe=nfe) for nfe in ((1,) if role == "autoregressive" else nfes)]
        for name, peer in peers.items()
        for role in [role_of(peer)]
    }


def peers_table(peers: Peers, corpora: Sequence[str], study: Study) -> list[str]:
    """Perplexities with intervals, a line for each peer; then which of the published order is seen."""
    found = {
        name: {cell.corpus: study.likelihood(cell) for cell in likelihood_cells({name: peer}, corpora)}
        for name, peer in peers.items()
    }
    body = [[name, *(_perplexity(row) for row in by_corpus.values())] for name, by_corpus in found.items()]
    lines = [*about(peers), *markdown_table(["perplexity [95% CI]", *corpora], body)]
    return [*lines, "", *_order(found, corpora)] if set(KINDS) <= set(peers) else lines


def about(peers: Peers) -> list[str]:
    """How peers that are trained here were trained."""
    runs = [one.config for one in peers.values() if isinstance(one, Run)]
    if not runs:
        return []
    loop, length = runs[0].loop, runs[0].data.length
    tokens = loop.steps * loop.batch_size * loop.accumulation * length
    unweighted = [name for name, one in peers.items() if isinstance(one, Run) and _is_unweighted(one)]
    weights = f"; loss of {', '.join(unweighted)} without the weight of the bound over time" if unweighted else ""
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


def _order(found: Mapping[str, Mapping[str, LikelihoodRow]], corpora: Sequence[str]) -> list[str]:
    """On how many corpora the published order of each pair is seen, and where beyond the intervals of both."""
    body = []
    for better, worse, source in ORDER:
        pairs = [[found[name][corpus].likelihood for name in (better, worse)] for corpus in corpora]
        num_lower = sum(one.perplexity < two.perplexity for one, two in pairs)
        num_apart = sum(one.perplexity_ci[1] < two.perplexity_ci[0] for one, two in pairs)
        num_opposite = sum(two.perplexity_ci[1] < one.perplexity_ci[0] for one, two in pairs)
        counts = (f"{number} of {len(pairs)}" for number in (num_lower, num_apart, num_opposite))
        body.append([f"{better} below {worse}", *counts, source])
    header = ["published order", "seen", "beyond both intervals", "opposite beyond both", "published in"]
    return [
        *markdown_table(header, body),
        "",
        "Counts are of corpora; a bound may be above a perplexity by any amount.",
    ]
