"""The tests for the mutants of each module, those most likely to fail first, and the named mutations.

Tests of golden figures are left out: they show that a figure changed, not that it is wrong.
"""

DIFFUSION, TRAINING, SAMPLING = "tests/diffusion/", "tests/training/", "tests/sampling/"
WIRING = f"{TRAINING}test_wiring.py"
WIRING_OPTIMIZERS = f"{TRAINING}test_wiring_optimizers.py"
SETTINGS = f"{TRAINING}test_settings.py"
RECORDS = f"{SETTINGS}::test_no_field_of_a_record_changes"
OPTIONS = f"{TRAINING}test_distill_options.py"
DISTILL = f"{TRAINING}test_distill.py"
PRETRAIN = f"{TRAINING}test_pretrain.py"
ABSORBING = [f"{DIFFUSION}test_absorbing.py", f"{DIFFUSION}test_absorbing_bound.py", f"{DIFFUSION}test_process.py"]
TESTS = {
    "didi/objectives/didi": ["tests/objectives", WIRING],
    "didi/diffusion/absorbing": [*ABSORBING, f"{DIFFUSION}test_uniform.py", RECORDS],
    "didi/diffusion/canvas": [
        f"{SAMPLING}test_canvas.py::test_the_methods_of_a_canvas_keep_its_three_parts_together",
        f"{DIFFUSION}test_process.py",
        f"{SAMPLING}test_canvas.py",
        RECORDS,
    ],
    "didi/diffusion/categorical": [f"{DIFFUSION}test_categorical.py", RECORDS],
    "didi/diffusion/gaussian": [f"{DIFFUSION}test_gaussian.py", f"{TRAINING}test_duo.py", RECORDS],
    "didi/diffusion/noise": [f"{DIFFUSION}test_noise.py", RECORDS],
    "didi/diffusion/process": [f"{DIFFUSION}test_process.py", SETTINGS],
    "didi/diffusion/schedule": [f"{DIFFUSION}test_schedule.py", *ABSORBING, RECORDS],
    "didi/diffusion/uniform": [f"{DIFFUSION}test_process.py", f"{DIFFUSION}test_uniform.py", RECORDS],
    "didi/methods/base": [SETTINGS, f"{TRAINING}test_didi_figures.py", WIRING, PRETRAIN],
    "didi/methods/didi": [WIRING, f"{TRAINING}test_didi_figures.py", WIRING_OPTIMIZERS, OPTIONS, DISTILL, RECORDS],
    "didi/methods/didi_networks": [WIRING, WIRING_OPTIMIZERS, OPTIONS, DISTILL],
    "didi/methods/didi_settings": [
        SETTINGS,
        f"{OPTIONS}::test_invalid_settings_are_refused_before_the_first_step",
        "tests/apps/test_train_options.py",
        WIRING,
    ],
    "didi/methods/duo": [f"{TRAINING}test_duo.py", "tests/apps/test_train_options.py", RECORDS],
    "didi/methods/elbo": [SETTINGS, PRETRAIN, WIRING_OPTIMIZERS],
    "didi/methods/real_source": [
        f"{WIRING}::test_the_discriminators_settings_reach_the_gradients",
        f"{WIRING}::test_micro_batches_are_averaged",
        OPTIONS,
        WIRING,
        DISTILL,
    ],
    "didi/methods/regularisation": [WIRING, OPTIONS, DISTILL],
    "didi/methods/rollout": [f"{TRAINING}test_rollout.py", WIRING, RECORDS],
    "didi/methods/settings": [SETTINGS, f"{TRAINING}test_recipes.py", PRETRAIN],
    "didi/sampling/guided": [
        f"{SAMPLING}test_guided_settings.py",
        f"{SAMPLING}test_guided.py",
        f"{SAMPLING}test_canvas.py",
        RECORDS,
    ],
}

# Mistakes by module; `python benchmarks/mutants.py --named` makes each alone and checks that tests fail.
NAMED = {
    "didi/methods/didi": {
        "sign of the policy gradient": ("return policy + regulariser,", "return -policy + regulariser,"),
        "omega(t) ignored": (
            "weights = objective.time_weights(",
            'weights = __import__("dataclasses").replace(objective, weight="constant").time_weights(',
        ),
        "importance weights ignored": (
            "weights = objective.time_weights(",
            'weights = __import__("dataclasses").replace(objective, importance_weighting=False).time_weights(',
        ),
        "token-mean ignored": ('if objective.pg_reduction == "token-mean":', "if False:"),
        "un-smoothing ignored": ("if settings.unsmooth:", "if False:"),
        "reward reduction ignored": (
            "log_density_ratio(logits, is_masked, reduction=reduction, attention_mask=mask)",
            "log_density_ratio(logits, is_masked, attention_mask=mask)",
        ),
    },
    "didi/methods/regularisation": {
        "sign of the divergence": (
            "loss + objective.divergence_weight *",
            "loss - objective.divergence_weight *",
        ),
        "sign of the entropy bonus": ("loss = -objective.entropy_weight *", "loss = objective.entropy_weight *"),
    },
}
