"""Generative perplexity: the perplexity of samples under a language model that was not trained on them, the judge.

Every sample is scored, whatever its length; the corpus perplexity is exp(total NLL / total tokens), and the number of
texts that are cut to the judge's context is reported. A low perplexity alone does not mean good samples: under
SmolLM2-135M, "the " repeated 300 times has 28.5 and news text 33.8.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from didi.data.markov import MARKOV, MarkovChain
from didi.errors import DidiError, UsageError, from_checkout
from didi.hub import failure_reason, hub_or_cache

if TYPE_CHECKING:
    import transformers

HEAD_ROWS = 128  # positions whose logits exist at the same time: 25 MB at a vocabulary of 49,152
MAX_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """A judge's scores of a set of samples.

    Attributes:
        nll: negative log-likelihood of each sample in nats, summed over its judge tokens, float64.
        num_tokens: number of scored judge tokens of each sample; 0 for an empty text.
        num_truncated: number of samples that were cut to the judge's context.
    """

    nll: Float[Tensor, " b"]
    num_tokens: Int[Tensor, " b"]
    num_truncated: int = 0


@runtime_checkable
class Judge(Protocol):
    """A likelihood that was not trained on the samples; it reads texts, tokens, or both."""

    name: str

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Scores of ``b`` samples, given both as text and as tokens of the sampled network."""
        ...


class ExactJudge:
    """The exact likelihood under a Markov chain.

    Args:
        chain: the Markov chain.
        name: name of the chain, a key of ``markov.CHAINS``.
    """

    def __init__(self, chain: MarkovChain, *, name: str = MARKOV) -> None:
        self.chain, self.name = chain, name

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Exact scores of ``tokens``; ``texts`` are not read.

        Raises:
            UsageError: a token is not one of the chain's symbols.
        """
        del texts
        tokens = tokens.cpu()
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.chain.num_symbols:
            raise UsageError(
                f"judge {self.name} reads the {self.chain.num_symbols} symbols of its chain; got token "
                f"{int(tokens.max())}: choose a language model as judge"
            )
        num_tokens = torch.full((len(tokens),), tokens.shape[1], dtype=torch.long)
        return Scores(-self.chain.log_likelihood(tokens), num_tokens)


class CausalJudge:
    """A causal language model of transformers with its tokenizer.

    Every text is preceded by the tokenizer's BOS token, or by EOS if there is no BOS (as in GPT-2 evaluations), so that
    its first token is scored too. Arithmetic is float32, sums are float64.

    Args:
        model: any ``AutoModelForCausalLM``; it is cast to float32 and put in eval mode.
        tokenizer: its tokenizer, fast or slow.
        name: name of the judge in reports.
        max_batch_tokens: maximum number of tokens in one pass, padding included.

    Raises:
        UsageError: the tokenizer has neither BOS nor EOS.
    """

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        tokenizer: "transformers.PreTrainedTokenizerBase",
        *,
        name: str,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        start_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if start_id is None:
            raise UsageError(f"judge {name!r} has neither a BOS nor an EOS token to start a text with; choose another")
        self.name = name
        self.max_batch_tokens = max_batch_tokens
        self._start_id = int(start_id)
        self._tokenizer = tokenizer
        self._context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._trunk, self._head = _split_head(model.float().eval(), self._start_id)

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Scores of ``texts``, in their order; ``tokens`` are not read. Batching changes nothing but rounding."""
        del tokens
        options = {"add_special_tokens": False, "verbose": False}
        encoded: list[list[int]] = self._tokenizer(list(texts), **options)["input_ids"] if texts else []
        rows = [row[: self._context] for row in encoded]
        num_tokens = torch.tensor([len(row) for row in rows], dtype=torch.long)
        nll = torch.zeros(len(rows), dtype=torch.float64)
        for batch in _length_batches(num_tokens.tolist(), self.max_batch_tokens):
            nll[batch] = self._batch_nll([rows[i] for i in batch])
        return Scores(nll, num_tokens, sum(len(row) < len(full) for row, full in zip(rows, encoded, strict=True)))

    @torch.inference_mode()
    def _batch_nll(self, rows: list[list[int]]) -> Float[Tensor, " n"]:
        """NLL of each row; padding is on the right, so causal attention needs no attention mask."""
        device = next(self._trunk.parameters()).device
        targets = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1)
        is_real = (targets >= 0).to(device)
        targets = targets.to(device)
        inputs = F.pad(targets.clamp(min=0), (1, 0), value=self._start_id)[:, :-1]
        features = self._trunk(input_ids=inputs, use_cache=False)[0][is_real]
        chunks = zip(features.split(HEAD_ROWS), targets[is_real].split(HEAD_ROWS), strict=True)
        token_nll = [F.cross_entropy(self._head(x).float(), y, reduction="none") for x, y in chunks]
        nll = torch.zeros(is_real.shape, dtype=torch.float64)
        nll[is_real.cpu()] = torch.cat(token_nll).cpu().double()
        return nll.sum(1)


def _split_head(model: "transformers.PreTrainedModel", start_id: int) -> tuple[nn.Module, nn.Module]:
    """Trunk and vocabulary head, so that logits are computed for a few positions at a time, without padding.

    A model that changes its logits after the head (soft caps, scales) is not split: it is returned with an identity as
    head, and its logits are computed for a whole batch.
    """
    trunk, head = model.base_model, model.get_output_embeddings()
    if head is None or trunk is model:
        return model, nn.Identity()
    with torch.inference_mode():
        probe = torch.tensor([[start_id, 0, 1, 2]], device=next(model.parameters()).device)
        whole = model(input_ids=probe, use_cache=False).logits
        parts = head(trunk(input_ids=probe, use_cache=False)[0])
    is_plain = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-4)
    return (trunk, head) if is_plain else (model, nn.Identity())


def _length_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the non-empty rows, longest first, in batches of at most ``max_tokens`` padded tokens (or one row)."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, max_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def perplexity(scores: Scores) -> float:
    """Corpus perplexity exp(total NLL / total tokens); NaN if no token was scored."""
    return float((scores.nll.sum() / scores.num_tokens.sum()).exp())


def mean_sample_perplexity(scores: Scores) -> float:
    """Mean over non-empty samples of exp(NLL / tokens), as some papers report; NaN if all samples are empty."""
    is_scored = scores.num_tokens > 0
    return float((scores.nll[is_scored] / scores.num_tokens[is_scored]).exp().mean()) if is_scored.any() else math.nan


@contextlib.contextmanager
def transformers_for(kind: str, name: str, *, known: Sequence[str]) -> Iterator[ModuleType]:
    """Context with the library transformers, without its log lines and progress bars, and with one-line errors.

    Inside the context the Hub is used only if ``name`` is neither in ``known`` nor a folder; if the Hub is not
    reachable, only its local cache is used.

    Args:
        kind: kind of model in error messages, such as ``judge``.
        name: name of the model: one of ``known``, a folder, or a Hub name.
        known: names that do not refer to the Hub.

    Raises:
        UsageError: no model has that name, or the Hub is not reachable and the name has no owner.
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    purpose, is_reached = f"{kind} {name!r}", True
    try:
        import transformers

        log = transformers.utils.logging
        verbosity, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        is_local = name in known or Path(name).is_dir()
        try:
            with contextlib.nullcontext(True) if is_local else hub_or_cache() as is_reached:
                yield transformers
        finally:
            log.set_verbosity(verbosity)
            if has_bars:
                log.enable_progress_bar()
    except DidiError:
        raise
    except ImportError as error:
        raise DidiError(f"{purpose} needs transformers: {from_checkout('eval')} ({error})") from error
    except Exception as error:  # loading files of any origin can raise any exception
        cause, reason = type(error.__cause__).__name__, failure_reason(error, is_reached=is_reached)
        is_unknown = cause in ("HFValidationError", "RepositoryNotFoundError")
        if is_unknown or (cause == "LocalEntryNotFoundError" and "/" not in name):
            choices = f"{', '.join(map(repr, known))}, a folder of a model of transformers, or its Hub name"
            raise UsageError(f"no {purpose}: known are {choices} ({reason})") from error
        raise DidiError(f"{purpose} could not be loaded: {reason}") from error
