"""Cells that share one start-up behave as if each had started by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, tiny_params, write_params

from pipeline import paths, warm
from pipeline.params import read_params
from pipeline.stages.backbone import prepare
from pipeline.stages.fetch import fetch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and Unix sockets")


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose sockets are its own; what was started in it is gone afterwards."""
    sockets = tmp_path_factory.mktemp("sockets")
    given = {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(sockets), "WANDB_MODE": "disabled"}
    yield {**os.environ, **given}
    subprocess.run(["pkill", "-f", f"[-]-serve .* {sockets}"], check=False)


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.warm", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def servers(environment: dict[str, str]) -> list[str]:
    found = subprocess.run(
        ["pgrep", "-f", f"[-]-serve .* {environment['TMPDIR']}"], capture_output=True, text=True
    )
    return found.stdout.split()


def test_cells_use_one_process_and_give_what_they_would_alone(
    workspace: Path, environment: dict[str, str]
) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.fetch", "first"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    picture = paths.picture("chelsea").read_bytes()
    paths.picture("chelsea").unlink()
    assert ended(start(environment, "fetch", "first")) == (0, alone.stdout, "")
    assert paths.picture("chelsea").read_bytes() == picture
    before = servers(environment)
    assert ended(start(environment, "fetch", "second"))[0] == 0
    assert servers(environment) == before
    assert len(before) == 1


def test_mistake_has_its_sentence_and_its_status(
    workspace: Path, environment: dict[str, str]
) -> None:
    status, output, errors = ended(start(environment, "fetch", "frist"))
    assert (status, output) == (1, "")
    assert errors.startswith("error: no experiment 'frist'. Did you mean 'first'?")


def test_cell_sees_the_folder_and_the_environment_of_each_caller(
    workspace: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ended(start(environment, "fetch", "first"))[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    status, _, errors = ended(start(environment, "fetch", "first"))
    assert status == 1
    assert "params.yaml does not exist" in errors


@pytest.fixture
def long_run(workspace: Path, weights_file: Path) -> Path:
    """A prepared experiment that will not end by itself; returns its history."""
    params: Any = tiny_params(weights_file)
    params["defaults"]["evaluations"] = 1_000_000
    write_params(workspace, params)
    fetch(read_params())
    prepare(read_params().backbone)
    return paths.EXPERIMENTS / "first/history.csv"


def rows(history: Path) -> int:
    return history.read_text().count("\n") if history.exists() else 0


def wait_until(happened: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_cell_ends_as_its_caller_does(
    number: signal.Signals, status: int, long_run: Path, environment: dict[str, str]
) -> None:
    caller = start(environment, "stylize", "first")
    wait_until(lambda: rows(long_run) > 20)
    caller.send_signal(number)
    assert ended(caller)[0] == status
    wait_until(lambda: len(servers(environment)) == 1, 5)
    before = rows(long_run)
    time.sleep(1)
    assert rows(long_run) == before


def test_cell_ends_when_dvc_is_killed(long_run: Path, environment: dict[str, str]) -> None:
    """Here a shell stands for DVC, with another between as DVC has it."""
    command = f"{sys.executable} -m pipeline.warm stylize first; true"
    dvc = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r}, shell=True)"],
        env={**environment, "DVC_STAGE": "stylize@first"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: rows(long_run) > 20)
    dvc.kill()
    dvc.wait()
    wait_until(lambda: len(servers(environment)) == 1, 5)


def test_edited_code_and_another_environment_have_their_own_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(tmp_path))
    addresses = [warm._address("fetch"), warm._address("stylize")]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    addresses.append(warm._address("fetch"))
    package = tmp_path / "pipeline"
    package.mkdir()
    monkeypatch.setattr(warm, "__file__", str(package / "warm.py"))
    for text in ("one", "two"):
        (package / "warm.py").write_text(text)
        os.utime(package / "warm.py", ns=(0, len(addresses)))
        addresses.append(warm._address("fetch"))
    assert len(set(addresses)) == 5


def test_folder_that_others_may_write_to_is_not_used(
    workspace: Path, environment: dict[str, str]
) -> None:
    folder = Path(environment["TMPDIR"]) / f"style-transfer-{os.getuid()}"
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    assert ended(start(environment, "fetch", "first"))[0] == 0
    assert list(folder.iterdir()) == []
    assert servers(environment) == []


def test_interrupt_while_the_process_starts_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(warm, "_connected", interrupt)
    with pytest.raises(SystemExit) as end:
        warm.run("stylize", ["first"])
    assert end.value.code == 130


def test_cells_of_one_process_keep_their_pictures_apart(
    prepared: Path, environment: dict[str, str]
) -> None:
    """W&B is imported before they fork, and each removes the folder it has for pictures."""
    environment["WANDB_MODE"] = "offline"
    for name in ("first", "second"):
        status, output, errors = ended(start(environment, "stylize", name))
        assert (status, errors) == (0, "")
        assert "cannot keep" not in output
    runs = list((prepared / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(list(run.glob("files/media/images/result_*.png")) for run in runs)
    folders = Path(environment["TMPDIR"])
    wait_until(lambda: len(list(folders.glob("*wandb-media"))) == 1, 10)  # of the process itself
    assert len(servers(environment)) == 1


WITHOUT_CUDA = """
import torch
def refuse(*_):
    raise AssertionError("a GPU was asked for")
for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
torch._C._cuda_getDeviceCount = torch._C._cuda_init = refuse
import pipeline.stages.stylize
from pipeline import shared_wandb
shared_wandb.load()
"""


def test_start_up_that_is_shared_leaves_the_gpu_alone(environment: dict[str, str]) -> None:
    """CUDA refuses to work in a fork of a process that has asked for it."""
    subprocess.run([sys.executable, "-c", WITHOUT_CUDA], env=environment, check=True)
