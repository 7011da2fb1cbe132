"""didi: masked-diffusion language models distilled into few-step students by DiDi-Instruct, and measured honestly.

```python
import didi

bundle = didi.load("tiny-news")
out = didi.generate(bundle, num_samples=8, nfe=16, seed=0)
rows = didi.evaluate(bundle, nfe=[4, 8, 16], num_samples=256, judge="smollm2-135m")
```
"""

from importlib.metadata import PackageNotFoundError, version

from didi.errors import DidiError, UsageError
from didi.evaluation.evaluate import evaluate
from didi.models.bundle import Bundle, load, save
from didi.sampling.generate import Generation, generate
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions

try:
    __version__ = version("didi-instruct")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Bundle",
    "DidiError",
    "Generation",
    "Guidance",
    "SamplingOptions",
    "UsageError",
    "__version__",
    "evaluate",
    "generate",
    "load",
    "save",
]
