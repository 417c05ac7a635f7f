"""W&B gets an experiment's result as an artifact, and its inputs as artifacts that the run used."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import save_picture
from finished_runs import finished
from test_tracking import MANIFEST, Server, _fresh_settings, inspected, server

from pipeline import paths
from pipeline.config.plan import Plan, read_plan
from pipeline.config.schema import Tracking
from pipeline.files import sha256
from pipeline.records import lineage, tracking
from pipeline.records.lineage import RESULT_FILES, log_lineage
from pipeline.records.offline_runs import upload
from pipeline.records.tracking import tracked_run

__all__ = ["_fresh_settings", "finished", "server"]

CODE = {"version": "1", "revision": 40 * "1", "dirty": False}
NAMES = ["first", "network.vgg19", "picture.chelsea", "picture.gravel"]


@pytest.fixture
def plan(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of an experiment whose results are there, in a folder with a space in its name."""
    folder = tmp_path / "work space"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(lineage, "code_version", lambda: CODE)
    return read_plan("first")


def description_of(plan: Plan) -> dict[str, Any]:
    inputs = {role: image.sha256 for role, image in plan.images.items()}
    return {
        "plan": sha256(paths.plan(plan.experiment)),
        "backbone": {"architecture": "vgg19", "weights": "w.pth"},
        "inputs": inputs | {"weights": sha256(paths.WEIGHTS_FILE)},
    }


@contextmanager
def logged(plan: Plan, mode: Any = "offline") -> Iterator[Path]:
    """Logs the lineage of an experiment, and yields the folder of its run's files."""
    root = Path().absolute()
    with tracked_run(Tracking(mode=mode), root=root, name="a", job_type="b", config={}) as run:
        log_lineage(run, plan, description_of(plan))
    wandb.teardown()
    yield root / "wandb"
    shutil.rmtree(root / "wandb")


def recorded(plan: Plan) -> dict[str, dict[str, Any]]:
    """Returns {name: artifact} of an offline run."""
    with logged(plan):
        records = inspected(Path())
    return {each["artifact"]["name"]: each["artifact"] for each in records if "artifact" in each}


def test_result_is_an_artifact_with_its_files_and_inputs_are_references(plan: Plan) -> None:
    artifacts = recorded(plan)
    assert sorted(artifacts) == NAMES
    types = {name: each["type"] for name, each in artifacts.items()}
    assert types == dict(zip(NAMES, ("result", "network", "input", "input"), strict=True))
    files = {each["path"] for each in artifacts["first"]["manifest"]["contents"]}
    assert files == set(RESULT_FILES)
    for name, file in (
        ("picture.gravel", paths.picture("gravel")),
        ("network.vgg19", paths.WEIGHTS_FILE),
    ):
        (entry,) = artifacts[name]["manifest"]["contents"]
        assert entry["ref"] == file.absolute().as_uri()
        assert entry["digest"] == sha256(file)
        assert json.loads(artifacts[name]["metadata"])["sha256"] == sha256(file)
    metadata = json.loads(artifacts["first"]["metadata"])
    assert metadata["plan"] == sha256(paths.plan("first"))
    assert metadata["images"] == {"content": "chelsea", "style": "gravel"}


def test_inputs_are_used_by_the_run_and_the_result_is_made_by_it(plan: Plan) -> None:
    used = {name: each.get("use_after_commit") for name, each in recorded(plan).items()}
    assert used == dict(zip(NAMES, (None, True, True, True), strict=True))


def test_version_of_an_input_is_that_of_its_content(plan: Plan) -> None:
    first = recorded(plan)
    assert recorded(plan)["picture.gravel"]["digest"] == first["picture.gravel"]["digest"]
    save_picture(paths.picture("gravel"), (9, 5))
    image = plan.images["style"].model_copy(update={"sha256": sha256(paths.picture("gravel"))})
    changed = plan.model_copy(update={"images": plan.images | {"style": image}})
    second = recorded(changed)
    assert second["picture.gravel"]["digest"] != first["picture.gravel"]["digest"]
    assert second["picture.chelsea"]["digest"] == first["picture.chelsea"]["digest"]


@pytest.mark.parametrize(
    ("experiment", "dirty", "aliases"),
    [
        ("exp-1", False, ["exp-1", "111111111111", "latest"]),
        (None, True, ["111111111111-dirty", "latest"]),
    ],
)
def test_aliases_are_dvcs_experiment_and_the_revision(
    experiment: str | None,
    dirty: bool,
    aliases: list[str],
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lineage, "code_version", lambda: CODE | {"dirty": dirty})
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    assert all(each["aliases"] == aliases for each in recorded(plan).values())


LOCK = """schema: '2.0'
stages:
  fetch:
    cmd: exec
    outs:
    - path: data/images
      hash: md5
      md5: 1234.dir
  stylize@first:
    deps:
    - path: data/backbone
      md5: old.dir
  backbone:
    outs:
    - path: data/backbone
      md5: 5678.dir
"""


def dvc_of(artifacts: dict[str, dict[str, Any]], name: str) -> Any:
    return json.loads(artifacts[name]["metadata"]).get("dvc")


def test_metadata_has_dvcs_hash_where_there_is_one(plan: Plan) -> None:
    assert dvc_of(recorded(plan), "picture.gravel") is None
    lineage.LOCK_FILE.write_text(LOCK)
    artifacts = recorded(plan)
    assert dvc_of(artifacts, "picture.gravel") == {"path": "data/images", "md5": "1234.dir"}
    assert dvc_of(artifacts, "network.vgg19") == {"path": "data/backbone", "md5": "5678.dir"}
    lineage.LOCK_FILE.write_text(LOCK.replace("md5: 1234.dir", "<<<<<<< HEAD"))
    artifacts = recorded(plan)
    assert dvc_of(artifacts, "picture.gravel") is None
    assert dvc_of(artifacts, "network.vgg19")


def check_server(expected: dict[str, bytes]) -> None:
    committed = {
        each["artifactCollectionName"]: (each["committed"], each.get("used", False))
        for each in Server.artifacts.values()
    }
    assert committed == {name: (True, name != "first") for name in NAMES}
    (result,) = (
        key for key, each in Server.artifacts.items() if each["artifactCollectionName"] == "first"
    )
    start = f"artifacts/{result}/"
    assert expected == {
        name.removeprefix(start): body
        for name, body in Server.uploads.items()
        if name.startswith(start) and MANIFEST not in name
    }


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_server_gets_the_files_of_the_result_and_who_used_what(
    mode: str, plan: Plan, server: ThreadingHTTPServer
) -> None:
    """Offline, the result was replaced before the folder was moved and uploaded."""
    folder = paths.EXPERIMENTS / "first"
    expected = {name: (folder / name).read_bytes() for name in RESULT_FILES}
    with logged(plan, mode) as files:
        if mode == "offline":
            shutil.rmtree(folder)
            shutil.copytree(files, "moved", symlinks=True)
            shutil.rmtree(files)
            files.mkdir()
            upload(Path("moved"))
    check_server(expected)


def test_upload_that_hangs_is_given_up_and_the_next_run_works(
    plan: Plan, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own time-out does not end the upload of an artifact."""
    monkeypatch.setattr(Server, "fault", "hangs at finish")
    monkeypatch.setattr(tracking, "GRACE_S", 0.5)
    root, options = Path().absolute(), Tracking(mode="online", finish_timeout=0.5)
    begun = time.monotonic()
    with tracked_run(options, root=root, name="a", job_type="b", config={}) as run:
        log_lineage(run, plan, description_of(plan))
    assert time.monotonic() - begun < 30  # the server keeps what it is sent waiting for 60 s
    monkeypatch.setattr(Server, "fault", "")
    with tracked_run(options, root=root, name="next", job_type="b", config={}) as run:
        run.log({"evaluation": 1})
    assert [row["evaluation"] for row in Server.history] == [1]


def test_server_that_does_not_answer_gets_no_lineage(
    plan: Plan,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "ANSWER_S", 0.1)
    options = Tracking(mode="online", finish_timeout=0.5)
    with tracked_run(options, root=Path().absolute(), name="a", job_type="b", config={}) as run:
        monkeypatch.setattr(Server, "fault", "never answers")
        log_lineage(run, plan, description_of(plan))
        monkeypatch.setattr(Server, "fault", "")
    assert Server.artifacts == {}
    assert "W&B does not answer: the lineage of first is not kept" in capsys.readouterr().out


def test_lineage_that_fails_is_reported_once(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    (paths.EXPERIMENTS / "first" / "history.csv").unlink()
    assert recorded(plan) == {}
    assert capsys.readouterr().out.count("W&B cannot keep the lineage of first (") == 1


def test_disabled_run_has_no_lineage(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_artifacts", lambda *_: pytest.fail("built for nothing"))
    options = Tracking(mode="disabled")
    with tracked_run(options, root=Path(), name="a", job_type="b", config={}) as run:
        log_lineage(run, plan, description_of(plan))
