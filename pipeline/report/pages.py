"""The report's pages: what each template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pipeline import paths
from pipeline.config.schema import CataloguedImage, Figure, ReportSettings
from pipeline.experiments.results import as_text, variations
from pipeline.files import write_text
from pipeline.report.contact_sheets import contact_sheet
from pipeline.report.measures import MEASURES, Measurement
from pipeline.report.media import MEDIA, Picture, Shown, relative

PAGES, SHEETS = paths.REPORTS / "experiments", paths.REPORTS / "sheets"
ASSETS = "report.css", "report.js"
OTHERS = "_others"
"""The figure of what is in none; no name in params.yaml begins so."""


@dataclass(frozen=True)
class Panel:
    """A figure with what shows it.

    Attributes:
        name: of the figure in params.yaml.
        layout: its section there.
        rows: the grid.
        captions: {experiment: {setting that varies in the figure: its value}}.
        inputs: {catalogued picture: it}, of all its cells.
        measurement: what its claim measures, None without one or without results.
        plot: path of the measurement's plot, relative to ``reports``.
    """

    name: str
    layout: Figure
    rows: list[list[Shown]]
    captions: dict[str, dict[str, str]]
    inputs: dict[str, Picture]
    measurement: Measurement | None
    plot: str


def write_pages(shown: Mapping[str, Shown], params: ReportSettings) -> None:
    """Writes index, one page for each experiment, comparison, contact sheets and summary."""
    panels = [_panel(name, figure, shown) for name, figure in params.figures.items()]
    pictured = {name for figure in params.figures.values() for name in figure.experiments}
    own = [each for name, each in shown.items() if name not in pictured]
    if own:
        layout = Figure(title="Other experiments", rows=[[each.cell.name for each in own]])
        panels.append(_panel(OTHERS, layout, shown))
    given: dict[str, Any] = {
        "panels": panels,
        "shown": shown,
        "images": _used(shown, params),
        "compared": [_compared(each) for each in shown.values()],
        "changes": {name: _changes(each) for name, each in shown.items()},
        "figures_of": {
            name: [panel for panel in panels if name in panel.layout.experiments] for name in shown
        },
    }
    environment = _environment()
    for page in ("index.html", "compare.html", "summary.md"):
        text = environment.get_template(page).render(root="", **given)
        write_text(paths.REPORTS / page, text)
    template = environment.get_template("experiment.html")
    for name, each in shown.items():
        write_text(PAGES / f"{name}.html", template.render(root="../", each=each, **given))
    for asset in ASSETS:
        text = (files("pipeline.report") / "templates" / asset).read_text(encoding="utf-8")
        write_text(MEDIA / asset, text)


def _panel(name: str, layout: Figure, shown: Mapping[str, Shown]) -> Panel:
    rows = [[shown[experiment] for experiment in row] for row in layout.rows]
    cells = [shown[experiment].cell for experiment in layout.experiments]
    captions = variations(cells)
    contact_sheet(
        layout.title,
        [[(_result(each), _lines(each, captions)) for each in row] for row in rows],
        SHEETS / f"{name}.png",
        layout.row_titles,
        layout.column_titles,
    )
    finished = [cell for cell in cells if _is_complete(shown[cell.name])]
    plot, measurement = MEDIA / "figures" / f"{name}.svg", None
    if layout.measure and len(finished) > 1:
        measurement = MEASURES[layout.measure](finished, plot)
    return Panel(
        name,
        layout,
        rows,
        captions,
        inputs={
            each.cell.settings[role]: picture
            for row in rows
            for each in row
            for role, picture in each.inputs.items()
        },
        measurement=measurement,
        plot=relative(plot),
    )


def _is_complete(each: Shown) -> bool:
    return each.image is not None and set(each.inputs) == set(each.cell.roles)


def _result(each: Shown) -> Any:
    return each.cell.results.image if each.cell.results else None


def _lines(each: Shown, captions: Mapping[str, Mapping[str, str]]) -> Sequence[str]:
    varied = [f"{key} {value}" for key, value in captions[each.cell.name].items()]
    return varied or [each.cell.name]


def _changes(each: Shown) -> dict[str, str]:
    cell = each.cell
    return {key: as_text(cell.settings[key]) for key in cell.settings if key in cell.changed}


def _compared(each: Shown) -> dict[str, Any]:
    """Returns what the comparison's script needs of a cell."""
    cell = each.cell
    return {
        "name": cell.name,
        "image": each.image.path if each.image else None,
        "reason": cell.reason,
        "curves": each.curves,
        "settings": [[key, as_text(value)] for key, value in cell.settings.items()],
    }


def _used(shown: Mapping[str, Shown], params: ReportSettings) -> dict[str, CataloguedImage]:
    names = {each.cell.settings[role] for each in shown.values() for role in each.cell.roles}
    return {name: params.images[name] for name in sorted(names)}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = as_text
    environment.filters["in_table"] = _in_table
    return environment


def _in_table(text: str) -> str:
    """Returns text as one cell of a Markdown table, without effect."""
    return escape(" ".join(text.split())).replace("|", "\\|")
