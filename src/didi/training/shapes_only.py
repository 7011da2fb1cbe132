"""Run training code without arithmetic: steps of networks of any size, within minutes on a CPU.

Tensors computed from a network's weights have a shape, dtype and storage size, but no values (``FakeTensor`` of torch).
All other tensors have values: token sequences, times, uniform draws, masks. The masks of a step, and all shapes that
depend on them, are therefore those of a real step with the same seed. Integers computed from network outputs are 0, and
comparisons are evaluated as if network outputs were 1.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

LARGE = 2**22
"""New tensors with this number of elements or more have no values, even if they do not depend on a network."""

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index)
_EMPTY = (_ATEN.empty, _ATEN.empty_strided)
_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu  # not supported by ``flop_registry``
_ATTENTION_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward


class _Fakes(FakeTensorMode):
    """Fake mode that a copy of a network shares with the network."""

    def __deepcopy__(self, memo: object) -> "_Fakes":
        return self


@no_type_check  # runs for every operation: type checks in tests would take minutes
class ShapesOnly(TorchDispatchMode):
    """Context in which floating-point tensors that depend on the weights of a network have no values.

    Networks must be constructed within ``building``.

    Attributes:
        flops: floating-point operations of matrix products and attention so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._fakes = _Fakes(allow_non_fake_inputs=True)
        self._is_building = False
        self._stack = ExitStack()

    def __enter__(self) -> "ShapesOnly":
        self._stack.enter_context(warnings.catch_warnings())
        # ``copy.deepcopy`` of a network accesses data pointers, and handles those of fake tensors.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        # FakeTensorMode reads ``.grad`` of non-leaf tensors; it ignores the warning, unless warnings are errors.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    @contextmanager
    def building(self) -> Iterator[None]:
        """Context in which all new floating-point tensors have no values."""
        before, self._is_building = self._is_building, True
        try:
            yield
        finally:
            self._is_building = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation on values if all its inputs have values, otherwise on shapes."""
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return self._on_shapes(func, args, kwargs)
        if not tensors and self._is_valueless(func, args, kwargs):
            return self._faked(func, args, kwargs | ({"generator": None} if "generator" in kwargs else {}))
        return func(*args, **kwargs)

    def _is_valueless(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether an operation without inputs makes a tensor without values."""
        is_float = (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point
        size = math.prod(args[0]) if args and isinstance(args[0], list | tuple) else 0
        return size >= LARGE or (is_float and size > 0 and (self._is_building or func.overloadpacket in _EMPTY))

    def _faked(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = self._fakes.__torch_dispatch__(func, (), args, kwargs)  # faster than ``with self._fakes``
        # The memo's weak references would prevent ``nn.Module.to`` from swapping a parameter.
        self._fakes.fake_tensor_converter.meta_converter.tensor_memo.clear()
        return result

    def _on_shapes(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is _ATEN._local_scalar_dense.default:
            return 1.0
        written = _written(func, args, kwargs)
        if any(not isinstance(tensor, FakeTensor) for tensor in _tensors(written)):
            return None if not func._schema.returns else written[0] if len(written) == 1 else tuple(written)
        shaped = _with_known_shapes(func, args)
        result = self._faked(func, shaped, kwargs)
        self.flops += _flops(func, shaped, kwargs, result)
        if isinstance(result, Tensor):
            return _valued(result, func, args, kwargs)
        return tree_map(lambda value: _valued(value, func, args, kwargs), result)


@no_type_check
def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among values and in their lists; faster than ``tree_map``, since half of the time is spent here."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@no_type_check
def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation changes in place."""
    return [args[index] if index < len(args) else kwargs.get(name) for index, name in _written_arguments(func)]


@no_type_check
@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    """Indices and names of the arguments that an operation changes in place."""
    arguments = enumerate(func._schema.arguments)
    return [(index, entry.name) for index, entry in arguments if entry.alias_info and entry.alias_info.is_write]


@no_type_check
def _with_known_shapes(func: Any, args: Any) -> Any:
    """The arguments of an indexing operation with boolean masks as index tensors, whose shapes are known."""
    if func.overloadpacket not in _INDEXING:
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8) and not isinstance(index, FakeTensor)
        indices += index.nonzero(as_tuple=True) if is_mask else [index]
    return (args[0], indices, *args[2:])


@no_type_check
def _valued(result: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Give substitute values to small integer and boolean results; other results remain unchanged."""
    is_unchanged = not isinstance(result, FakeTensor) or result.numel() >= LARGE
    if is_unchanged or result.dtype.is_floating_point or result.dtype.is_complex:
        return result
    if result.dtype == torch.bool:
        with torch.no_grad():
            try:
                values = func(*tree_map(_ones, args), **tree_map(_ones, kwargs))
                return values.expand(result.shape).clone()
            except (RuntimeError, TypeError, AttributeError, IndexError):  # not an elementwise operation
                pass
    return torch.zeros(result.shape, dtype=result.dtype)


@no_type_check
def _ones(value: Any) -> Any:
    """Substitute of a tensor without values in a comparison."""
    return torch.ones((), dtype=value.dtype) if isinstance(value, FakeTensor) else value


@no_type_check
def _flops(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    packet = func.overloadpacket
    if packet is _ATTENTION:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is _ATTENTION_BACKWARD:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
