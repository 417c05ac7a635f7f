"""Pages of the report: renders the templates, and writes the plots and contact sheets they show."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pipeline.config.schema import Figure, ReportSettings
from pipeline.experiments.results import (
    COMPARED,
    ExperimentRecord,
    differing_keys,
    differing_settings,
    setting_text,
)
from pipeline.files import write_text
from pipeline.report.contact_sheets import write_contact_sheet
from pipeline.report.figure_measures import MEASURES, plot_distances
from pipeline.report.loss_curves import HEIGHT, WIDTH, loss_plots
from pipeline.report.pictures import ReportEntry

OTHERS, COLUMNS = "_others", 5
"""The figure of all experiments that are in no other, and its columns. No name begins with _."""

_ADDRESS = re.compile(
    r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=[\w-]+\.\w)|(?<=(?<!\w)@)", re.IGNORECASE
)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[\\`*_\[\]#!|~$&<>]|\.(?=[^\W\d])")


def markdown(text: str) -> str:
    """Returns Markdown that shows a text as it is, on one line, in a heading or a table.

    A backslash does not keep all viewers from making links of addresses. A word joiner does, which
    is invisible.
    """
    divided = _ADDRESS.sub("\u2060", " ".join(text.split()))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), divided)


TEMPLATES = Environment(
    loader=PackageLoader("pipeline.report"),
    autoescape=select_autoescape(["html", "svg"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "setting_text": setting_text,
    "markdown": markdown,
}


def write_pages(entries: Mapping[str, ReportEntry], plan: ReportSettings, folder: Path) -> None:
    """Writes all pages, plots and contact sheets of the report into a folder."""
    layouts = dict(plan.figures)
    if others := [name for name in entries if plan.figure_of(name) is None]:
        rows = [others[start : start + COLUMNS] for start in range(0, len(others), COLUMNS)]
        layouts[OTHERS] = Figure(title="Other experiments", rows=rows)
    images = {image for entry in entries.values() for image in entry.record.images.values()}
    values: dict[str, Any] = {
        "figures": [_figure(name, layout, entries, folder) for name, layout in layouts.items()],
        "entries": entries,
        "images": {name: plan.images[name] for name in sorted(images)},
        "table": _table(entries),
    }
    for page in ("index.html", "compare.html", "summary.md"):
        write_text(folder / page, TEMPLATES.get_template(page).render(root="", **values))
    experiment, losses = map(TEMPLATES.get_template, ("experiment.html", "losses.svg"))
    for name, entry in entries.items():
        page = experiment.render(root="../", entry=entry, **values)
        write_text(folder / "experiments" / f"{name}.html", page)
        if results := entry.record.results:
            plots = losses.render(plots=loss_plots(results), width=WIDTH, height=HEIGHT)
            write_text(folder / entry.curves, plots)
    for asset in ("report.css", "report.js"):
        text = (files("pipeline.report") / "templates" / asset).read_text(encoding="utf-8")
        write_text(folder / "media" / asset, text)


def _table(entries: Mapping[str, ReportEntry]) -> dict[str, Any]:
    """Returns what the script needs to compare, filter and sort the experiments.

    Settings that are the same for all of them are left out: of a thousand experiments they would
    be most of the page.
    """
    records = [entry.record for entry in entries.values()]
    differing = differing_keys(records)
    return {
        "settings": differing,
        "measures": measures_of(records),
        "losses": _losses(records),
        "experiments": [
            {
                "name": entry.record.name,
                "image": entry.image and entry.image.path,
                "reason": entry.record.reason,
                "curves": entry.curves,
                "settings": [setting_text(entry.record.settings.get(key)) for key in differing],
            }
            for entry in entries.values()
        ],
    }


def measures_of(records: Sequence[ExperimentRecord]) -> list[str]:
    """Returns the measures in metrics.json, which are comparable whatever the settings are."""
    names = dict.fromkeys(name for r in records if r.results for name in r.results.metrics)
    return [name for name in names if name not in COMPARED]


def _losses(records: Sequence[ExperimentRecord]) -> list[str]:
    """Returns the total loss and the loss terms that are not 0 in all saved pictures."""
    results = [record.results for record in records if record.results]
    terms = dict.fromkeys(term for each in results for term in each.terms)
    return [t for t in terms if any(each.losses.get(f"saved_{t}") for each in results)]


def _figure(
    name: str, layout: Figure, entries: Mapping[str, ReportEntry], folder: Path
) -> dict[str, Any]:
    """Writes the contact sheet and the plot of a figure, and returns its values in templates."""
    shown = [entries[experiment] for experiment in layout.experiments]
    captions = differing_settings([entry.record for entry in shown])
    rows = [[entries[experiment] for experiment in row] for row in layout.rows]
    lines = {
        experiment: [f"{key} {value}" for key, value in settings.items()] or [experiment]
        for experiment, settings in captions.items()
    }
    tiles = [[(e.image and folder / e.image.path, lines[e.record.name]) for e in r] for r in rows]
    write_contact_sheet(layout, tiles, folder / f"sheets/{name}.png")
    complete = [entry.record for entry in shown if entry.image]
    plot = None
    if len(complete) > 1 and layout.measure != "distances":
        plot = f"media/figures/{name}-distances.svg"
        plot_distances(complete, folder / plot)
    measurement = None
    if layout.measure and len(complete) > 1:
        measurement = MEASURES[layout.measure](complete, folder / f"media/figures/{name}.svg")
    return {
        "name": name,
        "layout": layout,
        "rows": rows,
        "captions": captions,
        "inputs": {e.record.images[role]: e.inputs[role] for e in shown for role in e.inputs},
        "terms": _losses([entry.record for entry in shown]),
        "measurement": measurement,
        "distances": plot,
    }
