"""The tests that each module's mutants are tried against, quickest to fail first, and the mutations with a name."""

OBJECTIVES = ["tests/objectives"]
WIRING = ["tests/training/test_wiring.py", "tests/training/test_wiring_optimizers.py"]
GOLDEN = ["tests/golden"]
TESTS = {
    "didi/objectives/didi": [*OBJECTIVES, WIRING[0]],
    "didi/diffusion/absorbing": ["tests/diffusion"],
    "didi/methods/didi": ["tests/training/test_didi_figures.py", *WIRING, "tests/training/test_distill.py", *GOLDEN],
    "didi/methods/rollout": ["tests/training/test_rollout.py", WIRING[0], *GOLDEN],
    "didi/sampling/guided": [
        "tests/sampling/test_guided_settings.py",
        "tests/sampling/test_guided.py",
        "tests/sampling/test_canvas.py",
        *GOLDEN,
    ],
    "didi/diffusion/canvas": ["tests/diffusion", "tests/sampling/test_canvas.py"],
    "didi/diffusion/categorical": ["tests/diffusion"],
    "didi/diffusion/noise": ["tests/diffusion"],
    "didi/diffusion/process": ["tests/diffusion"],
    "didi/diffusion/schedule": ["tests/diffusion"],
    "didi/diffusion/uniform": ["tests/diffusion"],
    "didi/methods/elbo": ["tests/training/test_pretrain.py", *GOLDEN],
    "didi/methods/real_source": ["tests/training/test_distill.py", WIRING[0], *GOLDEN],
    "didi/methods/didi_networks": [*WIRING, "tests/training/test_distill.py", *GOLDEN],
    "didi/methods/didi_settings": ["tests/training/test_distill_options.py", *WIRING, "tests/training/test_recipes.py"],
    "didi/methods/settings": [WIRING[1], "tests/training/test_recipes.py", "tests/training/test_pretrain.py"],
}

# Mistakes in didi/methods/didi.py, each made alone: `python benchmarks/mutants.py --named` shows that all are noticed.
NAMED = {
    "sign of the policy gradient": ("return policy + regulariser,", "return -policy + regulariser,"),
    "sign of the divergence": (
        "loss = loss + objective.divergence_weight *",
        "loss = loss - objective.divergence_weight *",
    ),
    "sign of the entropy bonus": ("loss = -objective.entropy_weight *", "loss = objective.entropy_weight *"),
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
        "rewards = log_density_ratio(logits, self.process.is_predicted(states), reduction=objective.reward_reduction)",
        "rewards = log_density_ratio(logits, self.process.is_predicted(states))",
    ),
}
