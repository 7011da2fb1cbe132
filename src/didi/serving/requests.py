"""Job specifications from the body of a request; raises an error if a limit is exceeded or a value is invalid."""

import reprlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from didi.arguments import whole_number
from didi.diffusion.canvas import Canvas
from didi.errors import UsageError, suggestion
from didi.models.bundle import Bundle, Role
from didi.models.initial_state import InitialState
from didi.sampling.completion import Plan, planned
from didi.sampling.guided import Guidance
from didi.sampling.options import KINDS, SamplingOptions
from didi.sampling.prompt import Frame, canvas_from_prompt, encoded, framed
from didi.sampling.registry import ignores_grid, sampler_of, with_bundle_settings
from didi.serving.models import Models, ServedModel
from didi.serving.schemas import SEEDS, CompletionRequest, GenerateRequest
from didi.serving.settings import ServerSettings


@dataclass(frozen=True)
class JobSpec:
    """What a job samples: sequences of one prompt.

    Attributes:
        model: the served model.
        role: role of the network that is sampled.
        sampler: name of the sampler.
        seed: seed of the samples.
        plan: the sampler and its inputs.
        frame: begin and end symbols of a protein, which ``plan`` includes; requests and responses leave them out.
        num_prompt: number of prompt tokens before the first position to sample, without the frame.
    """

    model: ServedModel
    role: str
    sampler: str
    seed: int
    plan: Plan
    frame: Frame = field(default_factory=Frame)
    num_prompt: int = 0

    @property
    def length(self) -> int:
        """Positions of a sequence, without the frame."""
        return self.plan.canvas.length - self.frame.num_ids

    def without_frame(self, values: Shaped[Tensor, "b l"]) -> Shaped[Tensor, "b _k"]:
        """``values`` without the positions of the frame."""
        return values.narrow(1, len(self.frame.before), self.length)


def generation_spec(request: GenerateRequest, models: Models, settings: ServerSettings) -> JobSpec:
    """The job of a request of ``/v1/generate``.

    Raises:
        UsageError: a value is invalid or exceeds a limit of ``settings``.
        UnknownModel: there is no such model.
    """
    model, role = models.find(request.model, request.role)
    bundle = model.bundle
    num_samples = whole_number("num_samples", request.num_samples, low=1, high=settings.max_samples)
    names = {field.name for field in fields(SamplingOptions)} & set(GenerateRequest.model_fields) - set(KINDS)
    values = {name: getattr(request, name) for name in names} | {"role": role, "times": tuple(request.times)}
    defaults = {"guidance": bundle.guidance or Guidance(), "initial_state": bundle.initial_state or InitialState()}
    for name, kind in KINDS.items():
        if (changes := getattr(request, name)) is not None:
            values[name] = _with_fields(name, defaults.get(name) or kind(), changes)
    canvas = _canvas(request, bundle, role, settings)
    return _spec(model, canvas.expand(num_samples), SamplingOptions(**values), request.nfe, request.seed, settings)


def completion_specs(request: CompletionRequest, models: Models, settings: ServerSettings) -> list[JobSpec]:
    """The jobs of a request of ``/v1/completions``, one for each prompt.

    Raises:
        UsageError: a value is invalid, is not supported, or exceeds a limit of ``settings``.
        UnknownModel: there is no such model.
    """
    _refuse_unsupported(request)
    model, role = models.find(request.model)
    bundle, num_samples = model.bundle, whole_number("n", request.n, low=1, high=settings.max_samples)
    prompts = _prompts(request.prompt)
    whole_number("the number of prompts times n", len(prompts) * num_samples, low=1, high=settings.max_samples)
    guidance = None
    if request.guidance is not None:
        guidance = _with_fields("guidance", bundle.guidance or Guidance(), request.guidance)
    options = SamplingOptions(
        sampler=request.sampler,
        role=role,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        guidance=guidance,
    )
    specs = []
    for prompt in prompts:
        canvas, num_prompt = _completion_canvas(request, prompt, bundle, role, settings)
        spec = _spec(model, canvas.expand(num_samples), options, request.nfe, request.seed, settings)
        specs.append(replace(spec, num_prompt=num_prompt))
    return specs


def _spec(
    model: ServedModel,
    canvas: Canvas,
    options: SamplingOptions,
    nfe: int | None,
    seed: int | None,
    settings: ServerSettings,
) -> JobSpec:
    bundle, seed = model.bundle, secrets.randbelow(SEEDS) if seed is None else seed
    length, frame = canvas.length, Frame.of(bundle.network(options.role))
    if nfe is not None:  # checked before a time grid of this length is allocated
        whole_number("nfe", nfe, low=1, high=settings.max_moves)
    guidance = with_bundle_settings(options, bundle).guidance
    if guidance is not None:
        whole_number("guidance num_candidates", guidance.num_candidates, low=1, high=settings.max_candidates)
    if frame.num_ids:
        canvas = framed(canvas, frame, length + frame.num_ids)
    plan = planned(bundle, canvas, indices=range(len(canvas)), seed=seed, nfe=nfe, options=options)
    name = sampler_of(bundle, options)
    if plan.num_moves > settings.max_moves and not ignores_grid(bundle.network(options.role), name):
        raise UsageError(
            f"a request has at most {settings.max_moves} moves here; got {plan.num_moves}: lower nfe, or give "
            "fewer times"
        )
    return JobSpec(model, model.role_of(options.role), name, seed, plan, frame)


def context_length(bundle: Bundle, role: Role | None, settings: ServerSettings) -> int:
    """Largest number of positions of a sequence, without the frame."""
    network = bundle.network(role)
    length = network.length - Frame.of(network).num_ids
    return length if settings.max_tokens is None else min(length, settings.max_tokens)


def _canvas(request: GenerateRequest, bundle: Bundle, role: Role | None, settings: ServerSettings) -> Canvas:
    """One sequence, from the prompt, the infill text or the token ids of the request."""
    most = context_length(bundle, role, settings)
    if request.token_ids is not None:
        if request.prompt is not None or request.infill is not None:
            raise UsageError("give token_ids, or a prompt or infill text, not both")
        whole_number("the number of token_ids", len(request.token_ids), low=1, high=most)
        if request.length not in (None, len(request.token_ids)):
            raise UsageError(f"length is that of token_ids, {len(request.token_ids)}; got {request.length}")
        _check_ids([token for token in request.token_ids if token is not None], bundle, role)
        is_free = torch.tensor([[token is None for token in request.token_ids]])
        return Canvas.given(torch.tensor([[token or 0 for token in request.token_ids]]), is_free)
    length = most if request.length is None else whole_number("length", request.length, low=1, high=most)
    for name in ("prompt", "infill"):
        _check_text(name, getattr(request, name), settings)
    return canvas_from_prompt(bundle, length, prefix=request.prompt, infill=request.infill)


def _completion_canvas(
    request: CompletionRequest, prompt: str | Sequence[int], bundle: Bundle, role: Role | None, settings: ServerSettings
) -> tuple[Canvas, int]:
    """One sequence of prompt, completion and suffix, and the number of tokens of the prompt."""
    ids = _ids("prompt", prompt, bundle, role, settings)
    suffix = _ids("suffix", request.suffix or "", bundle, role, settings)
    most = context_length(bundle, role, settings)
    left = most - len(ids) - len(suffix)
    if left < 1:
        raise UsageError(
            f"a prompt, with its suffix, has at most {most - 1} tokens here; got {most - left}: shorten it"
        )
    if request.max_tokens is not None and not 1 <= request.max_tokens <= left:
        raise UsageError(
            f"max_tokens lies in [1, {left}] after {most - left} tokens of the prompt; got {request.max_tokens}"
        )
    num = left if request.max_tokens is None else request.max_tokens
    tokens = torch.tensor([[*ids, *[0] * num, *suffix]])
    is_free = torch.zeros_like(tokens, dtype=torch.bool)
    is_free[:, len(ids) : len(ids) + num] = True
    return Canvas.given(tokens, is_free), len(ids)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """The prompts of a request: a text, several texts, token ids, or several lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(token, int) for token in prompt):
        return [prompt]  # type: ignore[list-item]
    return prompt  # type: ignore[return-value]


def _ids(
    name: str, text: str | Sequence[int], bundle: Bundle, role: Role | None, settings: ServerSettings
) -> Sequence[int]:
    if not isinstance(text, str):
        _check_ids(text, bundle, role)
        return text
    _check_text(name, text, settings)
    if "[MASK]" in text:
        raise UsageError(f"a {name} has no [MASK]; use the field suffix, or infill of /v1/generate, to fill in text")
    return encoded(bundle, text) if text else []


def _check_ids(ids: Sequence[int], bundle: Bundle, role: Role | None) -> None:
    network = bundle.network(role)
    excluded = getattr(network.config, "excluded_ids", ())
    special = {token for token in (network.mask_id, *excluded) if token is not None}
    names = " or ".join(
        [*["[MASK]"][: network.mask_id is not None], *["of a symbol that is no residue"][: bool(excluded)]]
    )
    for token in ids:
        if not 0 <= token < network.vocab_size or token in special:
            rule = f" and is not the id of {names}" if names else ""
            raise UsageError(f"a token id lies in [0, {network.vocab_size}){rule}; got {token}")


def _check_text(name: str, text: str | None, settings: ServerSettings) -> None:
    if text is None:
        return
    if len(text) > settings.max_prompt_characters:
        raise UsageError(f"{name} has at most {settings.max_prompt_characters} characters here; got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is valid Unicode; got half of a surrogate pair at {error.start}") from error


def _with_fields(name: str, record: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a dataclass instance with some fields changed.

    Args:
        name: field of the request, for the message.
        record: the instance.
        changes: values by field name.

    Raises:
        UsageError: there is no such field.
    """
    known = [field.name for field in fields(record)]
    for field_name in changes:
        if field_name not in known:
            hint = suggestion(field_name, known)
            raise UsageError(f"{name} has the fields {', '.join(known)}; got {reprlib.repr(field_name)}{hint}")
    return replace(record, **changes)


def _refuse_unsupported(request: CompletionRequest) -> None:
    if request.logprobs is not None:
        raise UsageError(
            "logprobs is not supported: tokens are not drawn from left to right, so their log-probabilities given the "
            "tokens before them are not known; score texts with didi.evaluation.harness"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise UsageError(f"{name} must be 0; got {getattr(request, name)}")
    if request.logit_bias:
        raise UsageError("logit_bias is not supported; leave it out")
    if request.best_of not in (None, request.n):
        raise UsageError(f"best_of must equal n, {request.n}; got {request.best_of}")
