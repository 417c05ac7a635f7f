"""The dashboard in W&B: the specification that is sent, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from finished_runs import finished
from test_tracking import _fresh_settings

from pipeline import paths
from pipeline.config.plan import read_report_plan
from pipeline.config.schema import Tracking
from pipeline.errors import UserError
from pipeline.experiments.results import read_records
from pipeline.report.dashboard import dashboard, save_dashboard

__all__ = ["_fresh_settings", "finished"]

# W&B's package defines its models so.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
needs_extra = pytest.mark.skipif(
    not importlib.util.find_spec("wandb_workspaces"),
    reason="wandb-workspaces is missing: pip install --editable '.[dashboard]'",
)


@pytest.fixture(autouse=True)
def _here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)


def sections() -> dict[str, list[dict[str, Any]]]:
    """Returns {section: its panels} of the specification of both experiments."""
    records = list(read_records(read_report_plan()).values())
    view = dashboard(records, "me", "cats")._to_model().model_dump(by_alias=True, mode="json")
    assert (view["entity"], view["project"]) == ("me", "cats")
    found = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in found}


@needs_extra
def test_curves_are_against_the_evaluation() -> None:
    plots = [panel["config"] for panel in sections()["Losses"]]
    assert [plot["metrics"] for plot in plots] == [["total"], ["content"], ["style"], ["edges"]]
    assert {plot["xAxis"] for plot in plots} == {"evaluation"}


@needs_extra
def test_pictures_are_results_and_intermediates() -> None:
    keys = [panel["config"]["mediaKeys"] for panel in sections()["Pictures"]]
    assert keys == [["result"], ["intermediate"]]


@needs_extra
def test_axes_are_differing_settings_and_all_measures() -> None:
    (panel,) = sections()["Settings and measures"]
    axes = [column["accessor"] for column in panel["config"]["columns"]]
    assert "config:settings.value.content" in axes
    assert "config:settings.value.content_weight" in axes
    assert not any("style_layers" in axis or "seed" in axis for axis in axes)
    assert {"summary:style_distance", "summary:total"} <= set(axes)


@needs_extra
def test_table_is_that_of_the_report() -> None:
    (panel,) = sections()["All experiments"]
    assert "experiments" in str(panel["config"])


@needs_extra
def test_dashboard_without_a_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"W&B does not save the dashboard .*wandb login"):
        save_dashboard(read_report_plan(), Tracking(entity="me"))


@needs_extra
def test_dashboard_without_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "EXPERIMENTS", Path("nowhere"))
    with pytest.raises(UserError, match="No experiment has results"):
        save_dashboard(read_report_plan(), Tracking())


def test_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install .*\[dashboard\]"):
        save_dashboard(read_report_plan(), Tracking())
