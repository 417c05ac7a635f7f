"""Expands the grids of params.yaml into experiments and figures, and lists the cells for DVC.

A cell is an experiment like any other, so that all that comes after the expansion knows no grids.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline import paths
from pipeline.config.axes import MOST_CELLS
from pipeline.config.mistakes import MOST_FIGURE_CELLS, Mistake, choices
from pipeline.config.schema import Grid, Params, Settings
from pipeline.errors import shown
from pipeline.files import write_text
from pipeline.settings import LONGEST_NAME, NAME_RULE, Name, sections_in

MOST_COLUMNS = 20
"""Values of the last axis up to which each is a column. More are wrapped into rows."""
_ENTRY = TypeAdapter(dict[Name, Grid])
_HEADER = """\
# The cells of the grids in params.yaml. DVC adds them to `experiments` there, as dvc.yaml says.
# `python -m pipeline run` and the stage `plan` write this file: edit the grids, and commit both.
"""


def expanded(content: dict[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """Returns the content of params.yaml with the cells and figures of its grids, and mistakes.

    A cell has the keys of its base experiment and the values of the axes. The figures of grids come
    first. Grids whose form is wrong stay as they are, for ``Params`` to say why, and so do those
    with mistakes.
    """
    sections: list[Any] = [content.get(key) for key in ("grids", "experiments", "figures")]
    if not all(isinstance(section, dict) for section in sections):
        return content, []
    raw, experiments, figures = sections
    # Only numbers in the names of cells have a point: DVC takes one for the end of a key.
    mistakes = [
        Mistake(("experiments", name), f"{shown(name)}: {NAME_RULE}")
        for name in experiments
        if isinstance(name, str) and "." in name
    ]
    valid = {name: grid for name, each in raw.items() for grid in _valid(name, each)}
    count = sum(grid.size for grid in valid.values())
    if count > MOST_CELLS:
        text = f"{count:,} cells, but all grids together have up to {MOST_CELLS:,}. Take fewer"
        return content, [*mistakes, Mistake(("grids",), f"{text} values")]
    grids: dict[str, Grid] = {}
    cells: dict[str, Any] = {}
    of_grids: dict[str, Any] = {}  # their figures
    for name, grid in valid.items():
        new = dict(grid.cells(name))
        own = _figures(name, grid, list(new))
        taken = [figure for figure in own if figure in figures or figure in of_grids]
        if text := _section_mistake(grid):
            mistakes.append(Mistake(("grids", name, "over"), text))
        elif grid.base in cells:
            text = f"{grid.base} is a cell of a grid, but a base is one of the `experiments`"
            mistakes.append(Mistake(("grids", name, "base"), text))
        elif grid.base not in experiments:
            text = f"no experiment {grid.base!r}{choices('experiments', grid.base, experiments)}"
            mistakes.append(Mistake(("grids", name, "base"), text))
        elif text := _name_mistake(name, grid, {**experiments, **cells}):
            mistakes.append(Mistake(("grids", name), text))
        elif taken:
            text = f"there is a figure {taken[0]!r}, and a grid makes one of its name. Rename one"
            mistakes.append(Mistake(("grids", name), text))
        elif isinstance(base := experiments[grid.base] or {}, dict):
            grids[name] = grid
            cells |= {cell: with_values(base, values) for cell, values in new.items()}
            of_grids |= own
    everything = {
        "grids": {**raw, **grids},
        "experiments": {**experiments, **cells},
        "figures": {**of_grids, **figures},
    }
    return {**content, **everything}, mistakes


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with some of them replaced; of a section such as ``lbfgs`` single keys."""
    both = {**settings, **changes}
    for key in _SECTIONS:
        parts = settings.get(key), changes.get(key)
        if all(isinstance(part, dict) for part in parts):
            both[key] = {**settings[key], **changes[key]}
    return both


_SECTIONS = [key for key, f in Settings.model_fields.items() if any(sections_in(f.annotation))]


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an experiment's own keys with the values of a cell."""
    settings = dict(base)
    for key, value in values.items():
        section, dot, inner = key.partition(".")
        settings = merged(settings, {section: {inner: value} if dot else value})
    return settings


def update_cells_file(params: Params) -> bool:
    """Writes the names of all cells for DVC; returns whether DVC has read other ones."""
    listed = "\n".join(f"  {cell}: {{}}" for cell in sorted(params.grid_of))
    text = f"{_HEADER}experiments:\n{listed or '  {}'}\n"
    before = paths.CELLS.read_text(encoding="utf-8") if paths.CELLS.is_file() else None
    if text == before:
        return False
    write_text(paths.CELLS, text)
    return before is not None


def _valid(name: Any, raw: Any) -> list[Grid]:
    try:
        return list(_ENTRY.validate_python({name: raw}).values())
    except ValidationError:
        return []


def _section_mistake(grid: Grid) -> str:
    """Returns what is wrong with an axis that is a section and has values that are none."""
    for key, values in grid.over.items():
        if key not in _SECTIONS:
            continue
        for label, value in values.items():
            if value is not None and not isinstance(value, dict):
                return (
                    f"{key} is a section, and {shown(value)} is the value of a setting. Write the "
                    f"setting with a dot, such as {key}.{label} if {label} is one"
                )
    return ""


def _name_mistake(name: str, grid: Grid, taken: Mapping[Any, Any]) -> str:
    """Returns what is wrong with the first name of a cell that cannot be one; empty if none is."""
    seen: dict[str, Mapping[str, Any]] = {}
    for cell, values in grid.cells(name):
        if len(cell) > LONGEST_NAME:
            return (
                f"the name of its cell {cell} has {len(cell)} characters, but {LONGEST_NAME} is "
                "the most. Give the grid a shorter name, or the values short labels"
            )
        if cell in taken:
            return f"its cell {cell} has the name of another experiment. Rename the grid"
        if cell in seen:
            return (
                f"the cells {_described(seen[cell])} and {_described(values)} have one name, "
                f"{cell}. Give the values other labels"
            )
        seen[cell] = values
    return ""


def _described(values: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{key} {value}" for key, value in values.items()) + ")"


def _figures(name: str, grid: Grid, cells: list[str]) -> dict[str, Any]:
    """Returns the figures of a grid: the last axis gives the columns, all others the rows.

    Several figures, if the cells are more than a contact sheet can show.
    """
    *outer, (key, columns) = grid.over.items()
    labels, lines_each = list(columns), -(-len(columns) // MOST_COLUMNS)
    width = -(-len(labels) // lines_each)
    places = range(0, len(labels), width)
    spans = [""]
    if lines_each > 1:
        spans = [f"{key} {labels[p]} to {labels[min(p + width, len(labels)) - 1]}" for p in places]
    titles = [""]
    for row_key, values in outer:
        if len(values) > 1:
            titles = [
                f"{t}{', ' if t else ''}{row_key} {label}" for t in titles for label in values
            ]
    rows, row_titles = [], []
    for start in range(0, len(cells), len(columns)):
        row, title = cells[start : start + len(columns)], titles[start // len(columns)]
        rows += [row[place : place + width] for place in places]
        row_titles += [", ".join(filter(None, (title, span)))[:200] for span in spans]
    per_figure = MOST_FIGURE_CELLS // width
    starts = range(0, len(rows), per_figure)
    figures = {}
    for number, start in enumerate(starts, 1):
        part = slice(start, start + per_figure)
        of_all = f" ({number} of {len(starts)})" if len(starts) > 1 else ""
        figures[name if number == 1 else f"{name}-{number}"] = {
            "title": f"{grid.title or name}{of_all}",
            "caption": grid.caption,
            "rows": rows[part],
            "row_titles": row_titles[part] if any(row_titles) else [],
            "column_titles": [f"{key} {c}" for c in labels] if lines_each == 1 else [],
        }
    return figures
