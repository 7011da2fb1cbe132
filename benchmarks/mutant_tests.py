"""The tests for the mutants of each module, those most likely to fail first, and the named mutations.

Tests of golden figures are left out: they show that a figure changed, not that it is wrong.
"""

DIFFUSION, TRAINING, SAMPLING = "tests/diffusion/", "tests/training/", "tests/sampling/"
OBJECTIVES, EVALUATION = "tests/objectives/", "tests/evaluation/"
WIRING = f"{TRAINING}test_wiring.py"
WIRING_OPTIMIZERS = f"{TRAINING}test_wiring_optimizers.py"
SETTINGS = f"{TRAINING}test_settings.py"
RECORDS = f"{SETTINGS}::test_all_dataclasses_are_frozen"
OPTIONS = f"{TRAINING}test_distill_options.py"
DISTILL = f"{TRAINING}test_distill.py"
PRETRAIN = f"{TRAINING}test_pretrain.py"
ABSORBING = [f"{DIFFUSION}test_absorbing.py", f"{DIFFUSION}test_absorbing_bound.py", f"{DIFFUSION}test_process.py"]
PATHS = [f"{OBJECTIVES}test_whole_path.py", f"{OBJECTIVES}test_uniform_path.py", f"{OBJECTIVES}test_reference.py"]
PADDED = f"{TRAINING}test_padded_distill.py"
OTHER_TEACHERS = f"{TRAINING}test_other_teachers.py"
START = f"{TRAINING}test_start.py"
POSITIONWISE = f"{SAMPLING}test_positionwise.py"
CANVAS = f"{SAMPLING}test_canvas.py"
EXACT = f"{EVALUATION}test_exact.py"
TESTS = {
    "didi/objectives/dcd": [f"{OBJECTIVES}test_dcd.py"],
    "didi/objectives/didi": ["tests/objectives", WIRING],
    "didi/objectives/dimo": [f"{OBJECTIVES}test_dimo.py"],
    "didi/objectives/mmd": [f"{OBJECTIVES}test_mmd.py"],
    "didi/objectives/sdtt": [f"{OBJECTIVES}test_sdtt.py"],
    "didi/diffusion/absorbing": [*ABSORBING, f"{DIFFUSION}test_uniform.py", f"{DIFFUSION}test_score.py", RECORDS],
    "didi/diffusion/canvas": [
        f"{SAMPLING}test_canvas.py::test_the_methods_of_a_canvas_keep_its_three_parts_together",
        f"{DIFFUSION}test_process.py",
        f"{SAMPLING}test_canvas.py",
        RECORDS,
    ],
    "didi/diffusion/categorical": [f"{DIFFUSION}test_categorical.py", RECORDS],
    "didi/diffusion/fixed_masks": [f"{DIFFUSION}test_fixed_masks.py"],
    "didi/diffusion/gaussian": [f"{DIFFUSION}test_gaussian.py", f"{TRAINING}test_duo.py", RECORDS],
    "didi/diffusion/noise": [f"{DIFFUSION}test_noise.py", RECORDS],
    "didi/diffusion/process": [f"{DIFFUSION}test_process.py", SETTINGS],
    "didi/diffusion/rowwise": [
        f"{DIFFUSION}test_rowwise.py",
        f"{OBJECTIVES}test_dcd.py",
    ],
    "didi/diffusion/schedule": [f"{DIFFUSION}test_schedule.py", *ABSORBING, RECORDS],
    "didi/diffusion/score": [
        f"{DIFFUSION}test_score.py",
        f"{DIFFUSION}test_score_bound.py",
        f"{DIFFUSION}test_process.py",
        POSITIONWISE,
        RECORDS,
    ],
    "didi/diffusion/uniform": [
        f"{DIFFUSION}test_process.py",
        f"{DIFFUSION}test_uniform.py",
        f"{DIFFUSION}test_score_bound.py",
        RECORDS,
    ],
    "didi/diffusion/uniform_moves": [
        f"{DIFFUSION}test_uniform_moves.py",
        f"{SAMPLING}test_uniform_ancestral.py",
    ],
    "didi/evaluation/joint": [f"{EVALUATION}test_joint.py"],
    "didi/evaluation/joint_chain": [f"{EVALUATION}test_joint.py"],
    "didi/evaluation/exact/divergences": [EXACT, RECORDS],
    "didi/evaluation/exact/guided": [EXACT],
    "didi/evaluation/exact/latent": [f"{SAMPLING}test_latent.py"],
    "didi/evaluation/exact/limit": [EXACT, RECORDS],
    "didi/evaluation/exact/one_step": [f"{EVALUATION}test_exact_one_step.py", f"{SAMPLING}test_one_step.py"],
    "didi/evaluation/exact/product": [f"{OBJECTIVES}test_uniform_path.py", POSITIONWISE],
    "didi/evaluation/exact/sampler": [f"{EVALUATION}test_exact_states.py", EXACT],
    "didi/evaluation/exact/sdtt": [f"{OBJECTIVES}test_sdtt.py"],
    "didi/evaluation/exact/states": [f"{EVALUATION}test_exact_states.py", EXACT, RECORDS],
    "didi/evaluation/exact/uniform_guided": [f"{SAMPLING}test_uniform_guided.py"],
    "didi/methods/base": [SETTINGS, f"{TRAINING}test_didi_metrics.py", WIRING, PRETRAIN],
    "didi/methods/dcd": [f"{TRAINING}test_dcd.py", RECORDS],
    "didi/methods/didi": [
        WIRING,
        f"{TRAINING}test_didi_metrics.py",
        WIRING_OPTIMIZERS,
        OPTIONS,
        f"{TRAINING}test_reference.py",
        f"{TRAINING}test_budgets.py",
        f"{TRAINING}test_real_source.py",
        START,
        PADDED,
        OTHER_TEACHERS,
        DISTILL,
        RECORDS,
    ],
    "didi/methods/didi_networks": [WIRING, WIRING_OPTIMIZERS, OPTIONS, START, PADDED, OTHER_TEACHERS, DISTILL],
    "didi/methods/didi_settings": [
        SETTINGS,
        f"{OPTIONS}::test_invalid_settings_are_refused_before_the_first_step",
        "tests/apps/test_train_options.py",
        WIRING,
    ],
    "didi/methods/dimo": [f"{TRAINING}test_dimo.py", RECORDS],
    "didi/methods/discriminator_step": [
        f"{WIRING}::test_every_field_of_the_discriminators_settings_changes_the_gradients",
        f"{PADDED}::test_the_discriminators_gradient_is_that_of_the_proteins_alone",
        f"{TRAINING}test_didi_metrics.py",
        f"{WIRING}::test_the_gradients_of_networks_that_read_the_noise_level_equal_the_rebuilt_ones",
    ],
    "didi/methods/duo": [f"{TRAINING}test_duo.py", "tests/apps/test_train_options.py", RECORDS],
    "didi/methods/elbo": [SETTINGS, PRETRAIN, WIRING_OPTIMIZERS, f"{TRAINING}test_start_pretrain.py"],
    "didi/methods/masked_moves": [
        f"{OBJECTIVES}test_whole_path.py",
        f"{OBJECTIVES}test_latent_path.py",
        f"{PADDED}::test_paths_of_a_batch_equal_those_of_each_protein_alone",
        f"{OBJECTIVES}test_reference.py",
        RECORDS,
    ],
    "didi/methods/mmd": [f"{TRAINING}test_mmd.py", RECORDS],
    "didi/methods/real_source": [
        f"{WIRING}::test_every_field_of_the_discriminators_settings_changes_the_gradients",
        f"{WIRING}::test_micro_batches_are_averaged",
        f"{TRAINING}test_real_source.py",
        OPTIONS,
        WIRING,
        DISTILL,
    ],
    "didi/methods/regularisation": [
        f"{TRAINING}test_didi_metrics.py",
        f"{WIRING}::test_every_field_of_the_objective_changes_the_gradient_of_the_student",
        f"{PADDED}::test_the_teachers_first_log_probs_are_computed_anew_for_the_lengths_of_each_step",
        f"{WIRING}::test_the_gradients_of_combined_settings_equal_the_rebuilt_ones",
        OPTIONS,
    ],
    "didi/methods/rollout": [f"{TRAINING}test_rollout.py", WIRING, RECORDS],
    "didi/methods/sdtt": [f"{TRAINING}test_sdtt.py", f"{OBJECTIVES}test_sdtt.py", RECORDS],
    "didi/methods/settings": [SETTINGS, f"{TRAINING}test_recipes.py", PRETRAIN, START, "tests/data/test_blocks.py"],
    "didi/methods/uniform_moves": [
        f"{OBJECTIVES}test_uniform_path.py",
        f"{OTHER_TEACHERS}::test_guidance_states_are_those_of_the_finished_students_sampler",
        f"{OBJECTIVES}test_reference.py",
        RECORDS,
    ],
    "didi/methods/whole_path": [
        *PATHS,
        f"{WIRING}::test_every_field_of_the_objective_changes_the_gradient_of_the_student",
        f"{WIRING}::test_a_path_has_the_configured_number_of_moves",
        f"{TRAINING}test_reference.py",
    ],
    "didi/sampling/ancestral": [f"{SAMPLING}test_ancestral.py", f"{SAMPLING}test_latent.py", CANVAS, RECORDS],
    "didi/sampling/confidence": [f"{SAMPLING}test_confidence.py", CANVAS, RECORDS],
    "didi/sampling/entropy_bounded": [f"{SAMPLING}test_entropy_bounded.py", CANVAS, RECORDS],
    "didi/sampling/first_hitting": [f"{SAMPLING}test_first_hitting.py", CANVAS, RECORDS],
    "didi/sampling/guided": [
        f"{SAMPLING}test_guided_settings.py",
        f"{SAMPLING}test_guided.py",
        f"{SAMPLING}test_canvas.py",
        RECORDS,
    ],
    "didi/sampling/latent": [f"{SAMPLING}test_latent.py"],
    "didi/sampling/remasking": [f"{SAMPLING}test_remasking.py", CANVAS, RECORDS],
    "didi/sampling/score": [POSITIONWISE, f"{DIFFUSION}test_score.py", CANVAS, RECORDS],
    "didi/sampling/uniform_ancestral": [
        f"{SAMPLING}test_uniform_ancestral.py",
        POSITIONWISE,
        CANVAS,
        f"{SAMPLING}test_uniform_guided.py",
        RECORDS,
    ],
    "didi/sampling/uniform_guided": [f"{SAMPLING}test_uniform_guided.py", CANVAS, RECORDS],
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
