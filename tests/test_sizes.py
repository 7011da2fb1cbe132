"""Files of the package have at most 300 lines, functions at most 60, with their docstrings."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "didi"
FILE_LINES, FUNCTION_LINES = 300, 60


def lengths():
    """Name and number of lines of every file, and of every function in it."""
    for path in sorted(SOURCE.rglob("*.py")):
        name, text = path.relative_to(SOURCE).as_posix(), path.read_text()
        functions = {
            f"{name}, {node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        yield name, len(text.splitlines()), functions


def test_files_and_functions_are_short():
    files = list(lengths())
    assert len(files) > 100
    long = {name: lines for name, lines, _ in files if lines > FILE_LINES}
    long |= {name: lines for _, _, functions in files for name, lines in functions.items() if lines > FUNCTION_LINES}
    assert not long
