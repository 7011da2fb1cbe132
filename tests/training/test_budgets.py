"""Training and sampling of one student for several numbers of moves, ``objective.budgets``."""

import copy
from dataclasses import replace

import pytest
import torch

import didi
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.plan import plan_rows
from didi.evaluation.speed import Workload, draw_function, trace
from didi.methods.base import Inputs
from didi.methods.didi_settings import DistillConfig, ObjectiveConfig
from didi.methods.settings import LoopConfig
from didi.models.bundle import Bundle, load, save
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT, DiTTrunk
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.sampling.guided import Guided
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import SAMPLERS, samplers_of
from didi.training.trainer import make_trainer

from .distill_case import BUDGETS, CONFIG, CPU, PATH, WHOLE, equal, weights, with_objective

# Two budgets with fresh rollouts and a guidance step, and the same budgets without them.
SEVERAL = replace(
    CONFIG,
    objective=ObjectiveConfig(**BUDGETS),
    discriminator=replace(CONFIG.discriminator, steps_per_student_step=2, fresh_rollouts=True, guidance_steps=1),
)
PLAIN = replace(SEVERAL, discriminator=CONFIG.discriminator)


@pytest.fixture
def read_budgets(monkeypatch):
    """The budgets of all trunk passes, as (kind of network, number of moves)."""
    passes, conditioned = [], DiTTrunk.conditioned

    def record(self, *args):
        if self.config.is_budget_conditioned:
            passes.append(("student" if isinstance(self, DiT) else "discriminator", self.budget))
        return conditioned(self, *args)

    monkeypatch.setattr(DiTTrunk, "conditioned", record)
    return passes


@pytest.fixture(scope="module")
def budget_bundle(make_dit, make_discriminator):
    """A bundle whose student and discriminator are conditioned on the number of moves, with random weights."""
    student = make_dit(vocab_size=4, length=3, seed=3, is_budget_conditioned=True)
    return Bundle(student=student, discriminator=make_discriminator(student), teacher=make_dit(length=3, seed=4))


def drawn_budgets(seed, num_steps=60):
    return [SEVERAL.objective.at_step(seed, step).moves for step in range(num_steps)]


# ------------------------------------------------------------------------------------------------------ training --- #


def test_the_budget_is_drawn_uniformly_and_depends_on_seed_and_step_only():
    assert drawn_budgets(0) == drawn_budgets(0)
    assert drawn_budgets(0) != drawn_budgets(1)
    assert set(drawn_budgets(0)) == {2, 5}
    assert 400 < drawn_budgets(0, 1000).count(2) < 600
    assert ObjectiveConfig().at_step(0, 3) == ObjectiveConfig()


@pytest.mark.slow
def test_all_passes_of_a_step_have_the_same_budget(make_job, read_budgets):
    config = replace(SEVERAL, loop=replace(CONFIG.loop, steps=6))
    job = make_job(config)
    budgets = []
    for step in range(job.num_steps):
        read_budgets.clear()
        job.step(step)
        assert {kind for kind, _ in read_budgets} == {"student", "discriminator"}
        ((budget,),) = [{budget for _, budget in read_budgets}]
        budgets.append(budget)
    assert budgets == [config.objective.at_step(config.seed, step).moves for step in range(len(budgets))]
    assert set(budgets) == {2, 5}


@pytest.mark.slow
def test_all_rollouts_of_a_step_have_the_same_number_of_moves(make_job):
    job = make_job(replace(PLAIN, loop=replace(CONFIG.loop, accumulation=3)))
    for step in range(job.num_steps):
        budgets = {job.method.prepare(step, number).rollout.num_moves for number in range(3)}
        budgets |= {job.method._rollout(step, 0, repeat, has_gradient=False).num_moves for repeat in range(3)}
        assert budgets == {PLAIN.objective.at_step(PLAIN.seed, step).moves}


@pytest.mark.slow
@pytest.mark.parametrize("is_conditioned", [True, False])
def test_training_changes_the_weights_that_read_the_budget(make_job, is_conditioned, read_budgets):
    config = replace(SEVERAL, objective=ObjectiveConfig(**BUDGETS | {"budget_conditioning": is_conditioned}))
    job = make_job(config)
    student, discriminator = job.method.student, job.method.discriminator
    assert student.config == replace(job.method.teacher.config, is_budget_conditioned=is_conditioned)
    assert discriminator.trunk.config.is_budget_conditioned
    maps = [discriminator.trunk.budget_map, *([student.budget_map] if is_conditioned else [])]
    before = [weights(budget_map) for budget_map in maps]
    assert not any(value.any() for budget_map in maps for value in weights(budget_map.mlp[2]).values())
    for step in range(job.num_steps):
        job.step(step)
    for budget_map, initial in zip(maps, before, strict=True):
        assert all(not torch.equal(value, initial[name]) for name, value in weights(budget_map).items())
    assert {kind for kind, _ in read_budgets} == ({"student", "discriminator"} if is_conditioned else {"discriminator"})
    bundle = job.bundle()
    x = torch.arange(8)[None]
    with torch.no_grad():
        outputs = [bundle.student.at_budget(budget)(x) for budget in (2, 5)]
    assert torch.equal(*outputs) != is_conditioned


def test_initial_weights_with_several_budgets_equal_those_with_a_single_one(make_job):
    objective = ObjectiveConfig(**BUDGETS | {"budgets": (), "moves": 2})
    single, several = (make_job(config).method for config in (replace(PLAIN, objective=objective), PLAIN))
    assert equal(weights(single.student), weights(several.student))
    assert equal(weights(single.discriminator.trunk), weights(several.discriminator.trunk))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(source, teacher, assert_resumes_exactly):
    config = replace(PLAIN, loop=replace(CONFIG.loop, steps=5))
    assert_resumes_exactly(lambda folder: make_trainer(config, Inputs(source, CPU, folder, teacher)), config.loop, 4)


@pytest.mark.slow
def test_a_student_of_several_budgets_starts_only_runs_with_budgets_and_is_no_teacher(make_job, tmp_path):
    job = make_job(SEVERAL)
    for step in range(job.num_steps):
        job.step(step)
    name = str(save(job.bundle(), tmp_path / "begun"))
    assert equal(weights(make_job(replace(SEVERAL, start=name)).method.student), weights(job.averaged()))
    with pytest.raises(
        UsageError, match=r"is_budget_conditioned True, not False: set teacher, discriminator and objective"
    ):
        make_job(replace(CONFIG, start=name))
    with pytest.raises(UsageError, match="a teacher does not read the number of moves"):
        make_job(CONFIG, bundle=Bundle(teacher=load(name).student))


def test_a_dry_run_has_the_largest_budget():
    objective = SEVERAL.for_dry_run().objective
    assert (objective.moves, objective.budgets) == (5, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (4,)}, "two or more different numbers of moves, each 1 or more; got 4: change"),
        ({"budgets": (4, 4)}, "two or more different numbers of moves, each 1 or more; got 4, 4: change"),
        ({"budgets": (0, 4)}, "two or more different numbers of moves, each 1 or more; got 0, 4: change"),
        ({"moves": 3}, "moves is one of objective.budgets, if these are set; got 2, 5 and moves 3: set"),
        ({"trajectory": "path", "moves": 5}, "budgets are for trajectory whole-path; got 2, 5 with path: leave"),
        ({"trajectory": "two-moves"}, "budgets are for trajectory whole-path; got 2, 5 with two-moves: leave"),
        ({"budgets": (), "moves": 2, "budget_conditioning": False}, "is off with objective.budgets only; got none"),
        ({"budgets": ()}, "objective.moves is the number of moves of trajectory whole-path, 1 or more; got None"),
    ],
)
def test_contradictory_budgets_are_refused(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        ObjectiveConfig(**BUDGETS | changes)
    assert "\n" not in str(caught.value)


def test_budgets_with_adapters_sharding_or_other_trunks_are_refused(make_job, monkeypatch):
    assert ObjectiveConfig(**BUDGETS | {"moves": 5}).budgets == (2, 5)
    with pytest.raises(UsageError, match=r"^objective.budgets cannot .* lora_rank; got 4: leave one out$"):
        replace(SEVERAL, lora_rank=4)
    with pytest.raises(UsageError, match=r"^objective.budgets cannot .* loop.fsdp; got both: leave one out$"):
        DistillConfig(objective=SEVERAL.objective, loop=LoopConfig(fsdp=True))
    from_denoiser = Discriminator.from_denoiser

    def with_another_trunk(*args, **options):
        discriminator = from_denoiser(*args, **options)
        discriminator.trunk = torch.nn.Linear(1, 1)
        return discriminator

    monkeypatch.setattr(Discriminator, "from_denoiser", with_another_trunk)
    with pytest.raises(
        UsageError, match=r"objective.budgets need a teacher whose trunk is a DiTTrunk; got Linear: leave"
    ):
        make_job(SEVERAL)


# ------------------------------------------------------------------------------------------------------ sampling --- #


def with_fixed_budget(bundle, budget):
    """A bundle whose networks have a fixed budget, for any number of moves of the sampler."""
    student, discriminator = copy.deepcopy(bundle.student), copy.deepcopy(bundle.discriminator)
    for trunk in (student, discriminator.trunk):
        trunk.budget, trunk.config = budget, replace(trunk.config, is_budget_conditioned=False)
    return replace(bundle, student=student, discriminator=discriminator)


def last_state(sampler, nfe, seed=0, num=16):
    *_, last = sampler(Canvas.blank(num, 3, CPU), time_grid(nfe), SequenceNoise(seed, range(num)))
    return last.z


@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_samples_are_conditioned_on_the_number_of_moves(budget_bundle, nfe):
    fixed, process = with_fixed_budget(budget_bundle, nfe), budget_bundle.process
    of_student = last_state(Ancestral(fixed.student, process), nfe)
    assert torch.equal(didi.generate(budget_bundle, num_samples=16, nfe=nfe).tokens, of_student)
    *_, last = didi.stream(budget_bundle, num_samples=16, nfe=nfe)
    assert torch.equal(last.tokens, of_student)
    of_guided = last_state(Guided(fixed.student, process, fixed.discriminator), nfe)
    assert torch.equal(didi.generate(budget_bundle, num_samples=16, nfe=nfe, sampler="guided").tokens, of_guided)


@pytest.mark.parametrize("sampler", samplers_of("absorbing"))
def test_every_sampler_reads_the_number_of_its_moves(budget_bundle, sampler, read_budgets):
    kind = SAMPLERS[sampler][0]
    nfe = kind.num_moves or 2
    didi.generate(budget_bundle, num_samples=2, nfe=nfe, sampler=sampler)
    assert {budget for _, budget in read_budgets} == {3 if kind.ignores_grid else nfe}
    assert ("discriminator", 2) in read_budgets or sampler != "guided"


def test_explicit_times_determine_the_budget(budget_bundle, read_budgets):
    didi.generate(budget_bundle, num_samples=2, nfe=16, times=(1.0, 0.6, 0.5, 0.2, 0.0))
    assert {budget for _, budget in read_budgets} == {4}


def test_a_planned_row_with_0_moves_is_refused(budget_bundle):
    with pytest.raises(UsageError, match="got 0"):
        plan_rows(budget_bundle, "student", "ancestral", (2, 0), [SamplingOptions()])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ancestral", "guided"])
def test_exact_distributions_depend_on_the_number_of_moves(budget_bundle, sampler):
    rows, options = ExactRows(budget_bundle), SamplingOptions(sampler)
    for nfe in (2, 3, 2):
        probs = rows.distribution(3, options, nfe)
        assert torch.equal(probs, ExactRows(with_fixed_budget(budget_bundle, nfe)).distribution(3, options, nfe))
        other = ExactRows(with_fixed_budget(budget_bundle, 7)).distribution(3, options, nfe)
        assert (probs - other).abs().max() > 1e-4
    of_times = rows.distribution(3, replace(options, times=(1.0, 0.5, 0.0)), 9)
    assert torch.equal(of_times, rows.distribution(3, options, 2))
    assert len(rows._tables[options.token_distribution]) == 2


@pytest.mark.parametrize("method", ["ancestral", "trunk", "published", "guided", "guided floor"])
def test_timed_networks_are_conditioned_on_the_number_of_moves(budget_bundle, method, read_budgets):
    draw_function(budget_bundle, method, Workload(2, 3, 5))()
    assert {budget for _, budget in read_budgets} == {5}


def test_a_trace_contains_passes_of_conditioned_trunks(budget_bundle):
    assert [part for part, *_ in trace(budget_bundle, "ancestral", Workload(2, 3, 4)).shapes].count("trunk") >= 1


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, None),
        ({"trajectory": "one-step"}, 1),
        (WHOLE, 3),
        (WHOLE | {"moves": 5}, 5),
        (PATH, 4),
        (BUDGETS, 5),
        (BUDGETS | {"budgets": (7, 1)}, 7),
    ],
)
def test_a_bundle_records_the_moves_of_its_student(make_job, objective, expected):
    assert make_job(with_objective(**objective)).bundle().intended_nfe == expected
