"""The plan of ``didi reproduce --methods``: students that are compared, their samplers and numbers of moves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from didi import recipes
from didi.apps.reproduce.cells import AnyCell, Cell, JointCell, Run, name_of
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
"""Samplers of students, by the name of their process."""

REFERENCE = "didi"
"""Name of the method that the other methods are compared with."""


@dataclass(frozen=True)
class ScaleSettings:
    """Settings of a comparison at one scale.

    Attributes:
        recipe: name of the recipes.
        nfes: numbers of moves.
        max_costly_nfe: largest number of moves for networks whose exact divergences are costly: uniform-state networks,
            with a pass over all states in each move, and students with latent codes, with averages over draws.
        joint: whether joint divergences from the exact chain are estimated for each cell.
        has_frontier: whether students are compared with a teacher at equal entropy, by a sweep of its temperature.
        teacher_steps: training steps of a teacher that is not bundled; None for the steps of its recipe.
        joint_reference: recipe of the autoregressive network that is the reference of ``joint_cells``, trained for
            ``teacher_steps``; empty if the distribution of the data is known.
        joint_nfes: numbers of moves of ``joint_cells``.
        joint_samples: number of samples in each of ``joint_cells``.
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
SCALES = {
    "exact": ScaleSettings("exact", ALL_NFES, max_costly_nfe=32),
    "markov": ScaleSettings("markov", ALL_NFES, max_costly_nfe=128, joint=True),
    "tiny": ScaleSettings(
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
    """Networks that differ only in their training seed, sampled with one sampler at several numbers of moves.

    Attributes:
        name: name in tables and figures.
        method: name of the method; empty for a teacher.
        bundles: runs or bundles, one for each seed; one for a teacher.
        sampler: name of the sampler.
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
        """The cells of all seeds at one number of moves."""
        return [Cell(bundle, self.role, self.sampler, nfe, joint=self.joint) for bundle in self.bundles]

    @property
    def role(self) -> Role:
        """Role of the sampled network in its bundle."""
        return "student" if self.method else "teacher"


@dataclass(frozen=True)
class MethodPlan:
    """A comparison of distillation methods.

    Attributes:
        scale: name of the scale.
        settings: settings of the comparison at this scale.
        configs: settings by the name of a method or of a variant of a method.
        teachers: teacher of each method: a bundle, or a run that is trained first.
        seeds: training seeds of each method.
    """

    scale: str
    settings: ScaleSettings
    configs: dict[str, DistillationConfig]
    teachers: dict[str, Run | str]
    seeds: tuple[int, ...]

    def runs(self, method: str) -> tuple[Run, ...]:
        """The distillations of a method, one for each seed."""
        config, teacher = self.configs[method], self.teachers[method]
        if isinstance(teacher, Run):
            return tuple(Run(replace(config, seed=seed), teacher) for seed in self.seeds)
        return tuple(Run(replace(config, teacher=teacher, seed=seed)) for seed in self.seeds)

    @property
    def reference(self) -> str:
        """Name of the method that the others are compared with: ``REFERENCE`` if it is compared, else the first."""
        return REFERENCE if REFERENCE in self.configs else next(iter(self.configs))

    @property
    def curves(self) -> list[Curve]:
        """Curves of every student with every sampler, then of every teacher."""
        students = [curve for method in self.configs for curve in self._students(method)]
        return students + [
            self._curve(f"teacher {name_of(teacher)}", "", (teacher,), "ancestral") for teacher in self._distinct
        ]

    @property
    def _distinct(self) -> list[Run | str]:
        return list(dict.fromkeys(self.teachers.values()))

    def _students(self, method: str) -> list[Curve]:
        runs = self.runs(method)
        if self.configs[method].starts_at_random:
            return [Curve(method, method, runs, "one-step", (1,), self.settings.joint)]
        samplers = SAMPLERS[process_of(self.teachers[method])]
        names = [method if sampler == samplers[0] else f"{method}, {sampler}" for sampler in samplers]
        return [self._curve(name, method, runs, sampler) for name, sampler in zip(names, samplers, strict=True)]

    def _curve(self, name: str, method: str, bundles: tuple[Run | str, ...], sampler: SamplerName) -> Curve:
        is_uniform = process_of(self.teachers[method] if method else bundles[0]) == Uniform.name
        is_costly = is_uniform or (method != "" and self.configs[method].has_latent_codes)
        nfes = [nfe for nfe in self.settings.nfes if not is_costly or nfe <= self.settings.max_costly_nfe]
        return Curve(name, method, bundles, sampler, tuple(nfes), self.settings.joint)

    @property
    def frontier(self) -> list[Cell]:
        """Cells of the reference's teacher at the largest number of moves and each temperature; empty if not needed."""
        if not self.settings.has_frontier:
            return []
        teacher, nfe = self.teachers[self.reference], self.settings.nfes[-1]
        return [Cell(teacher, "teacher", nfe=nfe, temperature=value) for value in TEMPERATURES]

    @property
    def joint_cells(self) -> dict[str, dict[int, list[JointCell]]]:
        """Joint divergences from a trained network, by name of the curve and number of moves, one for each seed."""
        settings = self.settings
        if not settings.joint_reference:
            return {}
        reference = _pretraining(settings.joint_reference, settings)
        return {
            curve.name: {
                nfe: [
                    JointCell(bundle, curve.role, curve.sampler, nfe, reference, settings.joint_samples)
                    for bundle in curve.bundles
                ]
                for nfe in settings.joint_nfes
                if nfe in curve.nfes
            }
            for curve in self.curves
        }

    @property
    def cells(self) -> list[AnyCell]:
        """All cells of the comparison."""
        of_curves: list[AnyCell] = [cell for curve in self.curves for nfe in curve.nfes for cell in curve.cells(nfe)]
        joint = [cell for by_nfe in self.joint_cells.values() for cells in by_nfe.values() for cell in cells]
        return [*of_curves, *self.frontier, *joint]


def process_of(teacher: Run | str) -> str:
    """Name of a teacher's process in ``SAMPLERS``; a teacher of absorbing SEDD counts as masked diffusion."""
    if isinstance(teacher, Run):
        assert isinstance(teacher.config, PretrainConfig)
        name = teacher.config.process
    else:
        name = manifest_of(teacher).process.name
    return name if name in SAMPLERS else Absorbing.name


def method_plan(scale: str, methods: Sequence[str], num_seeds: int) -> MethodPlan:
    """The comparison of the named methods; ``all`` stands for all methods with a recipe for the scale.

    Raises:
        UsageError: the scale has no comparison, or a method has no recipe for the scale or no teacher.
    """
    if scale not in SCALES:
        raise UsageError(f"--methods compares at the scales {', '.join(SCALES)}; got --scale {scale}: choose another")
    settings = SCALES[scale]
    compared = _compared(settings.recipe)
    known = list(compared)
    if unknown := [name for name in methods if name not in (*known, "all")]:
        raise UsageError(
            f"--methods of --scale {scale} are some of {', '.join(known)}, or all; got {unknown[0]!r}"
            f"{suggestion(unknown[0], [*known, 'all'])}"
        )
    chosen = [name for name in known if name in methods or "all" in methods]
    configs = {name: compared[name] for name in chosen}
    teachers = {name: _teacher(config, settings) for name, config in configs.items()}
    return MethodPlan(scale, settings, configs, teachers, tuple(range(num_seeds)))


def _compared(recipe: str) -> dict[str, DistillationConfig]:
    """Settings by method, ``REFERENCE`` first: those of ``recipes.COMPARED`` if it has them, else of the recipe."""
    own = type(recipes.DISTILL[recipe])
    settings = {
        name: recipes.distillation_recipes(name)[recipe]
        for name, method in METHODS.items()
        if method.settings_type is own or (recipe, name) in recipes.VARIANTS
    } | recipes.COMPARED.get(recipe, {})
    return dict(sorted(settings.items(), key=lambda item: not item[0].startswith(REFERENCE)))


def _teacher(config: DistillationConfig, settings: ScaleSettings) -> Run | str:
    """The bundle of the teacher that a recipe names, or a run of the teacher's recipe.

    For uniform-state diffusion the default teacher is that of Duo.

    Raises:
        UsageError: there is neither a bundle nor a recipe of that name.
    """
    method = method_of(config)
    is_masked = Absorbing.name in method.processes
    name = config.teacher or ("" if is_masked else f"{settings.recipe}-duo")
    if name and (name in bundled_names() or Path(name).exists()):
        return name
    if name not in recipes.PRETRAIN:
        raise UsageError(
            f"--methods takes methods whose recipe names a bundled teacher or a recipe of didi pretrain; that of "
            f"{method.name} names {name!r}: leave the method out"
        )
    return _pretraining(name, settings)


def _pretraining(recipe: str, settings: ScaleSettings) -> Run:
    """A pre-training run of a recipe, limited to ``teacher_steps`` of the comparison."""
    config = recipes.PRETRAIN[recipe]
    if settings.teacher_steps is None:
        return Run(config)
    limited = config.limited(settings.teacher_steps)
    assert isinstance(limited, PretrainConfig)
    return Run(limited)
