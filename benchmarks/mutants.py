"""Mutation testing: docs/results/mutants.json.

    python benchmarks/mutants.py [MODULE ...] [--sample N] [--seed S] [--results FILE] [--minutes M]
                                 [--survivors] [--fast] [--named]

A mutant is a module with one small change, made by an operator of Cosmic Ray or by one of two further operators (a
keyword argument left out, an update of a variable left out). Tests of a mutant, first the fast ones, then the slow ones
if it survives them, run in a fork of this process, which has imported all modules that do not depend on the mutated
one; no file is changed. Survivors are listed in the results with a reason, written by hand, why no test of their module
can kill them. Reasons are kept from run to run, and those of docs/results/mutants.json are used in other files, too.
"""

import argparse
import gc
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Literal

import grimp
import jaxtyping
import pytest
import torch
from mutant_operators import mutants_of
from mutant_tests import NAMED, TESTS

from didi.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "mutants.json"
MARKERS = "not network and not gpu and not large"
Outcome = Literal["killed", "survived", "timeout"]


class ModuleTests:
    """The tests of a module: the fast ones, then the slow ones.

    The limit of each kind is three times the processor time with the module itself, plus 5 seconds.

    Args:
        module: name of the module in ``TESTS``.
        path: file of the module.
        tests: arguments of pytest.
        is_fast: whether to leave out the slow tests.
    """

    def __init__(self, module: str, path: Path, tests: list[str], *, is_fast: bool = False) -> None:
        self._module, self._path, self._tests, self._limits = module, path, tests, dict[str, float]()
        self._speeds = ["not slow"] if is_fast else ["not slow", "slow"]

    def outcome(self, source: str) -> Outcome:
        """Run the tests, the fast ones first, on the module with another source.

        Raises:
            SystemExit: the tests fail with the source of the module.
        """
        result: Outcome = "survived"
        for speed in self._speeds:
            if result == "survived":
                arguments = [*self._tests, "-m", f"{speed} and {MARKERS}"]
                if speed not in self._limits:
                    self._limits[speed] = self._measured_limit(arguments)
                result, _ = _outcome_in_fork(self._path, source, arguments, self._limits[speed])
        return result

    def _measured_limit(self, arguments: list[str]) -> float:
        result, seconds = _outcome_in_fork(self._path, None, arguments, math.inf)
        if result != "survived":
            sys.exit(f"the tests of {self._module} fail without any mutation: {' '.join(arguments)}")
        return 3 * seconds + 5


def _outcome_in_fork(path: Path, source: str | None, arguments: list[str], seconds: float) -> tuple[Outcome, float]:
    """The outcome with a limit of processor time (waiting: 20 times that), and the processor time in seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if seconds < math.inf:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.RLIM_INFINITY))
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        code = 1
        with suppress(BaseException):
            if source is not None:
                _replace_source(path, source)
            code = int(pytest.main(["-x", "-p", "no:cacheprovider", "--assert=plain", "--tb=no", *arguments]))
        os._exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
    end = time.monotonic() + 20 * seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            is_stopped = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
            result: Outcome = "survived" if status == 0 else "timeout" if is_stopped else "killed"
            return result, usage.ru_utime + usage.ru_stime
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", math.inf
        time.sleep(0.02)


def _replace_source(path: Path, source: str) -> None:
    """Make imports of a file read this source, and no compiled copy of the file."""
    read, compiled = SourceFileLoader.get_data, f"{path.parent}/__pycache__/{path.stem}."

    def get_data(loader, name):
        if str(name).startswith(compiled):
            raise OSError
        return source.encode() if str(name) == str(path) else read(loader, name)

    SourceFileLoader.get_data = get_data
    sys.dont_write_bytecode = True


def import_independent_modules(module: str) -> None:
    """Import the modules of didi that do not depend on ``module``; a module depends on the packages that contain it."""
    graph = grimp.build_graph("didi", cache_dir=None)
    dependent = {module, *graph.find_downstream_modules(module)}

    def parents(name: str) -> Iterator[str]:
        parts = name.split(".")
        return (".".join(parts[:end]) for end in range(1, len(parts)))

    while more := {
        n
        for n in graph.modules - dependent
        if any(p in dependent for needed in (n, *graph.find_upstream_modules(n)) for p in parents(needed))
    }:
        dependent |= more  # fmt: skip
    with jaxtyping.install_import_hook("didi", "beartype.beartype"):
        for name in sorted(graph.modules - dependent):
            if not name.endswith("__main__"):
                with suppress(ImportError):
                    import_module(name)
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # imports what most tests use
    assert module not in sys.modules
    gc.freeze()  # garbage collections in the forks skip the objects so far


def run_module(module: str, options: argparse.Namespace, known: dict) -> dict:
    """Figures and survivors of one module."""
    path, tests = ROOT / "src" / f"{module}.py", TESTS[module]
    name = module.replace("/", ".")
    import_independent_modules(name)
    start, of_module = time.monotonic(), ModuleTests(module, path, tests, is_fast=options.fast)
    mutants = mutants_of(path.read_text("utf-8"))
    earlier = [*_stored(RESULTS).get(module, {}).get("survivors", []), *known.get("survivors", [])]
    reasons = {(entry["old"], entry["new"]): entry["reason"] for entry in earlier if entry["reason"]}
    if options.survivors:
        survived = {(entry["old"], entry["new"]) for entry in known["survivors"]}
        tried = [mutant for mutant in mutants if (mutant.old, mutant.new) in survived]
    else:
        tried = random.Random(options.seed).sample(mutants, min(options.sample or len(mutants), len(mutants)))
    counts, survivors = {"killed": 0, "survived": 0, "timeout": 0}, []
    for done, mutant in enumerate(tried):
        if time.monotonic() > start + 60 * options.minutes:
            tried = tried[:done]
            break
        result = of_module.outcome(mutant.source)
        counts[result] += 1
        if result == "timeout":
            print(f"{module}, timeout: {mutant.old} > {mutant.new}", flush=True)
        if result == "survived":
            survivors.append(
                {"old": mutant.old, "new": mutant.new, "reason": reasons.get((mutant.old, mutant.new), "")}
            )
            print(f"{module}: {mutant.old}\n{' ' * len(module)}> {mutant.new}", flush=True)
    # Earlier survivors that the operators no longer produce are not counted.
    num_tried = known["tried"] - len(survived - {(m.old, m.new) for m in tried}) if options.survivors else len(tried)
    equivalent = sum(bool(entry["reason"]) for entry in survivors)
    print(f"{module}: {num_tried} of {len(mutants)} mutants tried in {time.monotonic() - start:.0f} s, "
          f"{len(survivors)} survived, {equivalent} of them with a reason", flush=True)  # fmt: skip
    return {
        "mutants": len(mutants),
        "tried": num_tried,
        "killed": num_tried - len(survivors),
        "survived": len(survivors),
        "equivalent": equivalent,
        "survivors": survivors,
    }


def run_named(module: str) -> None:
    """Test the mutations of ``NAMED`` of a module, one at a time, with the wiring tests.

    Raises:
        SystemExit: a mutant survived.
    """
    path = ROOT / "src" / f"{module}.py"
    source, tests = path.read_text("utf-8"), ["tests/training/test_wiring.py"]
    import_independent_modules(module.replace("/", "."))
    of_module, survivors = ModuleTests(module, path, tests), []
    for name, (old, new) in NAMED[module].items():
        if source.count(old) != 1:
            sys.exit(f"{module}, {name}: the source has changed")
        result = of_module.outcome(source.replace(old, new))
        print(f"{name}: {result}", flush=True)
        survivors += [name] * (result == "survived")
    if survivors:
        sys.exit(f"survived: {', '.join(survivors)}")


def in_child(work, *arguments) -> None:
    """Call a function in a fork, so that its imports do not remain in this process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except SystemExit as error:
            print(error, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)


def record(module: str, options: argparse.Namespace) -> None:
    """Run one module and write its part of the results."""
    known = _stored(options.results).get(module, {})
    if options.survivors and not known:
        sys.exit(f"{options.results} has no survivors of {module}: run it without --survivors first")
    of_module = run_module(module, options, known)
    results = {**_stored(options.results), module: of_module}  # read again: reasons may have been written since
    write_atomically(options.results, json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def _stored(results: Path) -> dict:
    return json.loads(results.read_text("utf-8")) if results.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, help="at most so many mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each module after this time")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last run")
    parser.add_argument("--fast", action="store_true", help="only fast tests; then run --survivors without this option")
    parser.add_argument("--named", action="store_true", help="only the named mutations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results = arguments.results.absolute()
    os.chdir(ROOT)
    if arguments.named:
        for module in NAMED:
            in_child(run_named, module)
        return
    for module in arguments.modules:
        in_child(record, module, arguments)


if __name__ == "__main__":
    main()
