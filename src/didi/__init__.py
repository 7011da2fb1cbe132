"""didi: distillation of discrete-diffusion language models into few-step students, sampling and evaluation.

```python
import didi

bundle = didi.load("tiny-news")
out = didi.generate(bundle, num_samples=8, nfe=16, seed=0)
for move in didi.stream(bundle, nfe=16): ...
rows = didi.evaluate(bundle, nfe=[4, 8, 16], num_samples=256, judge="smollm2-135m")
```

Public names are imported at their first use (PEP 562), so ``import didi`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from didi.errors import DidiError, UsageError
    from didi.evaluation.evaluate import evaluate
    from didi.models.bundle import Bundle, load, save
    from didi.sampling.generate import Generation, generate
    from didi.sampling.guided import Guidance
    from didi.sampling.options import SamplingOptions
    from didi.sampling.prompts import Prompt
    from didi.sampling.stream import Move, stream

    __version__: str

_MODULES = {
    "Bundle": "didi.models.bundle",
    "DidiError": "didi.errors",
    "Generation": "didi.sampling.generate",
    "Guidance": "didi.sampling.guided",
    "Prompt": "didi.sampling.prompts",
    "SamplingOptions": "didi.sampling.options",
    "UsageError": "didi.errors",
    "evaluate": "didi.evaluation.evaluate",
    "generate": "didi.sampling.generate",
    "load": "didi.models.bundle",
    "Move": "didi.sampling.stream",
    "save": "didi.models.bundle",
    "stream": "didi.sampling.stream",
}
"""The module that defines each public name."""

__all__ = [
    "Bundle",
    "DidiError",
    "Generation",
    "Guidance",
    "Move",
    "Prompt",
    "SamplingOptions",
    "UsageError",
    "__version__",
    "evaluate",
    "generate",
    "load",
    "save",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # later accesses do not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("didi-instruct")
    except PackageNotFoundError:  # the package is imported from a source tree
        return "0+unknown"
