"""Schemas of the JSON of requests, responses and events."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from didi.diffusion.categorical import Precision
from didi.models.bundle import Role
from didi.sampling.base import Grid

SEEDS = 2**63
SETTINGS_OF = "fields of didi.{}; a field that is left out has the default of the model or of the sampler"


class Request(BaseModel):
    """Base class: unknown fields and strings in place of numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateRequest(Request):
    """Sequences of a model, as ``didi.generate`` draws them with these settings."""

    model: str | None = Field(None, description="an id of /v1/models; the first model by default")
    role: Role | None = Field(
        None,
        description="network of the model; by default the first that exists of student, teacher and autoregressive",
    )
    prompt: str | None = Field(None, description="text that every sequence begins with")
    infill: str | None = Field(None, description="text in which each [MASK] is a token to fill in")
    token_ids: list[int | None] | None = Field(
        None,
        description="token ids of all positions, null where a token is to be sampled; instead of prompt and infill",
    )
    length: int | None = Field(
        None, description="length of a sequence in tokens, or of a protein in residues; the context length by default"
    )
    num_samples: int = Field(1, description="number of sequences")
    nfe: int | None = Field(
        None, description="moves of the time grid; a move takes at most one network pass, with reparam two"
    )
    sampler: str = Field("default", description="a sampler of the model, see /v1/models")
    precision: Precision = Field("float64", description="precision of the draws")
    temperature: float = Field(
        1.0, description="divisor of the logits; 1 leaves the distribution unchanged, 0 takes the most likely tokens"
    )
    top_p: float = Field(
        1.0,
        description="probability mass of the most likely tokens, which alone are drawn; 1 draws all tokens",
    )
    grid: Grid = Field("uniform", description="spacing of the times of the moves")
    times: list[float] = Field([], description="times of the moves, from 1 down to 0, instead of nfe and grid")
    guidance: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("Guidance"))
    order: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("sampling.confidence.ConfidenceOrder"))
    entropy_bound: float | None = Field(None, description="bound of the sampler entropy-bounded, in nats")
    remask: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("sampling.remasking.Remasking"))
    initial_state: dict[str, Any] | None = Field(
        None, description=SETTINGS_OF.format("models.initial_state.InitialState")
    )
    reparam: dict[str, Any] | None = Field(
        None, description=SETTINGS_OF.format("sampling.reparameterized.Reparameterization")
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="the same seed gives the same tokens; random by default")
    stream: bool = Field(False, description="whether the response is a stream of events: start, move, end, error")


class Sequence(BaseModel):
    """A finished sequence."""

    text: str
    token_ids: list[int]
    network_passes: int
    discriminator_passes: int
    finish_reason: Literal["length"] = "length"


class GenerateResponse(BaseModel):
    """Finished sequences, and the settings that reproduce them."""

    model: str
    role: str
    sampler: str
    nfe: int
    length: int
    seed: int
    sequences: list[Sequence]
    queue_milliseconds: float
    milliseconds: float


class StartEvent(BaseModel):
    """First event of a stream: the sequences before the first move, null at positions to be sampled."""

    model: str
    role: str
    sampler: str
    nfe: int
    length: int
    seed: int
    tokens: list[list[str | None]]
    token_ids: list[list[int | None]]


class MoveEvent(BaseModel):
    """A move of a sequence: the changed positions and their new tokens; the text of [MASK] is null."""

    sequence: int
    move: int
    t: float
    passes: int
    discriminator_passes: int
    milliseconds: float
    positions: list[int]
    token_ids: list[int]
    texts: list[str | None]


class EndEvent(BaseModel):
    """The end of a sequence."""

    sequence: int
    text: str
    network_passes: int
    milliseconds: float
    finish_reason: Literal["length"] = "length"


class ErrorEvent(BaseModel):
    """The end of a stream that failed."""

    message: str


class StreamOptions(Request):
    """Contents of the last chunk of a streamed completion."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(Request):
    """A request in the format of OpenAI's API; ``nfe`` and the fields after it are extensions."""

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        "", description="one or several prompts, as texts or as token ids"
    )
    suffix: str | None = Field(None, description="text that follows the completion")
    max_tokens: int | None = Field(16, description="tokens of the completion; null for the rest of the context")
    n: int = 1
    best_of: int | None = Field(None, description="must equal n if given")
    temperature: float | None = Field(
        1.0, description="1 leaves the distribution unchanged, 0 takes the most likely tokens"
    )
    top_p: float | None = 1.0
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    stop: str | list[str] | None = Field(None, description="the completion ends before the first of these texts")
    echo: bool | None = Field(False, description="whether the text begins with the prompt")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, description="not supported: diffusion does not draw tokens from left to right")
    presence_penalty: float | None = Field(0.0, description="must be 0")
    frequency_penalty: float | None = Field(0.0, description="must be 0")
    logit_bias: dict[str, float] | None = Field(None, description="must be empty")
    user: str | None = None
    nfe: int | None = None
    sampler: str = "default"
    guidance: dict[str, Any] | None = None


class Choice(BaseModel):
    """A completion, or a chunk of its text."""

    text: str
    index: int
    logprobs: None = None
    finish_reason: Literal["length", "stop"] | None


class Usage(BaseModel):
    """Numbers of tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """A response, or a chunk of a streamed response, in the format of OpenAI's API."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A served model; ``role`` and the fields after it are extensions of OpenAI's format."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "didi"
    role: str
    roles: list[str]
    process: str
    length: int
    nfe: int
    samplers: list[str]
    takes_text: bool


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """An error; the message is one line."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in the format of OpenAI's API."""

    error: ErrorBody
