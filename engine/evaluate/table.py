"""Tables of scores as text, Markdown or LaTeX, the best figure of each column in bold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

FORMATS = ("text", "markdown", "latex")
NOT_REPORTED, NOT_MEASURED = "–", "not measured"
ARROWS = {True: " ↑", False: " ↓", None: ""}
HEADER_WIDTH = 12
PAPERS = " (paper)"  # marks the paper's own rows
BOLD, PLAIN = "\033[1m", "\033[0m"

Figure = float | str | None  # a string is printed as it is, None stands for a figure that is not reported


@dataclass(frozen=True)
class Column:
    """A column: its exact name, digits after the point, and which of two figures is the better."""

    name: str
    digits: int
    higher_is_better: bool | None  # None: neither


@dataclass(frozen=True)
class Line:
    """A row of a table. competes: whether its figures may be the best of their columns."""

    label: str
    figures: Mapping[str, Figure]
    competes: bool = True


@dataclass
class Table:
    """A table and what must be said under it. caption: LaTeX's, which numbers tables itself; by default the title."""

    title: str
    columns: list[Column]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    caption: str = ""

    def render(self, form: str, colours: bool = False) -> str:
        """The table as `form` (text, markdown or latex). In text the best figures are bold where `colours` says that a
        terminal can show it, else between asterisks."""
        header = ["", *(column.name + ARROWS[column.higher_is_better] for column in self.columns)]
        best = {column.name: self._best(column) for column in self.columns}
        body = [
            [
                (line.label, False),
                *(
                    (
                        text := printed(line.figures.get(column.name), column),
                        line.competes and text == best[column.name],
                    )
                    for column in self.columns
                ),
            ]
            for line in self.lines
        ]
        draw = {"text": _text, "markdown": _markdown, "latex": _latex}[form]
        title = self.caption if form == "latex" and self.caption else self.title
        return draw(title, header, body, self.notes, colours)

    def _best(self, column: Column) -> str | None:
        """The best figure as it is printed, so that ties are all in bold."""
        figures = [line.figures.get(column.name) for line in self.lines if line.competes]
        numbers = [figure for figure in figures if isinstance(figure, (int, float)) and not math.isnan(figure)]
        if len(numbers) < 2 or column.higher_is_better is None:
            return None  # nothing to be better than
        return printed(max(numbers) if column.higher_is_better else min(numbers), column)


def printed(figure: Figure, column: Column) -> str:
    if figure is None:
        return NOT_REPORTED
    if isinstance(figure, str):
        return figure
    return f"{figure:.{column.digits}f}" if math.isfinite(figure) else str(figure)


def _text(title: str, header: list[str], body: list[list[tuple[str, bool]]], notes: list[str], colours: bool) -> str:
    mark = "" if colours else "*"
    stacks = [_stacked(name) for name in header]
    height = max(map(len, stacks))
    heads = [list(row) for row in zip(*([""] * (height - len(stack)) + stack for stack in stacks), strict=True)]
    rows = [*heads, *([f"{mark}{text}{mark}" if bold else text for text, bold in row] for row in body)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = []
    for row, cells in zip(rows, [[]] * height + body, strict=True):
        padded = [row[0].ljust(widths[0]), *(text.rjust(widths[k]) for k, text in enumerate(row[1:], start=1))]
        if colours and cells:
            padded = [f"{BOLD}{text}{PLAIN}" if bold else text for text, (_, bold) in zip(padded, cells, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([title, "", *lines, *([""] if notes else []), *notes])


def _stacked(name: str) -> list[str]:
    """A column's name broken at its underscores, so that a table of ten columns fits a terminal."""
    pieces = [""]
    for piece in re.findall(r"[^_]*_|[^_]+", name):
        if pieces[-1] and len(pieces[-1] + piece) > HEADER_WIDTH:
            pieces.append("")
        pieces[-1] += piece
    return pieces


def _markdown(title: str, header: list[str], body: list[list[tuple[str, bool]]], notes: list[str], _: bool) -> str:
    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|").replace("_", r"\_") for cell in cells) + " |"

    lines = [row(header), "|---|" + "---:|" * (len(header) - 1)]
    lines += [row([f"**{text}**" if bold else text for text, bold in cells]) for cells in body]
    return "\n".join([f"**{title}**", "", *lines, *(f"\n{note}" for note in notes)])


def _latex(title: str, header: list[str], body: list[list[tuple[str, bool]]], notes: list[str], _: bool) -> str:
    lines = [
        *(f"% {note}" for note in notes),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(title)}.}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\hline",
        " & ".join(map(_escaped, header)) + r" \\",
        r"\hline",
    ]
    for cells in body:
        texts = (rf"\textbf{{{_escaped(text)}}}" if bold else _escaped(text) for text, bold in cells)
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"])


def _escaped(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "–": "--",
        "…": r"\ldots{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        **{letter: "\\" + letter for letter in "_%&#${}"},
    }
    return "".join(special.get(letter, letter) for letter in text)
