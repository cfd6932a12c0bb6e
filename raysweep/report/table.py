"""A table as values, and in the formats that people paste: text, Markdown, LaTeX, CSV, HTML."""

from __future__ import annotations

import csv
import html
import io
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from raysweep.report.cells import Cell

__all__ = ["FORMATS", "Head", "TableRow", "SHOWN", "Table", "cell_text", "html_table", "render"]

SHOWN = ("mean", "std", "se", "ci", "n")
FORMATS = ("text", "md", "latex", "csv", "html")
MISSING, FAILED, NOT_MEMORIZED = "·", "✗", "*"


@dataclass(frozen=True, slots=True)
class Head:
    """A column: what it is called, the group that it stands in, whether it is an average of others, and which rows of the
    dataframe it shows."""

    label: str
    group: str = ""
    average: bool = False
    where: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its labels, its cells, the section that it stands in, and the rows of the dataframe that it shows."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    section: str = ""
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table as values; `show` says what stands beside a mean. Notebooks show it as HTML, `str` as text."""

    title: str
    heads: tuple[str, ...]
    columns: tuple[Head, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    show: str = "std"

    def __str__(self) -> str:
        return "\n".join([self.title, render(self), *self.legend()])

    def _repr_html_(self) -> str:
        return render(self, "html")

    def legend(self) -> list[str]:
        """What the marks of this table mean, only those that stand in it, and what it averages over."""
        cells = [cell for row in self.rows for cell in row.cells]
        meanings = {
            "· nothing finished yet": any(cell.mean is None and not cell.failed for cell in cells),
            "✗ failed": any(cell.mean is None and cell.failed for cell in cells),
            "(n/N) n of N trials are finished": any(0 < cell.n < cell.planned for cell in cells),
            "* a first stage did not memorize D_A": any(not cell.memorized for cell in cells),
            **_spreads(cells, self.show),
            "underlined (_) the lowest of its row": any(cell.mark == "lowest" for cell in cells),
            "underlined (_) the highest of its row": any(cell.mark == "highest" for cell in cells),
        }
        told = [meaning for meaning, there in meanings.items() if there]
        return [*(["; ".join(told)] if told else []), *self.notes]


def _spreads(cells: Sequence[Cell], show: str) -> dict[str, bool]:
    """What stands beside the means, and why it does not stand beside others."""
    shown = [cell for cell in cells if cell.mean is not None]
    if show == "ci":
        with_one = any(cell.low is not None for cell in shown)
        without = {cell.basis: True for cell in shown if cell.low is None and cell.basis}
        bounds = {cell.basis: True for cell in shown if cell.low is not None and not cell.basis.startswith("Student")}
        return {
            "[low, high] 95 % interval of the mean over seeds, on these facts (Student's t)": with_one,
            **bounds,
            **without,
        }
    beside = {"std": "standard deviation", "se": "standard error"}.get(show)
    return (
        {f"± {beside} of a sample of (n) trials": any(_beside(cell, show) is not None for cell in shown)}
        if beside
        else {}
    )


def _beside(cell: Cell, show: str) -> float | None:
    return {"std": cell.std, "se": cell.se}.get(show)


def render(table: Table, format: str = "text") -> str:
    """The table in one of FORMATS."""
    match format:
        case "text":
            return _text(table)
        case "md":
            return _markdown(table)
        case "latex":
            return _latex(table)
        case "csv":
            return _csv(table)
        case "html":
            return html_table(table)
        case _:
            raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")


def cell_text(cell: Cell, show: str, *, plus_minus: str = " ± ") -> str:
    """A cell's content: `86.0 ± 2.1 (2)`; n stands as n/N where trials of the cell are missing."""
    if cell.mean is None:
        return FAILED if cell.failed else MISSING
    count = f"{cell.n}/{cell.planned}" if cell.n < cell.planned else str(cell.n)
    star = NOT_MEMORIZED if not cell.memorized else ""
    beside = _beside(cell, show)
    match show:
        case "mean":
            shown = f" ({count})" if cell.n < cell.planned else ""
            return f"{cell.mean:.1f}{shown}{star}"
        case "n":
            return f"{cell.mean:.1f} ({count}){star}"
        case "ci" if cell.low is not None:
            return f"{cell.mean:.1f} [{cell.low:.1f}, {cell.high:.1f}] ({count}){star}"
    spread = f"{plus_minus}{beside:.1f}" if beside is not None else ""
    return f"{cell.mean:.1f}{spread} ({count}){star}"


def _text(table: Table) -> str:
    columns = [*table.heads, *(head.label for head in table.columns)]
    body = [
        [*row.labels, *(f"_{text}_" if cell.mark else text for cell, text in _cells(row, table))] for row in table.rows
    ]
    widths = [max(_width(line[place]) for line in [columns, *body]) for place in range(len(columns))]
    aligned = [_aligned(line, widths, len(table.heads)) for line in [columns, *body]]
    lines = [_group_line(table, widths), aligned[0]] if _groups(table) else [aligned[0]]
    section = ""
    for row, line in zip(table.rows, aligned[1:], strict=True):
        if row.section != section:
            lines.append(row.section)
        section = row.section
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


def _markdown(table: Table) -> str:
    heads = ["D_A", *table.heads] if _sections(table) else list(table.heads)
    columns = [*heads, *(_grouped_label(head.group, head.label, table) for head in table.columns)]
    lines = [columns, ["---"] * len(heads) + ["---:"] * len(table.columns)]
    for row in table.rows:
        labels = [row.section, *row.labels] if _sections(table) else list(row.labels)
        lines.append([*labels, *(f"<u>{text}</u>" if cell.mark else text for cell, text in _cells(row, table))])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _latex(table: Table) -> str:
    first = len(table.heads)
    spec = "l" * first + "r" * len(table.columns)
    lines = [f"\\begin{{tabular}}{{{spec}}}", "\\toprule"]
    if _groups(table):
        spans = [f"\\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}" for name, count in _groups(table)]
        lines.append(" & ".join([*[""] * first, *spans]) + " \\\\")
    lines.append(" & ".join(_tex(label) for label in (*table.heads, *(head.label for head in table.columns))) + " \\\\")
    for section, rows in groupby(table.rows, key=lambda row: row.section):
        lines.append("\\midrule")
        if section:
            lines.append(f"\\multicolumn{{{first + len(table.columns)}}}{{l}}{{\\textbf{{{_tex(section)}}}}} \\\\")
        lines += [_latex_row(row, table) for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in table.legend())])


def _latex_row(row: TableRow, table: Table) -> str:
    cells = [
        f"\\underline{{{_tex(text)}}}" if cell.mark else _tex(text)
        for cell, text in _cells(row, table, plus_minus=" ± ")
    ]
    return " & ".join([*(_tex(label) for label in row.labels), *cells]) + " \\\\"


def _csv(table: Table) -> str:
    """Numbers in full, each with its std, n and N in columns of its own (and its interval); empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sections = ["section"] if _sections(table) else []
    labels = [_grouped_label(head.group, head.label, table) for head in table.columns]
    ends = ("", " std", " n", " N", *((" low", " high") if table.show == "ci" else ()))
    writer.writerow([*sections, *table.heads, *(f"{label}{end}" for label in labels for end in ends)])
    for row in table.rows:
        section = [row.section] if sections else []
        parts = [(cell.mean, cell.std, cell.n, cell.planned, cell.low, cell.high) for cell in row.cells]
        numbers = [part for cell in parts for part in cell[: len(ends)]]
        writer.writerow([*section, *row.labels, *("" if part is None else part for part in numbers)])
    return out.getvalue().rstrip("\n")


def html_table(table: Table, *, link: Callable[[TableRow, int], str] | None = None) -> str:
    """An HTML table with its caption, heads in scope and notes; `link` gives the command behind a cell."""
    groups = _groups(table)
    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>", "<thead>"]
    if groups:
        blank = f'<td colspan="{len(table.heads)}"></td>'
        spans = "".join(f'<th scope="colgroup" colspan="{count}">{html.escape(name)}</th>' for name, count in groups)
        lines.append(f"<tr>{blank}{spans}</tr>")
    labels = [*table.heads, *(head.label for head in table.columns)]
    words = ['<th scope="col" class="words">'] * len(table.heads) + ['<th scope="col">'] * len(table.columns)
    heads = (f"{tag}{html.escape(label)}</th>" for tag, label in zip(words, labels, strict=True))
    lines.append(f"<tr>{''.join(heads)}</tr></thead>")
    for section, rows in groupby(table.rows, key=lambda row: row.section):
        lines.append("<tbody>")
        if section:
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(labels)}">{html.escape(section)}</th></tr>')
        lines += [_html_row(row, table, link) for row in rows]
        lines.append("</tbody>")
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in table.legend())
    return "\n".join([*lines, "</table>", notes])


def _html_row(row: TableRow, table: Table, link: Callable[[TableRow, int], str] | None) -> str:
    heads = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in row.labels)
    cells = []
    for place, (cell, text) in enumerate(_cells(row, table)):
        shown = f"<u>{html.escape(text)}</u>" if cell.mark else html.escape(text)
        if link and cell.planned:
            shown = f'<a href="#command" data-command="{html.escape(link(row, place))}">{shown}</a>'
        order = "" if cell.mean is None else f' data-value="{cell.mean:.6g}"'
        cells.append(f"<td{order}>{shown}</td>")
    return f"<tr>{heads}{''.join(cells)}</tr>"


def _cells(row: TableRow, table: Table, *, plus_minus: str = " ± ") -> list[tuple[Cell, str]]:
    return [(cell, cell_text(cell, table.show, plus_minus=plus_minus)) for cell in row.cells]


def _groups(table: Table) -> list[tuple[str, int]]:
    """Groups of columns in their order with their widths; none where all columns stand in the same."""
    found = [(name, len(list(heads))) for name, heads in groupby(table.columns, key=lambda head: head.group)]
    return found if len(found) > 1 else []


def _sections(table: Table) -> bool:
    return any(row.section for row in table.rows)


def _grouped_label(group: str, label: str, table: Table) -> str:
    """A label that stands alone: averages of several groups are told apart."""
    labels = [head.label for head in table.columns]
    return f"{group} {label}" if labels.count(label) > 1 else label


def _group_line(table: Table, widths: Sequence[int]) -> str:
    place = len(table.heads)
    line = " " * (sum(widths[:place]) + 2 * place)
    for name, count in _groups(table):
        line += name.center(sum(widths[place : place + count]) + 2 * (count - 1)) + "  "
        place += count
    return line


def _aligned(line: Sequence[str], widths: Sequence[int], labels: int) -> str:
    """Labels to the left, numbers to the right."""
    pads = [" " * (width - _width(text)) for text, width in zip(line, widths, strict=True)]
    return "  ".join(
        text + pad if place < labels else pad + text for place, (text, pad) in enumerate(zip(line, pads, strict=True))
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _tex(text: str) -> str:
    for plain, written in (("\\", "\\textbackslash{}"), ("&", "\\&"), ("%", "\\%"), ("#", "\\#"), ("_", "\\_"),
                           ("$", "\\$"), ("±", "$\\pm$"), ("·", "$\\cdot$"), ("✗", "$\\times$")):  # fmt: skip
        text = text.replace(plain, written)
    return text
