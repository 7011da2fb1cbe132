"""``didi reproduce``: the paper's tables and figures by one command, at five scales."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from didi.apps.reproduce import figures, method_figures, method_tables, published, tables
from didi.apps.reproduce.cells import Run
from didi.apps.reproduce.figures import BASELINE
from didi.apps.reproduce.methods import MethodPlan, method_plan
from didi.apps.reproduce.peers import TINY_PEER_STEPS, named_peers, trained_peers
from didi.apps.reproduce.plan import Plan, heading
from didi.apps.reproduce.proteins import PROTEIN_TARGETS, PROTEINS, ProteinFlags, reproduce_proteins
from didi.apps.reproduce.study import Sampling, Study
from didi.apps.reproduce.targets import Target, chosen_targets, refuse_unread, write_report
from didi.apps.terminal import parse
from didi.arguments import whole_number
from didi.data.markov import MARKOV
from didi.data.zero_shot import HUB, STAND_INS
from didi.errors import UsageError
from didi.methods.didi_settings import DistillConfig
from didi.methods.settings import OptimizerConfig
from didi.models.bundle import manifest_of
from didi.recipes import DISTILL, PRETRAIN
from didi.recipes.ablations import with_objective
from didi.recipes.presets import preset
from didi.sampling.guided import Guidance

Scale = Literal["markov", "exact", "tiny", "paper", "proteins"]

NUM_SEEDS = 2


@dataclass(frozen=True)
class ReproduceCommand:
    """Tables and figures of the paper by one command."""

    scale: Scale
    """markov: a Markov chain with an exact judge. exact: a smaller chain with exact divergences. tiny: English news,
    the recipes tiny-news. paper: 169M parameters, OpenWebText; needs a GPU. proteins: figures 5 to 7, of existing
    bundles."""
    out: Path
    """Folder for runs, cells and report; with the folder of an earlier study, that study is resumed."""
    seeds: int | None = None
    """Number of training seeds of each row of a table; 2 by default."""
    workers: int = 2
    """Number of worker processes, of one thread each."""
    teacher: str | None = None
    """Bundle of the teacher; required at the scales paper and proteins, the bundled teacher by default at others."""
    baseline: str | None = None
    """Bundle with an autoregressive baseline for the figures and table7, for example from didi convert gpt2. By default
    the autoregressive network of the teacher's bundle, if it has one; at markov scale a baseline is trained."""
    peers: tuple[str, ...] = ()
    """Bundles of other teachers for figure1 and table7, such as converted checkpoints, or none. By default MDLM, SEDD,
    UDLM, Duo and an autoregressive network of equal size are trained at the scales markov and tiny (an hour on 2 cores
    at tiny)."""
    larger: str | None = None
    """Bundle of a larger teacher for figure4; trained at markov scale."""
    methods: tuple[str, ...] = ()
    """figure1, figure3 and table1 compare these distillation methods, each with its full recipe and the teacher of that
    recipe, at the scales exact, markov and tiny; all stands for every method that has a recipe."""
    proteins: Annotated[ProteinFlags, tyro.conf.arg(name="")] = field(default_factory=ProteinFlags)

    @property
    def num_seeds(self) -> int:
        """Number of training seeds of each row of a table."""
        return NUM_SEEDS if self.seeds is None else self.seeds


def _short(recipe: str, *, warmup_steps: int, steps: int, batch_size: int, learning_rate: float) -> DistillConfig:
    """A recipe with the objective of two moves, which the ablations change, shortened since tables need many runs."""
    base = preset(DISTILL[recipe], "two-moves")
    loop = replace(
        base.loop, steps=steps, batch_size=batch_size, validate_every=steps, checkpoint_every=100, ema_decay=0.99
    )
    # The discriminator sees one of the 3 completions of a state, which makes its steps three times as fast.
    discriminator = replace(base.discriminator, warmup_steps=warmup_steps, completions=1)
    student = OptimizerConfig(learning_rate=learning_rate, weight_decay=0.0)
    of_discriminator = OptimizerConfig(learning_rate=1e-3)
    return replace(
        base,
        loop=loop,
        discriminator=discriminator,
        student_optimizer=student,
        discriminator_optimizer=of_discriminator,
    )


def _short_markov() -> DistillConfig:
    """A short run of ``markov``: few states in a batch make noisy gradients, hence the low rate and 4 completions."""
    rate = 1.5e-4  # docs/lab-notes.md, "Short runs on markov"
    short = _short("markov", warmup_steps=120, steps=260, batch_size=32, learning_rate=rate)
    return with_objective(short, completions=4)


def _exact_plan(command: ReproduceCommand, seeds: tuple[int, ...]) -> Plan:
    if command.baseline or command.larger or command.peers:
        raise UsageError(
            "--baseline, --larger and --peers are for figures and Table 7, which --scale exact does not have: leave "
            "them out"
        )
    return Plan(
        scale="exact",
        teacher=command.teacher or "exact",
        recipe=with_objective(
            _short("exact", warmup_steps=100, steps=300, batch_size=32, learning_rate=3e-4), completions=4
        ),
        nfes=(2, 4, 8),
        more_teacher_nfes=(),
        seeds=seeds,
        corpora=(),
    )


def _peers(command: ReproduceCommand, recipe: str | None = None, steps: int = 0) -> dict[str, Run | str]:
    """The peers: the bundles of ``--peers``, no peers for ``--peers none``, by default a run of each kind.

    Raises:
        UsageError: a bundle is given twice, or was not trained on the scale's corpus.
    """
    if command.peers == ("none",):
        return {}
    if not command.peers:
        return {} if recipe is None else trained_peers(recipe, steps)
    peers = named_peers(command.peers)
    for bundle in command.peers:
        corpus = manifest_of(bundle).provenance.get("corpus")
        if (command.scale == MARKOV) != (corpus == MARKOV):
            raise UsageError(
                f"--peers of --scale {command.scale} are trained on its corpus; {bundle} is trained on {corpus}: leave "
                "it out"
            )
    return peers


def _plan(command: ReproduceCommand) -> Plan:
    seeds = tuple(range(command.num_seeds))
    if command.scale == "markov":
        small = PRETRAIN["markov"]
        autoregressive = replace(small, recipe="markov-ar", model="autoregressive")
        larger = replace(small, recipe="markov-large", network=replace(small.network, hidden_size=96, num_blocks=4))
        return Plan(
            scale="markov",
            teacher=command.teacher or "markov",
            recipe=_short_markov(),
            nfes=(2, 4, 8, 16),
            more_teacher_nfes=(32,),
            seeds=seeds,
            corpora=("markov",),
            baseline=command.baseline or Run(autoregressive),
            larger=command.larger or Run(larger),
            peers=_peers(command, "markov", small.loop.steps),
        )
    if command.scale == "exact":
        return _exact_plan(command, seeds)
    if command.scale == "tiny":
        return Plan(
            scale="tiny",
            teacher=command.teacher or "tiny-news",
            recipe=with_objective(
                _short("tiny-news", warmup_steps=60, steps=80, batch_size=16, learning_rate=4e-4), divergence_weight=0.3
            ),
            nfes=(4, 8, 16),
            more_teacher_nfes=(32, 64),
            seeds=seeds,
            corpora=("news", *STAND_INS),
            baseline=command.baseline,
            larger=command.larger,
            distilled="tiny-news" if command.teacher in (None, "tiny-news") else None,
            peers=_peers(command, "tiny-news", TINY_PEER_STEPS),
        )
    if command.teacher is None:
        raise UsageError("reproduce --scale paper needs --teacher, the bundle of a 169M masked-diffusion model")
    return Plan(
        scale="paper",
        teacher=command.teacher,
        recipe=DISTILL["owt-169m"],
        nfes=published.NFES,
        more_teacher_nfes=(256, 1024),
        seeds=seeds,
        corpora=tuple(HUB),
        baseline=command.baseline,
        larger=command.larger,
        peers=_peers(command),
    )


# Targets that show the peers, and targets that show the autoregressive baseline.
WITH_PEERS = ("figure1", "table7")
WITH_BASELINE = ("figure1", "figure3", "figure4", "table7")


def _with_baseline(plan: Plan) -> Plan:
    """The plan with a checked baseline, by default the autoregressive network of its teacher's bundle.

    Raises:
        UsageError: the bundle of ``--baseline`` has no such network, or was not trained on the scale's corpus.
    """
    if plan.baseline is None:
        return replace(plan, baseline=plan.teacher) if BASELINE in manifest_of(plan.teacher).networks else plan
    if isinstance(plan.baseline, Run):
        return plan
    manifest = manifest_of(plan.baseline)
    if BASELINE not in manifest.networks:
        held = ", ".join(manifest.networks)
        raise UsageError(
            f"--baseline names a bundle with an {BASELINE} network; {plan.baseline} holds {held}: take one of didi "
            "convert gpt2, or of didi pretrain (tiny-news-ar, prose-ar)"
        )
    if plan.scale == MARKOV and (corpus := manifest.provenance.get("corpus")) != MARKOV:
        raise UsageError(
            f"--baseline of --scale {MARKOV} is trained on its corpus; {plan.baseline} is trained on {corpus}: leave "
            "it out, and a baseline is trained"
        )
    return plan


PAPER_GUIDANCE = Guidance.paper()
SAMPLING = {
    "markov": Sampling(num_samples=512, judge="markov", guidance=PAPER_GUIDANCE),
    "exact": Sampling(num_samples=64, judge="exact", guidance=replace(PAPER_GUIDANCE, select="sample")),
    "tiny": Sampling(num_samples=48, judge="smollm2-135m", batch_size=32, guidance=PAPER_GUIDANCE),
    "paper": Sampling(num_samples=256, judge="gpt2-large", batch_size=8, guidance=PAPER_GUIDANCE),
}


TARGETS: dict[str, Target[Plan]] = {
    "table1": Target("Table 1: cumulative ablation", tables.table_1_cells, tables.table_1),
    "table2": Target("Table 2: leave-one-out ablation", tables.table_2_cells, tables.table_2),
    "table5": Target("Table 5: hyperparameters", lambda _: [], tables.table_5),
    "table7": Target("Table 7: zero-shot perplexity", figures.table_7_cells, figures.table_7),
    "figure1": Target("Figure 1: perplexity against passes", figures.figure_1_cells, figures.figure_1),
    "figure3": Target("Figure 3: perplexity against latency", figures.figure_3_cells, figures.figure_3),
    "figure4": Target("Figure 4: a larger model", figures.figure_4_cells, figures.figure_4),
    "objectives": Target("Objectives", tables.objectives_cells, tables.objectives_table),
    "decisions": Target("Our decisions", tables.decisions_cells, tables.decisions_table),
}
METHOD_TARGETS: dict[str, Target[MethodPlan]] = {
    "figure1": Target("Figure 1: quality against moves", lambda plan: plan.cells, method_figures.figure_1),
    "figure3": Target("Figure 3: quality against latency", lambda plan: plan.cells, method_figures.figure_3),
    "table1": Target("Table 1: methods", lambda plan: plan.cells, method_tables.method_tables),
}
HELP = (
    "Tables and figures of the paper: didi reproduce TARGET... --scale S --out DIR; finished work in DIR is reused. "
    f"TARGET is one of {', '.join(TARGETS)} or all; at --scale {PROTEINS} of {', '.join(PROTEIN_TARGETS)} or all."
)
EXACT_TARGETS = ("table1", "table2", "table5", "objectives", "decisions")  # the others need text or a baseline


def targets_of(scale: Scale) -> dict[str, Target[Plan]]:
    """The targets of a scale."""
    if scale == "exact":
        return {name: TARGETS[name] for name in EXACT_TARGETS}
    return {name: target for name, target in TARGETS.items() if name != "objectives"}


def reproduce(args: Sequence[str]) -> None:
    """Run ``didi reproduce`` with the arguments after the command's name."""
    num_names = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))  # targets come first
    names, flags = args[:num_names], args[num_names:]
    command = parse(ReproduceCommand, flags, prog="didi reproduce", description=HELP)
    whole_number("--seeds", command.num_seeds, low=1)
    whole_number("--workers", command.workers, low=1)
    if command.scale == PROTEINS:
        refuse_unread(command, ("seeds", "baseline", "peers", "larger", "methods"), f"--scale {PROTEINS}")
        reproduce_proteins(names, command.teacher, command.proteins, command.out, command.workers)
        return
    if given := command.proteins.given():
        raise UsageError(f"--{given[0].replace('_', '-')} is read only at --scale {PROTEINS}: leave it out")
    study = Study(command.out, SAMPLING[command.scale], command.workers)
    title = f"didi reproduce --scale {command.scale}"
    if command.methods:
        compared = chosen_targets(METHOD_TARGETS, names, "a target with --methods")
        write_report(study, _method_plan(command), compared, method_tables.heading, title)
        return
    chosen = chosen_targets(targets_of(command.scale), names, f"a target of --scale {command.scale} without --methods")
    plan = _plan(command)
    if command.peers and not {*chosen} & {*WITH_PEERS}:
        raise UsageError(f"--peers is read by {' and '.join(WITH_PEERS)}; got {', '.join(chosen)}: leave it out")
    if {*chosen} & {*WITH_BASELINE}:
        plan = _with_baseline(plan)
    write_report(study, plan, chosen, heading, title)


def _method_plan(command: ReproduceCommand) -> MethodPlan:
    """The comparison of ``--methods``.

    Raises:
        UsageError: a flag is given that ``--methods`` does not read; see also ``method_plan``.
    """
    refuse_unread(command, ("teacher", "baseline", "peers", "larger"), "--methods, whose recipes name their teachers")
    return method_plan(command.scale, command.methods, command.num_seeds)
