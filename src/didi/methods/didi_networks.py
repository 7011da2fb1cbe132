"""Student and discriminator that a run starts from, and which settings the process allows."""

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
    """Student and discriminator: copies of the teacher, adapters on its weights, or those of ``settings.start``."""
    of_student = of_discriminator = teacher
    if settings.objective.budgets:
        torch.manual_seed(derive_seed(settings.seed, "budget-map"))
        of_discriminator = budget_conditioned(teacher)
        of_student = of_discriminator if settings.objective.budget_conditioning else teacher
    if num_codes := settings.objective.latent_codes:
        torch.manual_seed(derive_seed(settings.seed, "latent-codes"))
        of_student = latent_conditioned(of_student, num_codes, settings.objective.latent_scale)
    torch.manual_seed(derive_seed(settings.seed, "discriminator-head"))
    num_blocks, rank = settings.discriminator.trainable_blocks, settings.lora_rank
    discriminator = Discriminator.from_denoiser(
        of_discriminator,
        output=settings.discriminator.output,
        is_time_conditioned=settings.discriminator.is_time_conditioned,
        shares_trunk=rank is not None,
    ).to(next(teacher.parameters()).device)
    if settings.objective.budgets and not isinstance(discriminator.trunk, DiTTrunk):
        kind = type(discriminator.trunk).__name__
        raise UsageError(
            f"objective.budgets need a discriminator on a DiTTrunk, which reads them; got {kind}: leave them out"
        )
    if rank is None:
        discriminator.train_last_blocks(num_blocks)
        student = copy.deepcopy(of_student).requires_grad_(True)
        if settings.start:
            _load_start(settings, student, discriminator)
        return student, discriminator
    student = copy_sharing_frozen(teacher)
    torch.manual_seed(derive_seed(settings.seed, "adapters"))
    adapt(discriminator, rank, num_blocks)
    adapt(student, rank)
    return student, discriminator


def _load_start(settings: DistillConfig, student: DenoiserNetwork, discriminator: Discriminator) -> None:
    """Give the networks the weights of a bundle; one without a discriminator leaves it as it is."""
    name, own = settings.start, settings.objective.initial_state or MASKS
    try:
        bundle = load(name)
    except UsageError as error:
        raise UsageError(f"start, which a resumed run needs too: {error}") from error
    if bundle.student is None:
        held = ", ".join(bundle.networks())
        raise UsageError(f"start names a bundle with a student; {name} holds {held}: take it as teacher instead")
    other = bundle.initial_state or MASKS
    if other.noise_std:
        raise UsageError(
            f"start names a student without noise in its embeddings, which DiDi-Instruct does not have; that of {name} "
            f"has noise_std {other.noise_std:g}: name another start"
        )
    if other != own:
        raise UsageError(
            f"the student of start is trained from its own initial state; that of {name} has mask_ratio "
            f"{other.mask_ratio:g}, this run {own.mask_ratio:g}: set objective.initial_mask_ratio to that, or name "
            "another start"
        )
    for role, found, network in (
        ("student", bundle.student, student),
        ("discriminator", bundle.discriminator, discriminator),
    ):
        if found is None:
            continue
        theirs, ours = asdict(cast(Any, found).config), asdict(network.config)
        if differing := [
            f"{key} {theirs.get(key)}, not {value}" for key, value in ours.items() if theirs.get(key) != value
        ]:
            raise UsageError(
                f"the networks of start have the shape of this run's; the {role} of {name} has {'; '.join(differing)}: "
                "set teacher, discriminator and objective as in that run"
            )
        network.load_state_dict(found.state_dict())


def check_objective(settings: DistillConfig, process: Process) -> None:
    """Refuse settings that are about masks where the process has none.

    Raises:
        UsageError: trajectories are other than whole paths, or start from a share of masks.
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
    if (found := settings.objective.trajectory) != "whole-path":
        raise UsageError(
            f"objective.trajectory is whole-path for a teacher of {process.name} diffusion, which has no [MASK]; got "
            f"{found}: set it to whole-path, or distil a masked teacher"
        )


def check_lengths(settings: DistillConfig) -> None:
    """Refuse settings that sequences of different lengths do not go with.

    Raises:
        UsageError: the real side is not the corpus, or a student starts from random tokens.
    """
    if (found := settings.discriminator.real_source) != "corpus":
        raise UsageError(
            f"discriminator.real_source is corpus for sequences of different lengths, as those of "
            f"{settings.data.corpus}; got {found}: set it to corpus"
        )
    if (ratio := settings.objective.initial_mask_ratio) < 1:
        raise UsageError(
            f"objective.initial_mask_ratio is 1 for sequences of different lengths, as those of "
            f"{settings.data.corpus}; got {ratio:g}: leave it out"
        )
