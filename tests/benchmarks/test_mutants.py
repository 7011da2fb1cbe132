"""The lists of ``benchmarks/mutant_tests.py`` name code and tests that exist; CONTRIBUTING.md has the results."""

import json
from pathlib import Path

import pytest
from mutant_tests import NAMED, TESTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, named in NAMED.items() for name in named])
def test_a_named_mutation_changes_one_place(module, name):
    source, (old, new) = (ROOT / "src" / f"{module}.py").read_text("utf-8"), NAMED[module][name]
    assert source.count(old) == 1
    assert new not in source


@pytest.mark.parametrize("module", TESTS)
def test_modules_and_their_tests_exist(module):
    assert (ROOT / "src" / f"{module}.py").is_file()
    for test in TESTS[module]:
        file, _, name = test.partition("::")
        assert (ROOT / file).exists()
        assert not name or f"def {name}(" in (ROOT / file).read_text("utf-8")


def test_every_survivor_has_a_reason_and_the_page_states_the_figures():
    results = json.loads((RESULTS / "mutants.json").read_text("utf-8"))
    assert not [old for figures in results.values() for old in figures["survivors"] if not old["reason"]]
    tried, killed, mutants = (sum(of[name] for of in results.values()) for name in ("tried", "killed", "mutants"))
    page = " ".join((ROOT / "CONTRIBUTING.md").read_text("utf-8").split())
    assert f"a sample: {tried:,} of the {mutants:,} mutants of {len(results)} modules" in page
    assert f"{killed:,} were killed" in page
    assert f"For each of the other {tried - killed} the file gives a reason" in page
    later = [json.loads((RESULTS / f"mutants-seed-{seed}.json").read_text("utf-8")) for seed in (1, 2, 3)]
    assert [sum(of["tried"] for of in sample.values()) for sample in later] == [
        341,
        340,
        341,
    ]  # one has left the source
    survivors = [[old for figures in sample.values() for old in figures["survivors"]] for sample in later]
    assert all(old["reason"] for sample in survivors for old in sample)
    first, second, third = map(len, survivors)
    assert f"that still survives has a reason in the files: {first}, {second} and {third}." in page
