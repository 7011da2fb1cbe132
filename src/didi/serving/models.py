"""The models of a server: names, networks, texts of tokens, and a check of the weights."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch

from didi.errors import UsageError, suggestion
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame, decode
from didi.sampling.registry import sampler_of, samplers_of
from didi.serving.schemas import ModelCard


class UnknownModel(UsageError):
    """The server has no model of this name."""


@dataclass
class ServedModel:
    """A bundle and the name that requests use for it.

    Attributes:
        name: the name.
        bundle: in evaluation mode, on its device.
        is_damaged: whether weights or logits were not finite in the last ``check_weights``.
        created: time of creation, in seconds since the epoch.
    """

    name: str
    bundle: Bundle
    is_damaged: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def roles(self) -> dict[str, Any]:
        """The networks that can be sampled, by role."""
        return {role: network for role, network in self.bundle.networks().items() if role in get_args(Role)}

    def role_of(self, role: Role | None) -> str:
        """The role of the network that ``bundle.network(role)`` returns; None stands for the default network.

        Raises:
            UsageError: the bundle has no such network.
        """
        network = self.bundle.network(role)
        return next(name for name, candidate in self.roles.items() if candidate is network)

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token, decoded alone, by token id."""
        ids = torch.arange(next(iter(self.roles.values())).vocab_size)
        return decode(self.bundle, ids[:, None])

    def cards(self) -> list[ModelCard]:
        """Cards of the model, under its name, and of each of its networks, as ``name:role``."""
        return [self._card(self.name, None), *(self._card(f"{self.name}:{role}", role) for role in self.roles)]

    def _card(self, name: str, role: Any) -> ModelCard:
        network, bundle = self.bundle.network(role), self.bundle
        samplers = samplers_of(bundle.process.name)
        if bundle.discriminator is None:
            samplers.remove("guided")
        if isinstance(network, AutoregressiveLM):
            samplers = ["ancestral"]
        default = sampler_of(bundle, SamplingOptions(role=role))
        return ModelCard(
            id=name,
            created=self.created,
            role=self.role_of(role),
            roles=list(self.roles),
            process=bundle.process.name,
            length=network.length - Frame.of(network).num_ids,
            nfe=bundle.default_nfe(role),
            samplers=sorted(samplers, key=lambda sampler: sampler != default),
            takes_text=bundle.tokenizer is not None,
        )

    @torch.inference_mode()
    def check_weights(self) -> bool:
        """Whether all weights are finite, and the logits of a fully masked sequence; sets ``is_damaged``.

        No request can be sampled from a network that fails this check.
        """
        weights = (weight for network in self.bundle.networks().values() for weight in network.parameters())
        are_finite = all(bool(weight.isfinite().all()) for weight in weights)
        if are_finite:
            are_finite = all(map(self._has_finite_logits, self.roles.values()))
        self.is_damaged = not are_finite
        return are_finite

    def _has_finite_logits(self, network: Any) -> bool:
        device = next(network.parameters()).device
        inputs = torch.full((1, network.length), network.mask_id or 0, device=device)
        if isinstance(network, AutoregressiveLM):
            logits = network.head(network.features(inputs)[:, -1])
        else:
            level = self.bundle.process.noise_level(network, torch.ones(1, dtype=torch.float64, device=device))
            logits = network.head(network.features(inputs, level)[:, -1])
        return bool(logits.amax(-1).isfinite().all())


class Models:
    """The served models by name; ``name:role`` is a network of a model.

    Args:
        bundles: one or more bundles by the names of the models.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self._models = {name: ServedModel(name, bundle) for name, bundle in bundles.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str | None, role: Role | None = None) -> tuple[ServedModel, Role | None]:
        """The model and the role of a request.

        Args:
            name: ``name`` or ``name:role``; None for the first model.
            role: field ``role`` of the request.

        Raises:
            UnknownModel: there is no model of this name.
            UsageError: the name has another role than ``role``.
        """
        if name is None:
            return next(iter(self._models.values())), role
        if name in self._models:
            return self._models[name], role
        base, _, named = name.rpartition(":")
        if base in self._models and named in self._models[base].roles:
            if role not in (None, named):
                raise UsageError(f"model {name!r} has the role {named}; got {role}: leave role out")
            return self._models[base], named  # type: ignore[return-value]
        known = [card.id for model in self._models.values() for card in model.cards()]
        raise UnknownModel(f"a model is one of {', '.join(known)}; got {name!r}{suggestion(name, known)}")
