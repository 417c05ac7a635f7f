"""Offline W&B runs reach a server from wherever their folder was moved to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image
from test_tracking import MANIFEST, Server, _fresh_settings, records_of, server

from pipeline.config.schema import Tracking
from pipeline.errors import UserError
from pipeline.records.offline_runs import BLOCK, correct_paths, read_log, upload
from pipeline.records.tracking import tracked_run

__all__ = ["_fresh_settings", "server"]

PICTURES = 3


def log_table(root: Path, pictures: int = PICTURES) -> Path:
    """Records a table of pictures and an artifact offline, and returns the folder ``wandb``."""
    with tracked_run(
        Tracking(mode="offline"), root=root, name="report", job_type="report", config={}
    ) as run:
        table = wandb.Table(columns=["name", "picture"])
        for index in range(pictures):
            table.add_data(str(index), wandb.Image(Image.new("RGB", (5, 3), (index % 256, 7, 9))))
        run.log({"experiments": table})
        artifact = wandb.Artifact("first", type="result")
        with artifact.new_file("history.csv") as file:
            file.write("evaluation,total\n1,2\n")
        run.log_artifact(artifact)
    wandb.teardown()
    return root / "wandb"


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an offline run after a move, with an empty home folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    log_table(tmp_path / "before")
    folder = tmp_path / "after" / "any name"
    folder.parent.mkdir()
    (tmp_path / "before" / "wandb").rename(folder)
    shutil.rmtree(tmp_path / "before")
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # as on another machine
        monkeypatch.delenv(variable)
    assert list(home.iterdir()) == []
    return folder


def run_in(folder: Path) -> Path:
    (run,) = folder.glob("offline-run-*")
    return run


def record_file(folder: Path) -> Path:
    (file,) = run_in(folder).glob("*.wandb")
    return file


def staged(folder: Path) -> set[bytes]:
    return {file.read_bytes() for file in (folder / "data/artifacts/staging").iterdir()}


def uploaded() -> set[bytes]:
    """Returns the files of artifacts that were uploaded, and not their manifests."""
    files = Server.uploads.items()
    return {body for name, body in files if "artifacts/" in name and MANIFEST not in name}


def test_every_file_of_a_moved_folder_arrives(moved: Path, server: ThreadingHTTPServer) -> None:
    expected = staged(moved)
    assert len([body for body in expected if body.startswith(b"\x89PNG")]) == PICTURES
    assert b"evaluation,total\n1,2\n" in expected
    upload(moved)
    assert uploaded() == expected
    assert [each.get("committed") for each in Server.artifacts.values()] == [True, True]
    manifests = [json.loads(body) for name, body in Server.uploads.items() if MANIFEST in name]
    assert sorted(len(each["contents"]) for each in manifests) == [1, PICTURES + 1]


def test_wandb_alone_leaves_them_out_and_reports_success(
    moved: Path, server: ThreadingHTTPServer
) -> None:
    """The reason for the command ``sync``: without this, it would not be needed."""
    subprocess.run([sys.executable, "-m", "wandb", "sync", str(moved)], check=True)
    assert uploaded() == set()


def test_folder_of_one_run_is_uploaded_once(
    moved: Path, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = staged(moved)
    upload(run_in(moved))
    assert uploaded() == expected
    Server.uploads.clear()
    upload(moved)
    assert Server.uploads == {}
    assert "1 run in" in capsys.readouterr().out


def test_record_stays_as_it_is_where_its_paths_are_right(tmp_path: Path) -> None:
    file = record_file(log_table(tmp_path))
    before = file.read_bytes(), file.stat().st_mtime_ns
    correct_paths(file)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def without_paths(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for record in records:
        for entry in record.get("artifact", {}).get("manifest", {}).get("contents", []):
            entry.pop("local_path")
    return records


@pytest.mark.parametrize("length", [1, 8, 200])
def test_corrected_record_is_the_same_but_for_its_paths(length: int, tmp_path: Path) -> None:
    """A manifest of 300 pictures takes more than one block of the log."""
    folder = log_table(tmp_path / "before", pictures=300)
    file = record_file(folder)
    assert max(map(len, read_log(file))) > BLOCK
    before = without_paths(records_of(file.parent))
    moved = tmp_path / (length * "x")  # paths of other lengths end blocks elsewhere
    folder.rename(moved)
    correct_paths(record_file(moved))
    after = records_of(run_in(moved))
    assert sum(str(moved) in json.dumps(record) for record in after) == 2
    assert without_paths(after) == before


def test_record_that_was_cut_off_keeps_what_is_whole(moved: Path) -> None:
    file = record_file(moved)
    whole = list(read_log(file))
    file.write_bytes(file.read_bytes()[:-3])
    correct_paths(file)
    assert len(list(read_log(file))) == len(whole) - 1


def test_record_that_is_damaged_is_refused_and_kept(moved: Path) -> None:
    file = record_file(moved)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged at byte \d+\. `wandb sync"):
        correct_paths(file)
    assert file.read_bytes() == content


def test_other_file_is_refused(moved: Path) -> None:
    record_file(moved).write_bytes(b"no record")
    with pytest.raises(UserError, match="is no record of W&B as known here"):
        upload(moved)


def test_folder_without_its_data_is_refused(moved: Path) -> None:
    shutil.rmtree(moved / "data")
    with pytest.raises(UserError, match=r"lacks 5 files of its artifacts, such as .*staging"):
        upload(moved)


def test_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no offline run of W&B\. Name the folder wandb/"):
        upload(tmp_path)


def test_upload_that_fails_is_reported(moved: Path) -> None:
    """There is no key."""
    with pytest.raises(UserError, match="`wandb sync` did not upload 1 run, such as"):
        upload(moved)
