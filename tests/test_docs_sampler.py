"""The code of docs/add-a-sampler.md: the sampler is registered by the entry of the page and passes its tests."""

import didi
from didi.sampling import registry

from .docs_pages import blocks, functions_of, module_from

BLOCKS = blocks("add-a-sampler.md")
SAMPLER, TEST = "src/didi/sampling/even.py", "tests/sampling/test_even.py"


def test_the_tests_of_the_page_pass(monkeypatch, tmp_path):
    module_from(BLOCKS[SAMPLER], SAMPLER, monkeypatch, tmp_path)
    line, entry = (code for name, code in BLOCKS.items() if isinstance(name, int))
    names = dict(vars(registry))
    exec(line, names)
    for name, kinds in eval(f"{{{entry}}}", names).items():
        monkeypatch.setitem(registry.SAMPLERS, name, kinds)
    tests = functions_of(module_from(BLOCKS[TEST], TEST, monkeypatch, tmp_path))
    assert tests
    for test in tests:
        test()
    assert didi.generate(didi.load("markov"), num_samples=1, nfe=4, sampler="even", temperature=0.5).nfe == 4
