"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, num_left: int = 1, align: str = ""
) -> list[str]:
    """Lines of a Markdown table.

    Args:
        header: Column titles.
        rows: Cells of each row, as many as there are columns.
        num_left: Columns from the left that are aligned left; the others are aligned right.
        align: ``l`` or ``r`` for each column, in place of ``num_left``.

    Returns:
        The header, the line below it, and one line per row.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """
    align = align or "l" * num_left + "r" * (len(header) - num_left)
    lines = [_line(header), "|" + "".join("---|" if side == "l" else "--:|" for side in align)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has as many cells as there are columns ({len(header)}); got {len(row)}")
        lines.append(_line([str(cell) for cell in row]))
    return lines


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> list[str]:
    """Lines of a Markdown table with cells padded to the width of their column, legible as plain text.

    Arguments as in ``markdown_table``.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    dashes = ["-" * width if i < num_left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [
        _line([cell.ljust(w) if i < num_left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))])  # noqa: B905
        for line in [header, dashes, *rows]
    ]


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
