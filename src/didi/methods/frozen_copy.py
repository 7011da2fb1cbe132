"""A frozen copy of a network in training, renewed from time to time: a reference, or the teacher of a round."""

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.adapters import copy_sharing_frozen
from didi.models.networks import DenoiserNetwork


class FrozenCopy:
    """Weights of a network at an earlier step; weights that are frozen in the network are shared, not copied.

    Args:
        source: network to copy.
        setting: name of the setting or method that requires the copy, for error messages.

    Attributes:
        network: the copy, in eval mode.
    """

    def __init__(self, source: DenoiserNetwork, setting: str) -> None:
        self.network = copy_sharing_frozen(source).eval()
        self._setting = setting

    @torch.no_grad()
    def renew(self, source: DenoiserNetwork) -> None:
        """Copy the present weights of ``source``."""
        for copied, current in zip(self.network.parameters(), source.parameters(), strict=True):
            if copied is not current:
                copied.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that are trained in the source."""
        return {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See ``state_dict``.

        Raises:
            UsageError: ``state`` lacks weights.
        """
        for name, weight in self.state_dict().items():
            if name not in state:
                raise UsageError(
                    f"a checkpoint with {self._setting} holds a copy of the student; this one lacks its {name}: start "
                    "again in another folder"
                )
            weight.copy_(state[name])
