"""What requests, answers and events hold, as JSON."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from didi.diffusion.categorical import Precision
from didi.models.bundle import Role
from didi.sampling.base import Grid

SEEDS = 2**63
SETTINGS_OF = "fields of didi.{}; those that are left out have the model's or the sampler's default"


class Request(BaseModel):
    """A body of JSON: no unknown fields, no texts in place of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateRequest(Request):
    """Sequences of a model, as ``didi.generate`` draws them with these settings."""

    model: str | None = Field(None, description="a name of /v1/models; the first model by default")
    role: Role | None = Field(None, description="network of the model; its student by default, if it has one")
    prompt: str | None = Field(None, description="text that every sequence begins with")
    infill: str | None = Field(None, description="text in which each [MASK] is a token to fill in")
    token_ids: list[int | None] | None = Field(
        None, description="tokens of all positions, null where one is to be drawn; in place of prompt and infill"
    )
    length: int | None = Field(
        None, description="tokens of a sequence, or residues of a protein; the context length by default"
    )
    num_samples: int = Field(1, description="number of sequences")
    nfe: int | None = Field(
        None, description="moves of the time grid; a move takes at most one network pass, with reparam two"
    )
    sampler: str = Field("default", description="a sampler of the model, see /v1/models")
    precision: Precision = Field("float64", description="precision of the draws")
    temperature: float = Field(1.0, description="divides the logits; 1 is exact, 0 takes the likeliest tokens")
    top_p: float = Field(1.0, description="share of the probability of each token that is kept; 1 is exact")
    grid: Grid = Field("uniform", description="spacing of the times of the moves")
    times: list[float] = Field([], description="times of the moves, from 1 down to 0, in place of nfe and grid")
    guidance: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("Guidance"))
    order: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("sampling.confidence.ConfidenceOrder"))
    entropy_bound: float | None = Field(None, description="nats that entropy-bounded may draw at once")
    remask: dict[str, Any] | None = Field(None, description=SETTINGS_OF.format("sampling.remasking.Remasking"))
    initial_state: dict[str, Any] | None = Field(
        None, description=SETTINGS_OF.format("models.initial_state.InitialState")
    )
    reparam: dict[str, Any] | None = Field(
        None, description=SETTINGS_OF.format("sampling.reparameterized.Reparameterization")
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="the same seed gives the same tokens; random by default")
    stream: bool = Field(False, description="whether the answer is a stream of events: start, move, end, error")


class Sequence(BaseModel):
    """A finished sequence."""

    text: str
    token_ids: list[int]
    network_passes: int
    discriminator_passes: int
    finish_reason: Literal["length"] = "length"


class GenerateResponse(BaseModel):
    """Finished sequences, and what repeats them."""

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
    """First event of a stream: the sequences before the first move, null where there is no token yet."""

    model: str
    role: str
    sampler: str
    nfe: int
    length: int
    seed: int
    tokens: list[list[str | None]]
    token_ids: list[list[int | None]]


class MoveEvent(BaseModel):
    """A move of a sequence: the positions that it changed, and their tokens; the text of [MASK] is null."""

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
    """What the last part of a streamed completion holds."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(Request):
    """A completion in OpenAI's form; fields from ``nfe`` on are didi's own."""

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = Field("", description="texts, or their tokens")
    suffix: str | None = Field(None, description="text after the completion: infilling")
    max_tokens: int | None = Field(16, description="tokens of the completion; null is what the context leaves")
    n: int = 1
    best_of: int | None = Field(None, description="n, or left out")
    temperature: float | None = Field(1.0, description="1 is exact, 0 takes the likeliest tokens")
    top_p: float | None = 1.0
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    stop: str | list[str] | None = Field(None, description="texts before which the completion ends")
    echo: bool | None = Field(False, description="whether the answer begins with the prompt")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, description="none: diffusion does not draw tokens in their order")
    presence_penalty: float | None = Field(0.0, description="0")
    frequency_penalty: float | None = Field(0.0, description="0")
    logit_bias: dict[str, float] | None = Field(None, description="empty")
    user: str | None = None
    nfe: int | None = None
    sampler: str = "default"
    guidance: dict[str, Any] | None = None


class Choice(BaseModel):
    """One completion, or a part of it."""

    text: str
    index: int
    logprobs: None = None
    finish_reason: Literal["length", "stop"] | None


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """Completions in OpenAI's form, or a part of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model that is served; fields from ``role`` on are didi's own."""

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
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What is wrong, in one line."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorBody
