"""Every field of the objective and of the discriminator's settings changes the gradients as documented.

For each value of each field, the gradients of one step equal those rebuilt from pure functions, which the fixture
``observe_and_check`` asserts; between values they differ. ``test_wiring_optimizers`` tests the weights.
"""

import dataclasses
from dataclasses import replace

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.schedule import schedule_from_name
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig
from didi.models.bundle import Bundle

from .distill_case import BRANCHES, BUDGETS, PATH, WHOLE
from .observed_step import observe_distillation
from .rebuilt_step import Inputs, rebuilt_gradients, rebuilt_rewards, rebuilt_rollout, rebuilt_student_loss

WARMUP, STUDENT, GUIDANCE = 0, 1, 3  # the step of each phase
BASE = DistillConfig(
    data=DataConfig(corpus="markov", length=8),
    objective=ObjectiveConfig(
        completions=2, advantage="shared-state", divergence_weight=0.5, entropy_weight=0.3, weight_low=0.0
    ),
    discriminator=DiscriminatorSettings(warmup_steps=1, guidance_steps=2, pool_size=12, pool_nfe=2),
    student_optimizer=OptimizerConfig(learning_rate=1e-3),
    discriminator_optimizer=OptimizerConfig(learning_rate=0.005),
    loop=LoopConfig(steps=2, batch_size=4),
)


def vary(field, *values, **others):
    """Settings that differ in one field."""
    return [{field: value, **others} for value in values]


BETA = {"time_a": 2.0, "time_b": 5.0, "importance_weighting": True}
OBJECTIVE = {
    "trajectory": [{"trajectory": "one-step"}, {"trajectory": "two-moves"}, PATH, WHOLE],
    "moves": [*vary("moves", 3, 8, trajectory="path"), WHOLE, WHOLE | {"moves": 1}, WHOLE | {"moves": 5}],
    "budgets": [WHOLE, BUDGETS, BUDGETS | {"budgets": (1, 7, 4)}],
    "budget_conditioning": vary("budget_conditioning", True, False, **BUDGETS),
    "reward_time": [WHOLE | {"reward_time": name} for name in ("finished", "density", "both")],
    "reference_steps": [*vary("reference_steps", 0, 2, **WHOLE), BRANCHES | {"reference_steps": 2}],
    "latent_codes": [WHOLE, *vary("latent_codes", 2, 5, **WHOLE), BRANCHES | {"latent_codes": 5}],
    "latent_scale": vary("latent_scale", 1.0, 3.0, latent_codes=2, **WHOLE),
    "coupled_time": vary("coupled_time", True, False),
    "weight": vary("weight", "constant", "nelbo"),
    "weight_low": vary("weight_low", 0.1, 2.0, weight="nelbo"),
    "weight_high": vary("weight_high", 10.0, 1.5, weight="nelbo"),
    "time_a": vary("time_a", 1.0, 3.0, importance_weighting=True),
    "time_b": vary("time_b", 1.0, 3.0, importance_weighting=True),
    "importance_weighting": vary("importance_weighting", False, True, time_a=2.0, time_b=5.0),
    "importance_clip": [{**BETA, "importance_clip": 10.0}, {**BETA, "importance_clip": 0.45}],
    "reward_reduction": vary("reward_reduction", "masked-mean", "mean", "sum", normalise_advantage=False),
    "reward_clamp": vary("reward_clamp", None, 0.3, 1.0),
    "completions": vary("completions", 2, 3),
    "corruptions": vary("corruptions", 1, 2),
    "advantage": [
        *({"advantage": name, "completions": 1} for name in ("batch", "leave-one-out")),
        *({"advantage": name, "completions": 1, "group_size": 2} for name in ("rows", "shared-time")),
        {"advantage": "shared-state"},
    ],
    "group_size": [
        {"advantage": name, "completions": 1, "group_size": size} for name in ("rows", "shared-time") for size in (2, 4)
    ],
    "normalise_advantage": vary("normalise_advantage", True, False),
    "advantage_clamp": vary("advantage_clamp", None, 0.5, 1.0),
    "revealed_only": vary("revealed_only", False, True),
    "pg_reduction": vary("pg_reduction", "sum", "token-mean"),
    "divergence": vary("divergence", "forward", "backward", "jeffreys"),
    "divergence_weight": vary("divergence_weight", 0.0, 0.5),
    "entropy_weight": vary("entropy_weight", 0.0, 0.3),
}
# For each field: the step, the network whose gradient differs between the values, and the values.
DISCRIMINATOR = {
    "output": (STUDENT, "both", vary("output", "token", "sequence")),
    "trainable_blocks": (STUDENT, "both", vary("trainable_blocks", None, 1, 0)),
    "is_time_conditioned": (STUDENT, "both", vary("is_time_conditioned", True, False)),
    "label_smoothing": (STUDENT, "both", vary("label_smoothing", 0.1, 0.0)),
    "unsmooth": (STUDENT, "student", vary("unsmooth", False, True)),
    "warmup_moves": (WARMUP, "discriminator", vary("warmup_moves", 2, 4)),
    "steps_per_student_step": (STUDENT, "student", vary("steps_per_student_step", 1, 2, 3)),
    "fresh_rollouts": (STUDENT, "both", vary("fresh_rollouts", False, True, steps_per_student_step=2)),
    "completions": (STUDENT, "both", vary("completions", None, 1)),
    "real_source": (STUDENT, "both", vary("real_source", "corpus", "teacher-pool", "teacher-steps=2")),
    "pool_size": (STUDENT, "both", vary("pool_size", 12, 5, real_source="teacher-pool")),
    "pool_nfe": (STUDENT, "both", vary("pool_nfe", 1, 4, real_source="teacher-pool")),
    "guidance_nfe": (GUIDANCE, "discriminator", vary("guidance_nfe", 2, 5)),
}
PHASES = {"warmup_steps", "guidance_steps"}  # test_each_phase_trains_its_networks


def changed(part, **settings):
    return replace(BASE, **{part: replace(getattr(BASE, part), **settings)})


@pytest.fixture(scope="module")
def observe_and_check(source, teacher, tmp_path_factory):
    """Function that asserts that the gradients of a step equal the rebuilt ones; it returns inputs and observation."""
    cache = {}

    def check(config, step=STUDENT, bundle=teacher):
        key = config, step, id(bundle)
        if key not in cache:
            inputs = Inputs(config, source, bundle)
            observed = observe_distillation(config, [step], source, bundle, tmp_path_factory.mktemp("run"))
            expected = rebuilt_gradients(inputs, step, observed)
            assert [update.network for update in observed.updates] == [network for network, _ in expected]
            for update, (_, gradient) in zip(observed.updates, expected, strict=True):
                assert relative_difference(update.gradient, gradient) < 1e-4
            cache[key] = inputs, observed
        return cache[key]

    return check


def relative_difference(first, second):
    """Norm of the difference over the norm; infinite if different parameters have gradients."""
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        return torch.inf
    actual, expected = (torch.cat([values[name].flatten() for name in second]) for values in (first, second))
    assert expected.norm() > 0
    return float((actual - expected).norm() / expected.norm())


def assert_all_differ(gradients):
    for number, first in enumerate(gradients):
        for second in gradients[:number]:
            assert relative_difference(first, second) > 1e-3


def test_every_field_is_covered():
    assert set(OBJECTIVE) | {"initial_mask_ratio"} == {field.name for field in dataclasses.fields(ObjectiveConfig)}
    assert set(DISCRIMINATOR) | PHASES == {field.name for field in dataclasses.fields(DiscriminatorSettings)}


@pytest.mark.slow
@pytest.mark.parametrize("field", OBJECTIVE)
def test_every_field_of_the_objective_changes_the_gradient_of_the_student(observe_and_check, field):
    runs = [observe_and_check(changed("objective", **settings))[1] for settings in OBJECTIVE[field]]
    assert_all_differ([run.of("student")[0].gradient for run in runs])


@pytest.mark.slow
def test_the_initial_mask_ratio_changes_the_gradient_of_the_student(observe_and_check):
    base = replace(BASE, discriminator=replace(BASE.discriminator, guidance_steps=0))
    values = [WHOLE | {"moves": 1, "initial_mask_ratio": ratio} for ratio in (1.0, 0.25, 0.75)]
    configs = [replace(base, objective=replace(BASE.objective, **changes)) for changes in values]
    assert_all_differ([observe_and_check(config)[1].of("student")[0].gradient for config in configs])


@pytest.mark.slow
@pytest.mark.parametrize("field", DISCRIMINATOR)
def test_every_field_of_the_discriminators_settings_changes_the_gradients(observe_and_check, field):
    step, network, values = DISCRIMINATOR[field]
    runs = [observe_and_check(changed("discriminator", **settings), step)[1] for settings in values]
    for name in ("student", "discriminator") if network == "both" else (network,):
        assert_all_differ([run.of(name)[-1].gradient for run in runs])


@pytest.mark.parametrize(
    ("settings", "step", "networks"),
    [
        ({"warmup_steps": 0}, 0, ["discriminator", "student"]),
        ({"warmup_steps": 1}, 0, ["discriminator"]),
        ({"warmup_steps": 1}, 1, ["discriminator", "student"]),
        ({"warmup_steps": 2}, 1, ["discriminator"]),
        ({"warmup_steps": 1}, 2, ["discriminator", "student"]),
        ({"warmup_steps": 1}, 3, ["discriminator"]),
        ({"warmup_steps": 2}, 3, ["discriminator", "student"]),
        ({"warmup_steps": 2, "guidance_steps": 5}, 8, ["discriminator"]),
        ({"warmup_steps": 1, "steps_per_student_step": 2}, 0, ["discriminator"] * 2),
    ],
)
def test_each_phase_trains_its_networks(observe_and_check, settings, step, networks):
    config = changed("discriminator", **settings)
    _, observed = observe_and_check(config, step)
    assert [update.network for update in observed.updates] == networks
    assert observed.num_steps == config.discriminator.warmup_steps + 2 + config.discriminator.guidance_steps


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (
            WARMUP,
            {"objective": PATH | {"completions": 3}, "discriminator": {"completions": 2}},
        ),
        (WARMUP, {"discriminator": {"steps_per_student_step": 3}, "objective": {"coupled_time": False}}),
        (STUDENT, {"objective": {"coupled_time": False, "corruptions": 2, "revealed_only": True}}),
        (WARMUP, {"objective": {"trajectory": "one-step"}}),
        (WARMUP, {"objective": PATH, "discriminator": {"warmup_moves": 3}}),
        (STUDENT, {"objective": {"trajectory": "one-step", "divergence": "jeffreys"}}),
        (
            STUDENT,
            {"objective": PATH | {"completions": 3}, "discriminator": {"completions": 2}},
        ),
        (
            STUDENT,
            {
                "objective": WHOLE | {"reward_time": "both", "corruptions": 2, "advantage": "batch"},
                "discriminator": {"steps_per_student_step": 3, "fresh_rollouts": True, "output": "sequence"},
            },
        ),
        (
            STUDENT,
            {
                "objective": BRANCHES | {"reward_time": "both", "corruptions": 2},
                "discriminator": {"steps_per_student_step": 2, "fresh_rollouts": True, "completions": 2},
            },
        ),
        (WARMUP, {"objective": BRANCHES}),
        (STUDENT, {"objective": BRANCHES | {"moves": None, "budgets": (2, 5)}}),
        (WARMUP, {"objective": WHOLE, "discriminator": {"steps_per_student_step": 2}}),
        (WARMUP, {"objective": BUDGETS, "discriminator": {"steps_per_student_step": 2, "fresh_rollouts": True}}),
        (STUDENT, {"objective": BUDGETS | {"reward_time": "both"}, "discriminator": {"steps_per_student_step": 2}}),
        (GUIDANCE, {"objective": BUDGETS, "discriminator": {"guidance_nfe": 5}}),
        (GUIDANCE, {"objective": BUDGETS | {"budget_conditioning": False}, "discriminator": {"trainable_blocks": 1}}),
        (WARMUP, {"discriminator": {"steps_per_student_step": 2, "fresh_rollouts": True, "completions": 1}}),
        (STUDENT, {"discriminator": {"unsmooth": True, "output": "sequence", "label_smoothing": 0.2}}),
        (STUDENT, {"discriminator": {"real_source": "teacher-steps=2", "steps_per_student_step": 3}}),
        (GUIDANCE, {"objective": {"advantage": "rows", "completions": 1, "group_size": 2}}),
        (GUIDANCE, {"discriminator": {"is_time_conditioned": False, "label_smoothing": 0.3, "trainable_blocks": 1}}),
    ],
)
def test_the_gradients_of_combined_settings_equal_the_rebuilt_ones(observe_and_check, step, changes):
    observe_and_check(
        replace(BASE, **{part: replace(getattr(BASE, part), **new) for part, new in changes.items()}), step
    )


@pytest.mark.parametrize("trajectory", ["one-step", "two-moves"])
def test_the_gradients_of_networks_that_read_the_noise_level_equal_the_rebuilt_ones(
    observe_and_check, make_dit, trajectory
):
    bundle = Bundle(teacher=make_dit(vocab_size=33, length=8, seed=1, is_time_conditioned=True))
    # With uncoupled times, the noise level of the divergence and that of the rewards differ.
    observe_and_check(changed("objective", coupled_time=False, trajectory=trajectory), bundle=bundle)


@pytest.mark.parametrize("schedule", ["cosine", "geometric"])
def test_the_gradients_for_other_schedules_equal_the_rebuilt_ones(observe_and_check, teacher, schedule):
    bundle = replace(teacher, process=Absorbing(32, schedule_from_name(schedule)))
    observe_and_check(changed("objective", weight="nelbo"), bundle=bundle)


@pytest.mark.parametrize("step", [WARMUP, STUDENT], ids=["warm-up", "student"])
def test_micro_batches_are_averaged(observe_and_check, step):
    _, one = observe_and_check(BASE, step)
    _, two = observe_and_check(replace(BASE, loop=replace(BASE.loop, accumulation=2)), step)
    assert [update.network for update in two.updates] == [update.network for update in one.updates]
    assert_all_differ([run.of("discriminator")[0].gradient for run in (one, two)])


def test_rewards_come_from_the_discriminator_after_its_update(observe_and_check):
    inputs, observed = observe_and_check(BASE)
    student, discriminator = observed.before["student"], observed.before["discriminator"]
    batch = rebuilt_rollout(inputs, STUDENT, student)
    rewards = rebuilt_rewards(inputs, batch, discriminator)
    assert rewards.std() > 0.05  # so that advantages are not rounding errors
    rebuilt_student_loss(inputs, batch, discriminator, observed.before["teacher"]).backward()
    stale = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert relative_difference(observed.of("student")[0].gradient, stale) > 1e-2


# Direct checks of single settings of the rollout, which test_rollout.py tests.


@pytest.fixture(scope="module")
def roll(source, teacher):
    def make(**settings):
        config = replace(changed("objective", **settings), loop=LoopConfig(batch_size=400))
        return rebuilt_rollout(Inputs(config, source, teacher), STUDENT, teacher.teacher)

    return make


@pytest.mark.parametrize("moves", [3, 4])
def test_a_path_has_the_configured_number_of_moves(roll, moves):
    batch = roll(trajectory="path", moves=moves)
    starts = 1 - torch.arange(moves, dtype=torch.float64) / moves
    torch.testing.assert_close(batch.tau.unique(), starts.flip(0))
    assert (batch.t <= batch.tau).all()
    assert (batch.t >= batch.tau - 1 / moves).all()


@pytest.mark.parametrize("is_coupled", [True, False])
def test_coupled_times_are_equal(roll, is_coupled):
    batch = roll(coupled_time=is_coupled)
    assert torch.equal(batch.t, batch.tau) == is_coupled


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (4.0, 1.0), (1.0, 4.0)])
def test_times_have_the_mean_of_their_beta_distribution(roll, a, b):
    batch = roll(time_a=a, time_b=b)
    assert float(batch.t.mean()) == pytest.approx(a / (a + b), abs=0.06)  # 4 standard errors of 400 draws


def test_a_rollout_has_the_configured_completions_and_corruptions(roll):
    batch = roll(completions=3, corruptions=2)
    assert batch.x.shape == (400, 3, 8)
    assert batch.z_t.shape == (400, 3, 2, 8)
