"""Student and discriminator that a run starts from, and checks that all fits together."""

import copy
from dataclasses import asdict
from typing import Any, cast

import torch

from didi.data.source import Source
from didi.diffusion import Process
from didi.diffusion.noise import derive_seed
from didi.errors import UsageError
from didi.methods.didi_settings import DistillConfig
from didi.models.adapters import adapt, copy_sharing_frozen
from didi.models.bundle import load
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT, DiTTrunk, budget_conditioned


def initial_networks(settings: DistillConfig, teacher: DiT) -> tuple[DiT, Discriminator]:
    """Student and discriminator: copies of the teacher, adapters on its weights, or those of ``settings.start``."""
    of_student = of_discriminator = teacher
    if settings.objective.budgets:
        torch.manual_seed(derive_seed(settings.seed, "budget-map"))
        of_discriminator = budget_conditioned(teacher)
        of_student = of_discriminator if settings.objective.budget_conditioning else teacher
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
            _load_start(settings.start, student, discriminator)
        return student, discriminator
    student = copy_sharing_frozen(teacher)
    torch.manual_seed(derive_seed(settings.seed, "adapters"))
    adapt(discriminator, rank, num_blocks)
    adapt(student, rank)
    return student, discriminator


def _load_start(name: str, student: DiT, discriminator: Discriminator) -> None:
    """Give both networks the weights of a bundle."""
    try:
        bundle = load(name)
    except UsageError as error:
        raise UsageError(f"start, which a resumed run needs too: {error}") from error
    for role, network in (("student", student), ("discriminator", discriminator)):
        found = bundle.networks().get(role)
        if found is None:
            held = ", ".join(bundle.networks())
            raise UsageError(f"start names a bundle with a student and a discriminator; {name} holds {held}")
        theirs, ours = asdict(cast(Any, found).config), asdict(network.config)
        if differing := [
            f"{key} {theirs.get(key)}, not {value}" for key, value in ours.items() if theirs.get(key) != value
        ]:
            raise UsageError(
                f"the networks of start have the shape of this run's; the {role} of {name} has {'; '.join(differing)}: "
                "set teacher, discriminator and objective as in that run"
            )
        network.load_state_dict(found.state_dict())


def check_fit(settings: DistillConfig, teacher: DiT, process: Process, source: Source) -> None:
    """Refuse a corpus that the teacher cannot read, and a teacher that reads the number of moves.

    A network without [MASK] has the symbols of its corpus without it; a public one may count it among its symbols.

    Raises:
        UsageError: its sequences are longer than the teacher's context, or its vocabulary is another; or the teacher is
            a student of several budgets.
    """
    if getattr(teacher.config, "is_budget_conditioned", False):
        raise UsageError(
            f"a teacher does not read the number of moves; that of {settings.teacher!r} does (is_budget_conditioned): "
            "choose another"
        )
    if settings.data.length > teacher.length:
        raise UsageError(
            f"data.length is at most the teacher's context of {teacher.length} tokens; got {settings.data.length}"
        )
    num_symbols = type(process).of_tokenizer(source.vocab_size, source.mask_id, process.schedule).num_symbols
    if teacher.vocab_size not in (source.vocab_size, num_symbols(source.vocab_size)):
        raise UsageError(
            f"corpus and teacher share one tokenizer; the corpus has {source.vocab_size} symbols, the teacher "
            f"{teacher.vocab_size}: give data.tokenizer the teacher bundle's tokenizer.json"
        )
