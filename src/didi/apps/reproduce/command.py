"""``didi reproduce``: the paper's tables and figures by one command, at three scales."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from didi.apps.reproduce import figures, method_figures, method_tables, published, tables
from didi.apps.reproduce.cells import Run
from didi.apps.reproduce.figures import BASELINE
from didi.apps.reproduce.methods import MethodPlan, method_plan
from didi.apps.reproduce.peers import TINY_PEER_STEPS, given_peers, trained_peers
from didi.apps.reproduce.plan import Plan, heading
from didi.apps.reproduce.proteins import PROTEIN_TARGETS, PROTEINS, ProteinFlags, reproduce_proteins
from didi.apps.reproduce.study import Sampling, Study
from didi.apps.reproduce.targets import Target, chosen_targets, refuse_unread, write_report
from didi.apps.terminal import parse
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
    """markov: the test bench with an exact judge. exact: a smaller one with exact divergences. tiny: tiny-news. paper:
    169M parameters, OpenWebText; needs a GPU. proteins: figures 5 to 7, of bundles that are there."""
    out: Path
    """Folder for runs, cells and report; give it again to go on."""
    seeds: int | None = None
    """Training seeds of each row of a table; 2 by default."""
    workers: int = 2
    """Processes at a time, of one thread each."""
    teacher: str | None = None
    """Bundle of the teacher; needed at the scales paper and proteins, the bundled one elsewhere."""
    baseline: str | None = None
    """Bundle with an autoregressive baseline for the figures and table7, such as one of didi convert gpt2. By default
    that of the teacher's bundle, where it has one; at markov scale one is trained."""
    peers: tuple[str, ...] = ()
    """Bundles of other teachers for figure1 and table7, such as converted checkpoints, or none. By default MDLM, SEDD,
    UDLM, Duo and their autoregressive twin are trained at the scales markov and tiny (an hour of 2 cores at tiny)."""
    larger: str | None = None
    """Bundle of a larger teacher for figure4; trained at markov scale."""
    methods: tuple[str, ...] = ()
    """figure1, figure3 and table1 compare these distillation methods, by their whole recipes with the teachers these
    name, at the scales exact, markov and tiny; all for every method that has a recipe."""
    proteins: Annotated[ProteinFlags, tyro.conf.arg(name="")] = field(default_factory=ProteinFlags)

    @property
    def num_seeds(self) -> int:
        """Training seeds of each row of a table."""
        return NUM_SEEDS if self.seeds is None else self.seeds


def _short(recipe: str, *, warmup_steps: int, steps: int, batch_size: int, learning_rate: float) -> DistillConfig:
    """A recipe with the two moves that the tables are about, cut to what many runs can afford."""
    base = preset(DISTILL[recipe], "two-moves")
    loop = replace(
        base.loop, steps=steps, batch_size=batch_size, validate_every=steps, checkpoint_every=100, ema_decay=0.99
    )
    # One completion: the discriminator's step is a third of the price then.
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
    """A short run of ``markov``: its few states make a noisy gradient, so a low rate and more completions of each."""
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
    """The bundles that are given, none if that is asked for, else a run of each kind where there is a recipe.

    Raises:
        UsageError: a bundle is given twice, or is not of the scale's world.
    """
    if command.peers == ("none",):
        return {}
    if not command.peers:
        return {} if recipe is None else trained_peers(recipe, steps)
    found = given_peers(command.peers)
    for bundle in command.peers:
        corpus = manifest_of(bundle).provenance.get("corpus")
        if (command.scale == MARKOV) != (corpus == MARKOV):
            raise UsageError(
                f"--peers of --scale {command.scale} are of its corpus; {bundle} is of {corpus}: leave it out"
            )
    return found


def _plan(command: ReproduceCommand) -> Plan:
    seeds = tuple(range(command.num_seeds))
    if command.scale == "markov":
        small = PRETRAIN["markov"]
        twin = replace(small, recipe="markov-ar", model="autoregressive")
        larger = replace(small, recipe="markov-large", network=replace(small.network, hidden_size=96, num_blocks=4))
        return Plan(
            scale="markov",
            teacher=command.teacher or "markov",
            recipe=_short_markov(),
            nfes=(2, 4, 8, 16),
            more_teacher_nfes=(32,),
            seeds=seeds,
            corpora=("markov",),
            twin=command.baseline or Run(twin),
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
            twin=command.baseline,
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
        twin=command.baseline,
        larger=command.larger,
        peers=_peers(command),
    )


WITH_PEERS = ("figure1", "table7")
WITH_BASELINE = ("figure1", "figure3", "figure4", "table7")


def _with_baseline(plan: Plan) -> Plan:
    """The plan with the autoregressive network of its teacher's bundle where no other baseline is given.

    Raises:
        UsageError: the bundle that is given has no such network, or is not of the scale's world.
    """
    if plan.twin is None:
        return replace(plan, twin=plan.teacher) if BASELINE in manifest_of(plan.teacher).networks else plan
    if isinstance(plan.twin, Run):
        return plan
    given = manifest_of(plan.twin)
    if BASELINE not in given.networks:
        held = ", ".join(given.networks)
        raise UsageError(
            f"--baseline names a bundle with an {BASELINE} network; {plan.twin} holds {held}: take one of didi convert "
            "gpt2, or of didi pretrain (tiny-news-ar, prose-ar)"
        )
    if plan.scale == MARKOV and (corpus := given.provenance.get("corpus")) != MARKOV:
        raise UsageError(
            f"--baseline of --scale {MARKOV} is of its world; {plan.twin} is of {corpus}: leave it out, and one is "
            "trained"
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
    "figure1": Target("Figure 1: methods against passes", lambda plan: plan.cells, method_figures.figure_1),
    "figure3": Target("Figure 3: methods against latency", lambda plan: plan.cells, method_figures.figure_3),
    "table1": Target("Table 1: methods", lambda plan: plan.cells, method_tables.method_tables),
}
HELP = (
    "Tables and figures of the paper: didi reproduce TARGET... --scale S --out DIR; what is done is not done again. "
    f"TARGET is one of {', '.join(TARGETS)} or all; at --scale {PROTEINS} of {', '.join(PROTEIN_TARGETS)} or all."
)
EXACT_TARGETS = ("table1", "table2", "table5", "objectives", "decisions")  # others need text, or a twin


def targets_of(scale: Scale) -> dict[str, Target[Plan]]:
    """The tables and figures that a scale has."""
    if scale == "exact":
        return {name: TARGETS[name] for name in EXACT_TARGETS}
    return {name: one for name, one in TARGETS.items() if name != "objectives"}


def reproduce(args: Sequence[str]) -> None:
    """Run ``didi reproduce`` with the words after it."""
    names = [word for word in args if not word.startswith("-")][: _num_names(args)]
    command = parse(ReproduceCommand, args[len(names) :], prog="didi reproduce", description=HELP)
    if min(command.num_seeds, command.workers) < 1:
        raise UsageError(f"seeds and workers are 1 or more; got {command.num_seeds} and {command.workers}")
    if command.scale == PROTEINS:
        refuse_unread(command, ("seeds", "baseline", "peers", "larger", "methods"), f"--scale {PROTEINS}")
        reproduce_proteins(names, command.teacher, command.proteins, command.out, command.workers)
        return
    if given := command.proteins.given():
        raise UsageError(f"--{given[0].replace('_', '-')} is read at --scale {PROTEINS} alone: leave it out")
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
    """The comparison that ``--methods`` asks for.

    Raises:
        UsageError: a flag is given that it does not read; see ``method_plan`` for others.
    """
    refuse_unread(command, ("teacher", "baseline", "peers", "larger"), "--methods, whose recipes name their teachers")
    return method_plan(command.scale, command.methods, command.num_seeds)


def _num_names(args: Sequence[str]) -> int:
    """Words before the first flag."""
    return next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
