"""Base class of distillation methods: frozen teacher, the student's process, validation, the bundle."""

import copy
from typing import Any, ClassVar, cast

from jaxtyping import Int
from torch import Tensor, nn

from didi.data.source import Source
from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.errors import UsageError
from didi.methods.base import Inputs, Runtime, teacher_of
from didi.methods.settings import DistillationConfig, OptimizerConfig
from didi.methods.student_process import student_process
from didi.models.bundle import Bundle
from didi.models.digest import weights_digest
from didi.models.latent import num_codes
from didi.models.nelbo import nats_per_token
from didi.models.networks import DenoiserNetwork


class Distillation:
    """Base of the methods that train a student from a frozen teacher; see ``methods.base.Method`` for the contract.

    A method adds its name, its settings, its trained networks and their optimizers, ``prepare`` and ``updates``.

    Attributes:
        processes: names of the processes that students of the method may have, see ``student_process``.
        supports_lengths: whether the method supports sequences of different lengths with padding, such as proteins.
    """

    name: ClassVar[str]
    processes: ClassVar[tuple[str, ...]]
    supports_lengths: ClassVar[bool] = False
    settings_type: ClassVar[type[DistillationConfig]]
    averaged_network = "student"
    settings: Any
    optimizers: dict[str, OptimizerConfig]

    def __init__(self, settings: DistillationConfig, inputs: Inputs) -> None:
        assert inputs.teacher is not None
        self.settings, self.source = settings, inputs.source
        self.tokenizer = inputs.teacher.tokenizer
        teacher = teacher_of(inputs.teacher).to(inputs.device).eval().requires_grad_(False)
        self.process = student_process(inputs.teacher, self.name, self.processes)
        check_teacher(settings, teacher, self.process, self.source)
        if self.source.has_lengths and not (self.supports_lengths and isinstance(self.process, Absorbing)):
            raise UsageError(
                f"sequences of different lengths, such as those of {settings.data.corpus}, need method didi and a "
                f"teacher of masked diffusion; got method {self.name} and process {self.process.name}: choose these, "
                "or another corpus"
            )
        self._teacher_digest = weights_digest(teacher)
        self.trained: dict[str, nn.Module] = {}
        self.frozen: dict[str, nn.Module] = {"teacher": teacher}
        self.optimizers = {}
        self.num_steps = settings.num_steps
        self.sequences_per_step = settings.loop.batch_size * settings.loop.accumulation
        self.tokens_per_step = round(self.sequences_per_step * self.source.mean_length)

    def start(self, runtime: Runtime) -> None:
        """See ``Method.start``."""
        self.runtime = runtime

    @property
    def student(self) -> DenoiserNetwork:
        """The few-step generator in training."""
        return cast(DenoiserNetwork, self.trained["student"])

    @property
    def teacher(self) -> DenoiserNetwork:
        """The frozen many-step generator."""
        return cast(DenoiserNetwork, self.frozen["teacher"])

    def copy_of_teacher(self) -> DenoiserNetwork:
        """A trainable network with the teacher's weights, without dropout (row 7 of ``docs/deviations.md``)."""
        return copy.deepcopy(self.teacher).requires_grad_(True)

    def clean_rows(self, step: int, micro_batch: int) -> Int[Tensor, "b l"]:
        """Sequences of the corpus for a micro-batch of all processes."""
        rows = self.source.batch(step, self.sequences_per_step)
        return rows.split(self.settings.loop.batch_size)[micro_batch]

    def end_step(self, step: int) -> None:
        """See ``Method.end_step``."""

    def validate(self) -> dict[str, float]:
        """NELBO per token of the averaged student on held-out sequences, in nats."""
        loop, student = self.settings.loop, cast(DenoiserNetwork, self.runtime.averaged())
        rows = self.source.validation[: loop.validation_sequences]
        nats = nats_per_token(student, self.process, rows, batch_size=loop.batch_size, canvas_of=self.source.canvas)
        return {"validation_nelbo": nats}

    def state_dict(self) -> dict[str, Any]:
        """Digest of the teacher's weights, which come from its bundle."""
        return {"teacher": self._teacher_digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``.

        Raises:
            UsageError: the state belongs to a run with other teacher weights.
        """
        if state["teacher"] != self._teacher_digest:
            raise UsageError(
                f"a resumed run needs the teacher it started with; the weights of {self.settings.teacher!r} have "
                "changed: restore them, or start again in another folder"
            )

    def bundle(self) -> Bundle:
        """The averaged student and its teacher."""
        return Bundle(
            student=cast(DenoiserNetwork, self.runtime.averaged()),
            teacher=self.teacher,
            tokenizer=self.tokenizer,
            process=self.process,
        )


def check_teacher(settings: DistillationConfig, teacher: DenoiserNetwork, process: Process, source: Source) -> None:
    """Refuse a corpus that does not fit the teacher, and a teacher that reads the number of moves or latent codes.

    The vocabulary of a network of uniform-state diffusion is that of the corpus without [MASK]; public networks may
    count [MASK] nevertheless.

    Raises:
        UsageError: sequences are longer than the teacher's context, or the vocabularies differ, or the teacher is
            itself a student of several budgets or with latent codes.
    """
    if getattr(teacher.config, "is_budget_conditioned", False):
        raise UsageError(
            f"a teacher does not read the number of moves; the teacher of {settings.teacher!r} does "
            "(is_budget_conditioned): choose another"
        )
    if num_codes(teacher):
        raise UsageError(
            f"a teacher reads no latent codes; the teacher of {settings.teacher!r} reads {num_codes(teacher)}: choose "
            "another"
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
