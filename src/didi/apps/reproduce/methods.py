"""``didi reproduce --methods``: which students are compared, how they are sampled, and at how many moves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from didi import recipes
from didi.apps.reproduce.cells import AnyCell, Cell, JointCell, Run
from didi.apps.reproduce.peers import TINY_PEER_STEPS
from didi.apps.reproduce.plan import TEMPERATURES
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError, suggestion
from didi.methods import METHODS, method_of
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig
from didi.models.bundle import Role, bundled_names, manifest_of
from didi.sampling.options import SamplerName

SAMPLERS: dict[str, tuple[SamplerName, ...]] = {
    Absorbing.name: ("ancestral",),
    Uniform.name: ("ancestral", "greedy-tail"),
}
"""How students are sampled, by their process."""

REFERENCE = "didi"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class World:
    """The world of a scale.

    Attributes:
        recipe: name of its recipes.
        nfes: numbers of moves.
        max_costly_nfe: the largest of a uniform-state network, for which an exact sum takes a pass over all states each
            move, and of a student with latent codes, whose exact divergences are averages over draws.
        joint: whether joint divergences are estimated.
        has_frontier: whether students are compared with a teacher at equal entropy.
        teacher_steps: of a teacher that has to be trained; None for those of its recipe.
        joint_reference: recipe of the autoregressive network from which joint divergences are measured, trained for
            ``teacher_steps``; empty where the distribution of the data is known.
        joint_nfes: numbers of moves of these.
        joint_samples: samples of these.
    """

    recipe: str
    nfes: tuple[int, ...]
    max_costly_nfe: int
    joint: bool = False
    has_frontier: bool = False
    teacher_steps: int | None = None
    joint_reference: str = ""
    joint_nfes: tuple[int, ...] = (1, 2, 4, 8)
    joint_samples: int = 256


ALL_NFES = (1, 2, 4, 8, 16, 32, 64, 128)
WORLDS = {
    "exact": World("exact", ALL_NFES, max_costly_nfe=32),
    "markov": World("markov", ALL_NFES, max_costly_nfe=128, joint=True),
    "tiny": World(
        "tiny-news",
        ALL_NFES,
        max_costly_nfe=128,
        has_frontier=True,
        teacher_steps=TINY_PEER_STEPS,
        joint_reference="tiny-news-ar",
    ),
}


@dataclass(frozen=True)
class Curve:
    """Networks of equal settings, sampled alike at several numbers of moves.

    Attributes:
        name: in tables and figures.
        method: that made them; empty for a teacher.
        bundles: one for each seed; one for a teacher.
        sampler: how they are sampled.
        nfes: numbers of moves.
        joint: whether joint divergences are estimated.
    """

    name: str
    method: str
    bundles: tuple[Run | str, ...]
    sampler: SamplerName
    nfes: tuple[int, ...]
    joint: bool = False

    def cells(self, nfe: int) -> list[Cell]:
        """The cell of each seed."""
        return [Cell(one, self.role, self.sampler, nfe, joint=self.joint) for one in self.bundles]

    @property
    def role(self) -> Role:
        """Which network of its bundles is sampled."""
        return "student" if self.method else "teacher"


@dataclass(frozen=True)
class MethodPlan:
    """A comparison of distillation methods.

    Attributes:
        scale: its name.
        world: its world.
        configs: settings by name, that of a method or of a variant of it.
        teachers: teacher of each method: a bundle, or a run that is made first.
        seeds: training seeds of each method.
    """

    scale: str
    world: World
    configs: dict[str, DistillationConfig]
    teachers: dict[str, Run | str]
    seeds: tuple[int, ...]

    def runs(self, method: str) -> tuple[Run, ...]:
        """The distillation of each seed."""
        config, teacher = self.configs[method], self.teachers[method]
        if isinstance(teacher, Run):
            return tuple(Run(replace(config, seed=seed), teacher) for seed in self.seeds)
        return tuple(Run(replace(config, teacher=teacher, seed=seed)) for seed in self.seeds)

    @property
    def reference(self) -> str:
        """The method that the others are compared with: ours, or the first."""
        return REFERENCE if REFERENCE in self.configs else next(iter(self.configs))

    @property
    def curves(self) -> list[Curve]:
        """Every student with every sampler, then every teacher."""
        students = [curve for method in self.configs for curve in self._students(method)]
        return students + [self._curve(f"teacher {name_of(one)}", "", (one,), "ancestral") for one in self._distinct]

    @property
    def _distinct(self) -> list[Run | str]:
        return list(dict.fromkeys(self.teachers.values()))

    def _students(self, method: str) -> list[Curve]:
        runs = self.runs(method)
        if self.configs[method].starts_at_random:
            return [Curve(method, method, runs, "one-step", (1,), self.world.joint)]
        samplers = SAMPLERS[process_of(self.teachers[method])]
        names = [method if sampler == samplers[0] else f"{method}, {sampler}" for sampler in samplers]
        return [self._curve(name, method, runs, sampler) for name, sampler in zip(names, samplers, strict=True)]

    def _curve(self, name: str, method: str, bundles: tuple[Run | str, ...], sampler: SamplerName) -> Curve:
        is_uniform = process_of(self.teachers[method] if method else bundles[0]) == Uniform.name
        is_costly = is_uniform or (method != "" and self.configs[method].has_latent_codes)
        nfes = [nfe for nfe in self.world.nfes if not is_costly or nfe <= self.world.max_costly_nfe]
        return Curve(name, method, bundles, sampler, tuple(nfes), self.world.joint)

    @property
    def frontier(self) -> list[Cell]:
        """The reference's teacher at the largest number of moves and each temperature, if rows are compared with it."""
        if not self.world.has_frontier:
            return []
        teacher, nfe = self.teachers[self.reference], self.world.nfes[-1]
        return [Cell(teacher, "teacher", nfe=nfe, temperature=value) for value in TEMPERATURES]

    @property
    def joint_cells(self) -> dict[str, dict[int, list[JointCell]]]:
        """Joint divergences from a trained network, by name of the curve and number of moves, one for each seed."""
        world = self.world
        if not world.joint_reference:
            return {}
        reference = _pretraining(world.joint_reference, world)
        return {
            curve.name: {
                nfe: [
                    JointCell(one, curve.role, curve.sampler, nfe, reference, world.joint_samples)
                    for one in curve.bundles
                ]
                for nfe in world.joint_nfes
                if nfe in curve.nfes
            }
            for curve in self.curves
        }

    @property
    def cells(self) -> list[AnyCell]:
        """All that is measured."""
        found: list[AnyCell] = [cell for curve in self.curves for nfe in curve.nfes for cell in curve.cells(nfe)]
        joint = [cell for by_nfe in self.joint_cells.values() for cells in by_nfe.values() for cell in cells]
        return [*found, *self.frontier, *joint]


def name_of(bundle: Run | str) -> str:
    """Name of a bundle that is there, or the recipe of one that is made."""
    return bundle if isinstance(bundle, str) else bundle.config.recipe


def process_of(teacher: Run | str) -> str:
    """Process of a teacher; the scores of SEDD for masked diffusion are read as a masked model."""
    if isinstance(teacher, Run):
        assert isinstance(teacher.config, PretrainConfig)
        name = teacher.config.process
    else:
        name = manifest_of(teacher).process.name
    return name if name in SAMPLERS else Absorbing.name


def method_plan(scale: str, methods: Sequence[str], num_seeds: int) -> MethodPlan:
    """The comparison of the methods that are named; ``all`` of those with a recipe for the world.

    Raises:
        UsageError: a scale has no comparison, or a method no recipe for its world or no teacher.
    """
    if scale not in WORLDS:
        raise UsageError(f"--methods compares at the scales {', '.join(WORLDS)}; got --scale {scale}: choose another")
    world = WORLDS[scale]
    compared = _compared(world.recipe)
    known = list(compared)
    if unknown := [name for name in methods if name not in (*known, "all")]:
        raise UsageError(
            f"--methods of --scale {scale} are some of {', '.join(known)}, or all; got {unknown[0]!r}"
            f"{suggestion(unknown[0], [*known, 'all'])}"
        )
    chosen = [name for name in known if name in methods or "all" in methods]
    configs = {name: compared[name] for name in chosen}
    teachers = {name: _teacher(config, world) for name, config in configs.items()}
    return MethodPlan(scale, world, configs, teachers, tuple(range(num_seeds)))


def _compared(recipe: str) -> dict[str, DistillationConfig]:
    """Settings of every method with a recipe of that name, those of the comparison where they differ, ours first."""
    own = type(recipes.DISTILL[recipe])
    found = {
        name: recipes.distillation_recipes(name)[recipe]
        for name, one in METHODS.items()
        if one.settings_type is own or (recipe, name) in recipes.VARIANTS
    } | recipes.COMPARED.get(recipe, {})
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith(REFERENCE)))


def _teacher(config: DistillationConfig, world: World) -> Run | str:
    """The teacher that a recipe names, or a run of its recipe; one of uniform-state diffusion by default is Duo's.

    Raises:
        UsageError: it is neither there nor has it a recipe.
    """
    method = method_of(config)
    is_masked = Absorbing.name in method.processes
    name = config.teacher or ("" if is_masked else f"{world.recipe}-duo")
    if name and (name in bundled_names() or Path(name).exists()):
        return name
    if name not in recipes.PRETRAIN:
        raise UsageError(
            f"--methods takes methods whose recipe names a teacher that is bundled or that didi pretrain has; that of "
            f"{method.name} names {name!r}: leave the method out"
        )
    return _pretraining(name, world)


def _pretraining(recipe: str, world: World) -> Run:
    """A run of a recipe, of as many steps as the comparison affords."""
    config = recipes.PRETRAIN[recipe]
    if world.teacher_steps is None:
        return Run(config)
    limited = config.limited(world.teacher_steps)
    assert isinstance(limited, PretrainConfig)
    return Run(limited)
