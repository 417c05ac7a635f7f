"""Weights & Biases failing in every way it can: the experiment loses nothing but some seconds."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import REPOSITORY, tiny_params, write_params, write_plans_again
from PIL import Image
from test_tracking import KEY, Server, _fresh_settings, server

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.config.schema import Tracking
from pipeline.networks.prepare import prepare
from pipeline.records import tracking
from pipeline.records.tracking import tracked_run, wandb_image
from pipeline.stages.fetch import fetch
from pipeline.stages.stylize import stylize

__all__ = ["_fresh_settings", "server"]

TIMEOUT_S = 2.0
"""Of a run's start, and of its end."""
OVERHEAD_S = 6.0
"""What starting and ending W&B's process may take on a busy machine, beside the time-outs."""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The outputs of an experiment without tracking, in a workspace that asks for tracking."""
    monkeypatch.chdir(tmp_path)
    params: Any = tiny_params(Path("embedded"))
    params["backbone"] = {"calibration": ["package:skimage/data/coffee.png"], "rescale": False}
    params["tracking"] = {"mode": "disabled"}
    write_params(tmp_path, params)
    fetch(read_params(), ["first"])
    write_plans_again()
    prepare(read_params().backbone)
    stylize("first")
    params["tracking"] = {"init_timeout": TIMEOUT_S, "finish_timeout": TIMEOUT_S}
    write_params(tmp_path, params)
    wandb.teardown()  # or it would go on with the environment of before
    return outputs()


def outputs() -> dict[str, bytes]:
    folder = paths.EXPERIMENTS / "first"
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def timed_run() -> float:
    """Returns the seconds of an experiment, with W&B's process gone as at the end of a stage."""
    begun = time.monotonic()
    stylize("first")
    wandb.teardown()
    return time.monotonic() - begun


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a disk of that size in memory at a folder."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk to fill")
    try:
        yield
    finally:
        wandb.teardown()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(64):  # MiB, and no more, should the disk be larger than it was made
            file.write(bytes(2**20))
    assert shutil.disk_usage(folder).free < 2**12


@pytest.mark.parametrize("fault", ["never answers", "dies in the middle", "hangs at finish"])
def test_server_that_fails_costs_its_timeout(
    fault: str,
    experiment: dict[str, bytes],
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Server, "fault", fault)
    took = timed_run()
    printed = capfd.readouterr().out
    assert outputs() == experiment
    assert TIMEOUT_S < took < TIMEOUT_S + OVERHEAD_S
    early = "W&B does not answer" if fault == "never answers" else "W&B could not finish its upload"
    assert early in printed
    assert synced_folder(printed).is_relative_to(Path.cwd() / "wandb")


def synced_folder(printed: str) -> Path:
    """Returns what the last line says to upload, once there is a record in it."""
    *_, last = printed.splitlines()
    command = last.removeprefix("W&B, offline: to upload this run, ")
    *words, folder_name = shlex.split(command)
    folder = Path(folder_name)
    online = [] if folder.name.startswith("offline-") else ["--include-online"]
    assert words == ["wandb", "sync", *online]
    assert list(folder.glob("*.wandb")), printed
    return folder


def test_command_uploads_what_an_online_run_could_not(
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Server, "fault", "hangs at finish")
    tracking = Tracking(finish_timeout=TIMEOUT_S)
    with tracked_run(tracking, root=tmp_path, name="a", job_type="b", config={}) as run:
        run.log({"evaluation": 1})
    wandb.teardown()
    folder = synced_folder(capfd.readouterr().out)
    monkeypatch.setattr(Server, "fault", "")
    Server.uploads.clear()
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    assert "wandb-summary.json" in Server.uploads


def test_unreachable_server_costs_its_timeout(
    experiment: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert timed_run() < TIMEOUT_S + OVERHEAD_S
    assert outputs() == experiment
    printed = capfd.readouterr().out
    assert 'W&B does not answer (Timed out while retrying: Post "http://127.0.0.1:9' in printed
    assert synced_folder(printed).name.startswith("offline-run-")


def test_no_key_costs_nothing(
    experiment: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    assert timed_run() < OVERHEAD_S
    assert outputs() == experiment
    assert synced_folder(capfd.readouterr().out).name.startswith("offline-run-")


def test_full_disk_moves_the_files_of_the_run_elsewhere(
    experiment: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tracking.tempfile, "tempdir", str(spare))
    with small_disk(tmp_path / "wandb", "64k"):
        fill(tmp_path / "wandb")
        assert timed_run() < OVERHEAD_S
    assert outputs() == experiment
    printed = capfd.readouterr().out
    assert "wandb has less than 16 MiB left: W&B's record goes to" in printed
    assert synced_folder(printed).is_relative_to(spare)


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_run_is_not_tracked_if_all_disks_are_full(
    experiment: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.tempfile, "mkdtemp", full)
    with small_disk(tmp_path / "wandb", "64k"):
        fill(tmp_path / "wandb")
        assert timed_run() < OVERHEAD_S
    assert outputs() == experiment


def test_picture_that_wandb_cannot_store_is_left_out(
    experiment: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """W&B writes pictures into the system's temporary folder before it has a run's in hand."""
    monkeypatch.setattr(wandb, "Image", full)
    assert timed_run() < OVERHEAD_S
    assert outputs() == experiment
    printed = capfd.readouterr().out
    assert "W&B cannot keep the picture of first ([Errno 28] No space left on device)" in printed
    assert synced_folder(printed).name.startswith("offline-run-")


@pytest.mark.parametrize("online", [False, True])
def test_disk_that_fills_up_loses_only_what_did_not_fit(
    online: bool,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not online:
        monkeypatch.delenv("WANDB_API_KEY")
    picture = Image.effect_noise((200, 200), 90)
    with small_disk(tmp_path / "wandb", "20m"):
        given: dict[str, Any] = {"root": tmp_path, "name": "a", "job_type": "stylize", "config": {}}
        with tracked_run(Tracking(init_timeout=5, finish_timeout=2), **given) as run:
            run.log({"evaluation": 1, "total": 1.0})
            fill(tmp_path / "wandb")
            run.log({"evaluation": 2, "picture": wandb_image(picture, "lost")})
            run.summary.update({"result": wandb_image(picture, "lost")})
        printed = capfd.readouterr().out
        assert printed.count("W&B cannot keep all of this run ([Errno 28] No space left") == 1
        assert synced_folder(printed).is_relative_to(tmp_path)


def test_process_ends_soon_after_a_server_that_never_answered(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "fault", "never answers")
    script = (
        "from pathlib import Path; from pipeline.config.schema import Tracking; "
        "from pipeline.records.tracking import tracked_run\n"
        f"given = dict(root=Path({str(tmp_path)!r}), name='a', job_type='b', config={{}})\n"
        f"with tracked_run(Tracking(init_timeout={TIMEOUT_S}), **given) as run: run.log({{'a': 1}})"
    )
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("WANDB_ERROR_REPORTING", None)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert time.monotonic() - begun < TIMEOUT_S + OVERHEAD_S


def test_folder_that_cannot_be_written_leaves_the_run_untracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begin = wandb.init

    def fail(mode: str, **arguments: Any) -> Any:
        if mode != "disabled":
            raise OSError(28, "No space left on device")
        return begin(mode=mode, **arguments)

    monkeypatch.setattr(wandb, "init", fail)
    with tracked_run(Tracking(), root=tmp_path, name="a", job_type="b", config={}) as run:
        run.log({"evaluation": 1})
    assert "this run is not tracked. Make room there" in capfd.readouterr().out
