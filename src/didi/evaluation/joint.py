r"""Joint divergence of samples from a reference distribution, by an autoregressive network fitted to the samples.

.. math:: KL(p \| q) = E_p[\log p(x)] - E_p[\log q(x)] \ge E_p[\log p_{fit}(x)] - E_p[\log q(x)]

``p`` is the distribution of the samples and ``q`` the reference: a Markov chain, whose probabilities are exact, or an
autoregressive network trained on a corpus. The fit starts from ``q``, so that the estimate is exactly 0 before
training. In every fold it is trained on a part of the samples, stopped by the loss on a second part and scored on a
third part, so that each sequence is scored by a network that was not trained on it.

The estimate is therefore a lower bound of KL(p || q) in expectation: it lacks the part of the divergence that the
network does not learn from the samples. If ``q`` is a network, the estimate is the divergence from that network, not
from real text. An error of ``q`` that the fit keeps cancels in the difference; one that the fit corrects adds to it.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from didi.data.markov import MarkovChain
from didi.diffusion.noise import derive_seed, named_generator
from didi.errors import UsageError
from didi.evaluation.frontier import Interval, bootstrap_interval, mean_interval
from didi.evaluation.joint_chain import ChainFit
from didi.models.autoregressive import AutoregressiveLM

SCORED_TOKENS = 4096  # tokens scored in one pass, to bound memory
WARM_UP_UPDATES = 20
Reference = MarkovChain | AutoregressiveLM
"""The distribution q."""


class _Fit(Protocol):
    """A network with a likelihood."""

    def nll(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each token in nats."""
        ...


@dataclass(frozen=True)
class JointSettings:
    """How a network is fitted to samples.

    Attributes:
        folds: Number of parts of the samples; each is scored by a network fitted to the other parts. At least 2.
        stop_fraction: Fraction of a fit's samples whose loss stops it; in (0, 1).
        epochs: Passes over a fit's samples in its learning-rate schedule, which decays to 0.
        patience: Epochs without a lower stopping loss after which a fit ends.
        batch_size: Sequences in an update.
        learning_rate: Learning rate of AdamW after ``WARM_UP_UPDATES`` of linear increase; the decay is a half cosine.
        weight_decay: Weight decay of AdamW.
        seed: Random seed of initial weights, folds, order and dropout.
    """

    folds: int = 4
    stop_fraction: float = 0.125
    epochs: int = 16
    patience: int = 6
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.epochs < 1 or self.batch_size < 1:
            raise UsageError(
                "a joint fit takes 2 folds or more, 1 epoch or more and batches of 1 or more; got "
                f"{self.folds}, {self.epochs} and {self.batch_size}"
            )
        if not 0 < self.stop_fraction < 1:
            raise UsageError(f"stop_fraction lies between 0 and 1; got {self.stop_fraction}")

    @property
    def min_samples(self) -> int:
        """Smallest number of samples with which every fold has samples to train on, to stop on and to score."""
        return 2 * self.folds


CHAIN_SETTINGS = JointSettings()
"""For a Markov chain: a small network over the exact transitions, trained from scratch."""
TEXT_SETTINGS = JointSettings(folds=2, epochs=3, patience=1, batch_size=8, learning_rate=2e-3, weight_decay=0.05)
"""For text: the reference network, fine-tuned."""


def default_settings(reference: Reference) -> JointSettings:
    """``CHAIN_SETTINGS`` for a Markov chain, else ``TEXT_SETTINGS``."""
    return CHAIN_SETTINGS if isinstance(reference, MarkovChain) else TEXT_SETTINGS


@dataclass(frozen=True)
class JointEstimate:
    """An estimate of a joint divergence KL(p || q); a lower bound in expectation.

    Attributes:
        log_ratios: log p_fit(x) - log q(x) of each sequence, in the order of the samples, nats, float64.
        folds: Mean of ``log_ratios`` in each fold; they vary with the sequences and with the fits.
    """

    log_ratios: Float[Tensor, " b"]
    folds: tuple[float, ...]

    @property
    def kl(self) -> float:
        """The estimate in nats per sequence."""
        return float(self.log_ratios.mean())

    @property
    def ci(self) -> Interval:
        """95% bootstrap interval of ``kl`` over sequences; it does not include the variance of the fits."""
        return mean_interval(self.log_ratios)

    def record(self) -> dict[str, Any]:
        """The estimate, its interval and the number of samples as JSON values."""
        return {"kl": self.kl, "ci": self.ci, "num_samples": len(self.log_ratios)}


def joint_divergence(
    tokens: Int[Tensor, "b l"], reference: Reference, settings: JointSettings | None = None
) -> JointEstimate:
    """Estimate KL(p || q) from samples of p by a network that starts as q and is fitted to the samples.

    Args:
        tokens: Samples of p.
        reference: The distribution q: a Markov chain, or an autoregressive network of the same tokens and length.
        settings: Settings of the fit; see ``default_settings`` for the default.

    Raises:
        UsageError: There are too few samples for the folds, a token is not a symbol of the reference, or the context of
            the reference is too short.
    """
    settings = settings or default_settings(reference)
    _check(tokens, reference, settings)
    start = _start(reference, tokens.shape[1], settings.seed)
    device = next(start.parameters()).device
    tokens = tokens.to(device)
    order = torch.randperm(len(tokens), generator=named_generator(settings.seed, "joint"))
    log_ratios, folds = torch.zeros(len(tokens), dtype=torch.float64), []
    log_q = -_nll(start, tokens)
    for number, fold in enumerate(order.tensor_split(settings.folds)):
        rest = order[~torch.isin(order, fold)]
        num_stop = max(1, round(settings.stop_fraction * len(rest)))
        fold_settings = replace(settings, seed=derive_seed(settings.seed, "joint-fold", number))
        fit = _fitted(start, tokens[rest[num_stop:]], tokens[rest[:num_stop]], fold_settings)
        log_ratios[fold] = -_nll(fit, tokens[fold]) - log_q[fold]
        folds.append(float(log_ratios[fold].mean()))
    return JointEstimate(log_ratios, tuple(folds))


@dataclass(frozen=True)
class JointComparison:
    """The joint divergences of two sample sets from one reference.

    Attributes:
        gap: Divergence of the first set minus that of the second, nats per sequence.
        gap_ci: Its 95% bootstrap interval; sequences of equal seed are resampled in pairs.
        ratio: Divergence of the first set divided by that of the second; NaN if the second is not positive.
        ratio_ci: Its 95% bootstrap interval.
    """

    gap: float
    gap_ci: Interval
    ratio: float
    ratio_ci: Interval


def compare_joint(first: Float[Tensor, " b"], second: Float[Tensor, " c"], *, seed: int = 0) -> JointComparison:
    """Compare two sample sets by their log-ratios, such as ``JointEstimate.log_ratios``.

    Args:
        first: Log-ratios of the first set.
        second: Log-ratios of the second set, of equal size; the i-th samples of both sets were drawn with equal noise.
        seed: Random seed of the resampling.

    Raises:
        ValueError: The sets differ in size.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need sets of one size; got {len(first)} and {len(second)}")

    def ratio(totals: Float[Tensor, "r 2"]) -> Float[Tensor, " r"]:
        return torch.where(totals[:, 1] > 0, totals[:, 0] / totals[:, 1], math.nan)

    columns = torch.stack([first, second], 1).double()
    return JointComparison(
        gap=float((first - second).mean()),
        gap_ci=mean_interval(first - second, seed=seed),
        ratio=float(ratio(columns.sum(0, keepdim=True))),
        ratio_ci=bootstrap_interval(columns, ratio, seed=seed),
    )


def _start(reference: Reference, length: int, seed: int) -> nn.Module:
    """A network whose distribution is the reference."""
    if isinstance(reference, MarkovChain):
        return ChainFit(reference, length, seed)
    return reference


def _check(tokens: Int[Tensor, "b l"], reference: Reference, settings: JointSettings) -> None:
    if len(tokens) < settings.min_samples:
        raise UsageError(
            f"a joint divergence of {settings.folds} folds takes {settings.min_samples} samples or more; got "
            f"{len(tokens)}"
        )
    num_symbols = _num_symbols(reference)
    if int(tokens.max()) >= num_symbols:
        raise UsageError(
            f"the reference of a joint divergence has {num_symbols} symbols; got token {int(tokens.max())}: choose one "
            "of the same tokenizer"
        )
    if isinstance(reference, AutoregressiveLM) and reference.length < tokens.shape[1]:
        raise UsageError(
            f"the reference of a joint divergence reads {reference.length} tokens; got sequences of {tokens.shape[1]}: "
            "choose one with a longer context"
        )


def _num_symbols(reference: Reference) -> int:
    """Number of symbols of the reference, without [MASK]."""
    if isinstance(reference, MarkovChain):
        return reference.num_symbols
    return reference.vocab_size if reference.mask_id is None else reference.mask_id


def _fitted(
    start: nn.Module, train: Int[Tensor, "n l"], stop: Int[Tensor, "m l"], settings: JointSettings
) -> nn.Module:
    """A copy of ``start`` trained on ``train``, from the epoch with the lowest loss on ``stop``, possibly epoch 0."""
    network = copy.deepcopy(start).train().requires_grad_()
    if isinstance(network, ChainFit):
        network.start(train, stop)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    num_updates = settings.epochs * math.ceil(len(train) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARM_UP_UPDATES) * (1 + math.cos(math.pi * step / num_updates)) / 2,
    )
    best, best_loss, num_worse = copy.deepcopy(network.state_dict()), float(_nll(network, stop).mean()), 0
    with torch.random.fork_rng():  # dropout draws from the global generator
        torch.manual_seed(derive_seed(settings.seed, "joint-dropout"))
        for epoch in range(settings.epochs):
            order = torch.randperm(len(train), generator=named_generator(settings.seed, "joint-epoch", epoch))
            for batch in order.split(settings.batch_size):
                loss = cast(_Fit, network).nll(train[batch]).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            stop_loss = float(_nll(network, stop).mean())
            if stop_loss < best_loss:
                best, best_loss, num_worse = copy.deepcopy(network.state_dict()), stop_loss, 0
            elif (num_worse := num_worse + 1) >= settings.patience:
                break
    network.load_state_dict(best)
    return network


@torch.no_grad()
def _nll(network: nn.Module, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """Negative log-likelihood of each sequence in nats, float64, without dropout."""
    was_training = network.training
    network.eval()
    chunks = tokens.split(max(1, SCORED_TOKENS // tokens.shape[1]))
    sums = [cast(_Fit, network).nll(chunk).double().sum(1).cpu() for chunk in chunks]
    network.train(was_training)
    return torch.cat(sums)
