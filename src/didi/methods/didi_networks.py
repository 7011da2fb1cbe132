"""Initial student and discriminator of a run, and checks of its settings against the process and the data."""

import copy
from dataclasses import asdict
from typing import Any, cast

import torch

from didi.diffusion import Process
from didi.diffusion.noise import derive_seed
from didi.errors import UsageError
from didi.methods.didi_settings import DistillConfig
from didi.models.adapters import adapt, copy_sharing_frozen
from didi.models.bundle import load
from didi.models.conditioning import budget_conditioned, latent_conditioned
from didi.models.discriminator import Discriminator
from didi.models.dit import DiTTrunk
from didi.models.initial_state import MASKS
from didi.models.networks import DenoiserNetwork


def initial_networks(settings: DistillConfig, teacher: DenoiserNetwork) -> tuple[DenoiserNetwork, Discriminator]:
    """Student and discriminator: copies of the teacher, adapters on its weights, or those of ``settings.start``.

    Raises:
        UsageError: there are budgets and the teacher cannot be conditioned on them, or the networks of the start do not
            fit.
    """
    student_base = discriminator_base = teacher
    if settings.objective.budgets:
        torch.manual_seed(derive_seed(settings.seed, "budget-map"))
        discriminator_base = budget_conditioned(teacher)
        student_base = discriminator_base if settings.objective.budget_conditioning else teacher
    if num_codes := settings.objective.latent_codes:
        torch.manual_seed(derive_seed(settings.seed, "latent-codes"))
        student_base = latent_conditioned(student_base, num_codes, settings.objective.latent_scale)
    torch.manual_seed(derive_seed(settings.seed, "discriminator-head"))
    num_blocks, rank = settings.discriminator.trainable_blocks, settings.lora_rank
    discriminator = Discriminator.from_denoiser(
        discriminator_base,
        output=settings.discriminator.output,
        is_time_conditioned=settings.discriminator.is_time_conditioned,
        shares_trunk=rank is not None,
    ).to(next(teacher.parameters()).device)
    if settings.objective.budgets and not isinstance(discriminator.trunk, DiTTrunk):
        kind = type(discriminator.trunk).__name__
        raise UsageError(
            f"objective.budgets need a teacher whose trunk is a DiTTrunk; got {kind}: leave objective.budgets out"
        )
    if rank is None:
        discriminator.train_last_blocks(num_blocks)
        student = copy.deepcopy(student_base).requires_grad_(True)
        if settings.start:
            _load_start(settings, student, discriminator)
        return student, discriminator
    student = copy_sharing_frozen(teacher)
    torch.manual_seed(derive_seed(settings.seed, "adapters"))
    adapt(discriminator, rank, num_blocks)
    adapt(student, rank)
    return student, discriminator


def _load_start(settings: DistillConfig, student: DenoiserNetwork, discriminator: Discriminator) -> None:
    """Load the weights of the bundle ``settings.start``; without a discriminator there, this one is unchanged."""
    name, initial_state = settings.start, settings.objective.initial_state or MASKS
    try:
        bundle = load(name)
    except UsageError as error:
        raise UsageError(f"start, which a resumed run needs too: {error}") from error
    if bundle.student is None:
        roles = ", ".join(bundle.networks())
        raise UsageError(f"start names a bundle with a student; {name} holds {roles}: take it as teacher instead")
    start_state = bundle.initial_state or MASKS
    if start_state.noise_std:
        raise UsageError(
            f"start names a student without embedding noise, which DiDi-Instruct does not support; the student of "
            f"{name} has noise_std {start_state.noise_std:g}: name another start"
        )
    if start_state != initial_state:
        raise UsageError(
            f"the student of start has the initial state of the run; the student of {name} has mask_ratio "
            f"{start_state.mask_ratio:g}, this run {initial_state.mask_ratio:g}: set objective.initial_mask_ratio to "
            f"{start_state.mask_ratio:g}, or name another start"
        )
    for role, source, network in (
        ("student", bundle.student, student),
        ("discriminator", bundle.discriminator, discriminator),
    ):
        if source is None:
            continue
        source_config, config = asdict(cast(Any, source).config), asdict(network.config)
        if differing := [
            f"{key} {source_config.get(key)}, not {value}"
            for key, value in config.items()
            if source_config.get(key) != value
        ]:
            raise UsageError(
                f"the networks of start have the shapes of this run's networks; the {role} of {name} has "
                f"{'; '.join(differing)}: "
                "set teacher, discriminator and objective as in that run"
            )
        network.load_state_dict(source.state_dict())


def check_objective(settings: DistillConfig, process: Process) -> None:
    """Refuse settings that need [MASK] if the process has no [MASK].

    Raises:
        UsageError: trajectories are not whole paths, or ``initial_mask_ratio`` or ``latent_codes`` are set.
    """
    if process.mask_id is not None:
        return
    if (ratio := settings.objective.initial_mask_ratio) < 1:
        raise UsageError(
            f"objective.initial_mask_ratio is 1 for a teacher of {process.name} diffusion, which has no [MASK]; got "
            f"{ratio:g}: leave it out, or distil a masked teacher"
        )
    if num_codes := settings.objective.latent_codes:
        raise UsageError(
            f"objective.latent_codes is 0 for a teacher of {process.name} diffusion, whose moves start from random "
            f"tokens; got {num_codes}: leave it out, or distil a masked teacher"
        )
    if (trajectory := settings.objective.trajectory) != "whole-path":
        raise UsageError(
            f"objective.trajectory is whole-path for a teacher of {process.name} diffusion, which has no [MASK]; got "
            f"{trajectory}: set it to whole-path, or distil a masked teacher"
        )


def check_lengths(settings: DistillConfig) -> None:
    """Refuse settings that do not support sequences of different lengths.

    Raises:
        UsageError: real samples are not those of the corpus, or a student starts from random tokens.
    """
    if (real_source := settings.discriminator.real_source) != "corpus":
        raise UsageError(
            f"discriminator.real_source is corpus for sequences of different lengths, such as those of "
            f"{settings.data.corpus}; got {real_source}: set it to corpus"
        )
    if (ratio := settings.objective.initial_mask_ratio) < 1:
        raise UsageError(
            f"objective.initial_mask_ratio is 1 for sequences of different lengths, such as those of "
            f"{settings.data.corpus}; got {ratio:g}: leave it out"
        )
