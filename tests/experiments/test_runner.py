"""`python -m pipeline run` computes what is out of date, side by side, and can be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import save_picture
from projects import Project, small_params
from test_tracking import of_kind, records_of

from pipeline.config.plan import read_plan
from pipeline.experiments.executors import resources

GIB = 2**30


@pytest.fixture
def params() -> dict[str, Any]:
    return small_params() | {"checkpoints": {"every": 0.5}}


def run(project: Project, jobs: int = 2, check: bool = True) -> str:
    return project.python("pipeline", "run", "--jobs", str(jobs), check=check)


def history(project: Project, name: str) -> Path:
    return project.folder / f"data/experiments/{name}/history.csv"


def rows(project: Project, name: str) -> int:
    file = history(project, name)
    return file.read_text().count("\n") if file.is_file() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def wait_for_checkpoints(project: Project) -> None:
    folder = project.folder / "data/checkpoints"
    wait_until(lambda: all(any(folder.glob(f"{name}-*.pt")) for name in ("first", "second")))


def wait_for_begin(project: Project, *names: str) -> None:
    wait_until(lambda: all((project.folder / f"data/status/{n}.txt").exists() for n in names))


@contextmanager
def begin(
    project: Project, shell: str = "", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a run of two experiments that never end, and waits until both have begun.

    ``shell`` are commands of the shell that starts it.
    """
    with subprocess.Popen(
        ["/bin/sh", "-c", f"{shell} exec '{sys.executable}' -m pipeline run --jobs 2"],
        cwd=project.folder,
        env=project.environment | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is sent to it is not sent to pytest
    ) as process:
        try:
            wait_for_begin(project, "first", "second")
            yield process
        finally:
            process.kill()


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children()
        if any("spawn_main" in word for word in child.cmdline())
    ]


def test_all_is_computed_but_what_fails_and_nothing_a_second_time(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["experiments"]["third"] = {
        "content": "chelsea",
        "style": "gravel",
        "evaluations": 1,
        "first_step": 1e-9,
    }
    project = Project.prepared(tmp_path / "project", params)
    text = run(project, check=False)
    assert "3 experiments to compute, 2 at a time" in text
    assert "third failed: the image did not move" in text
    assert "error: not everything was computed" in text
    assert "the image did not move" in (project.folder / "reports/summary.md").read_text()
    project.change(lambda p: p["experiments"]["third"].update(first_step=0.01))
    text = run(project)
    assert "1 experiment to compute" in text
    assert "third: total loss" in text
    assert "Running stage 'stylize" not in text
    assert "to compute" not in run(project)
    assert project.repro() == set()


def test_wandb_records_the_command_that_was_typed(tmp_path: Path, params: dict[str, Any]) -> None:
    params["tracking"] = {"mode": "offline"}
    project = Project.prepared(tmp_path, params)
    run(project)
    project.python("pipeline.stages.stylize", "first")
    commands = []
    for folder in sorted(tmp_path.glob("wandb/offline-run-*")):
        records = records_of(folder)
        name, environment = of_kind(records, "run")["display_name"], of_kind(records, "environment")
        commands.append((name, environment["program"], *environment.get("args", [])))
    typed = "-m pipeline", "run", "--jobs", "2"
    assert sorted(commands) == [
        ("first", *typed),
        ("first", "-m pipeline.stages.stylize", "first"),
        ("report", "-m pipeline.stages.report"),
        ("second", *typed),
    ]


def test_change_taken_back_comes_from_the_cache(tmp_path: Path, params: dict[str, Any]) -> None:
    project = Project.prepared(tmp_path, params, computing=False)
    run(project)
    before = history(project, "first").read_bytes()
    project.change(lambda p: p["experiments"]["first"].update(content_weight=7.0))
    assert "first: total loss" in run(project)
    assert history(project, "first").read_bytes() != before
    project.change(lambda p: p["experiments"]["first"].update(content_weight=1.0))
    assert "to compute" not in run(project)
    assert history(project, "first").read_bytes() == before
    assert project.repro() == set()


def test_experiments_without_a_missing_picture_are_computed(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["images"]["lost"] = {"source": "data/own/lost.png"}
    params["experiments"]["third"] = {"content": "lost", "style": "gravel"}
    project = Project.prepared(tmp_path, params, computing=False)
    text = run(project, check=False)
    assert "image 'lost' from data/own/lost.png: data/own/lost.png: there is no" in text
    assert "not everything was computed" in text
    made = [(history(project, name)).is_file() for name in ("first", "second", "third")]
    assert made == [True, True, False]
    save_picture(tmp_path / "data/own/lost.png")
    ran = project.repro()
    assert "stylize@third" in ran
    assert not {"stylize@first", "stylize@second"} & ran


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_end_with_a_runner_that_is_stopped(
    number: int, status: int, tmp_path: Path, params: dict[str, Any]
) -> None:
    params["defaults"]["evaluations"] = 1_000_000
    project = Project.prepared(tmp_path, params)
    with begin(project) as process:
        wait_for_checkpoints(project)
        workers = workers_of(process)
        assert len(workers) == 2
        process.send_signal(number)
        assert process.wait(30) == status
    assert not any(worker.is_running() for worker in workers)


def test_workers_live_in_the_limits_of_their_caller(tmp_path: Path, params: dict[str, Any]) -> None:
    """Nothing stands between a runner and its workers: they are its children."""
    params["defaults"]["evaluations"] = 1_000_000
    project = Project.prepared(tmp_path, params, computing=False)
    limits = {"n": (psutil.RLIMIT_NOFILE, 777), "t": (psutil.RLIMIT_CPU, 9_000)}
    shell = "".join(f"ulimit -{flag} {limit};" for flag, (_, limit) in limits.items())
    with begin(project, shell, FROM_THE_CALLER="yes") as process:
        workers = workers_of(process)
        assert len(workers) == 2
        for worker in workers:
            assert [worker.rlimit(kind) for kind, _ in limits.values()] == [
                (777, 777),
                (9_000, 9_000),
            ]
            assert worker.cwd() == str(tmp_path)
            assert worker.environ()["FROM_THE_CALLER"] == "yes"
            assert os.getpgid(worker.pid) == os.getpgid(process.pid) == process.pid
            assert os.getsid(worker.pid) == process.pid
            assert not [each for each in worker.net_connections() if each.status == "LISTEN"]
        os.killpg(process.pid, signal.SIGSTOP)  # as Ctrl-Z, but for no terminal
        everyone = [psutil.Process(process.pid), *workers]
        wait_until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in everyone))
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(60) == 143
    assert not any(worker.is_running() for worker in workers)


def start(project: Project, log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", "--jobs", "2"],
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=output,
        )


def test_second_runner_waits_for_the_first(tmp_path: Path, params: dict[str, Any]) -> None:
    params["defaults"]["evaluations"] = 600
    project = Project.prepared(tmp_path / "project", params, computing=False)
    logs = tmp_path / "first.log", tmp_path / "second.log"
    first = start(project, logs[0])
    lock = project.folder / "data/status/_runner.lock"
    wait_until(lambda: lock.is_file() and lock.read_text() == str(first.pid))
    second = start(project, logs[1])
    assert [first.wait(300), second.wait(300)] == [0, 0]
    texts = [log.read_text() for log in logs]
    assert [text.count(": total loss ") for text in texts] == [2, 0]
    assert f"process {first.pid} computes the experiments here: waits for its end" in texts[1]
    assert "error" not in "".join(texts).lower()


HOLD_REPOSITORY = (
    "import sys; from dvc.repo import Repo\n"
    "with Repo().lock: print('held', flush=True); sys.stdin.read()"
)
HOLD_OUTPUT = (
    "import sys; from dvc.repo import Repo; from dvc.rwlock import rwlock; repo = Repo()\n"
    "with rwlock(repo.tmp_dir, repo.fs, 'dvc repro', [], ['{}/data/images'], False):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("code", [HOLD_REPOSITORY, HOLD_OUTPUT], ids=["repository", "output"])
def test_runner_waits_for_dvc_in_another_process(
    code: str, tmp_path: Path, params: dict[str, Any]
) -> None:
    """As for `dvc gc` or a stage that `dvc repro` runs."""
    project = Project.prepared(tmp_path / "project", params, computing=False)
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", code.format(project.folder)],
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        process = start(project, log)
        sentence = f"DVC is in use here by process {other.pid}: waits for its end"
        wait_until(lambda: sentence in log.read_text())
        other.communicate(b"")
    assert process.wait(300) == 0
    text = log.read_text()
    assert text.count(": total loss ") == 2
    assert text.count("waits for its end") == 1
    assert not re.search("rwlock|remove|Unable to acquire|pictures|troubleshooting", text)


def test_failure_that_is_no_missing_picture_is_not_called_one(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["backbone"]["weights"] = "lost.pth"
    text = run(Project.prepared(tmp_path, params), check=False)
    assert "error: lost.pth: there is no file" in text
    assert "error: DVC: failed to reproduce 'backbone'" in text
    assert "picture" not in text


def test_result_that_was_edited_is_not_taken_for_the_result(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    project = Project.prepared(tmp_path, params, computing=False)
    run(project)
    edited = [history(project, "first"), history(project, "second").parent / "image.png"]
    before = [file.read_bytes() for file in edited]
    for file in edited:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink()
        file.write_bytes(content)
    assert "to compute" not in run(project)
    assert [file.read_bytes() for file in edited] == before
    assert project.repro() == set()


def test_experiment_that_is_run_by_hand_meanwhile_is_not_disturbed(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["defaults"]["evaluations"] = 1000
    project = Project.prepared(tmp_path, params, computing=False)
    project.dvc("repro", "plan")
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.stylize", "first"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
    ) as by_hand:
        wait_for_begin(project, "first")
        text = run(project, check=False)
        assert f"experiment 'first' is being run by process {by_hand.pid}" in text
        assert by_hand.wait(300) == 0
    text = run(project)
    assert "to compute" not in text
    assert history(project, "first").is_file()
    assert history(project, "second").is_file()


def test_runner_that_is_killed_leaves_no_worker_and_the_next_goes_on(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["defaults"]["evaluations"] = 1500
    project = Project.prepared(tmp_path, params)
    with begin(project) as process:
        wait_for_checkpoints(project)
        workers = workers_of(process)
        process.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), 60)
    assert not (history(project, "first").parent / "image.png").exists()
    text = run(project)
    assert "waits for its end" not in text, "the lock of a process that was killed is free"
    assert "first: goes on after evaluation" in text
    assert "second: goes on after evaluation" in text
    assert rows(project, "first") == rows(project, "second") == 1501
    assert project.repro() == set()


def test_results_of_a_runner_that_was_killed_count(tmp_path: Path, params: dict[str, Any]) -> None:
    """It had computed experiments and not yet told DVC."""
    project = Project.prepared(tmp_path, params, computing=False)
    project.dvc("repro", "plan")
    project.python("pipeline.stages.stylize", "first")
    text = run(project)
    assert "1 experiment to compute" in text
    assert "first: total loss" not in text
    assert project.repro() == set()


def test_worker_that_is_killed_fails_its_experiment_and_no_other(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    params["defaults"]["evaluations"] = 1200
    project = Project.prepared(tmp_path, params)
    log = tmp_path / "log"
    process = start(project, log)
    wait_for_checkpoints(project)
    os.kill(workers_of(process)[0].pid, signal.SIGKILL)
    assert process.wait(180) == 1
    text = log.read_text()
    assert text.count("The process that computed it ended (SIGKILL)") >= 1
    assert text.count(": total loss ") == 1
    text = run(project)
    assert "goes on after evaluation" in text
    assert rows(project, "first") == rows(project, "second") == 1201


def test_as_many_workers_as_cores_and_memory_have_room_for(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = "pipeline.runtime.device.available"
    plans = [read_plan("first"), read_plan("second")]
    monkeypatch.setattr(resources, "count_cores", lambda: 16)
    monkeypatch.setattr(available, lambda _: 3 * GIB)
    assert 3 <= resources.count_workers(plans) <= 5
    monkeypatch.setattr(available, lambda _: 300 * GIB)
    assert resources.count_workers(plans) == 16
    wide = [
        plan.model_copy(update={"settings": plan.settings.model_copy(update={"threads": 5})})
        for plan in plans
    ]
    assert resources.count_workers(wide) == 3
    monkeypatch.setattr(available, lambda _: 0)
    assert resources.count_workers(plans) == 1


def test_a_gpu_is_shared_by_a_few(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "count_cores", lambda: 16)
    monkeypatch.setattr("pipeline.runtime.device.available", lambda _: 300 * GIB)
    devices = iter(["cuda", "cuda", "mps", "mps", "cuda", "cpu"])
    find = "pipeline.runtime.device.find_device"
    monkeypatch.setattr(find, lambda _: torch.device(next(devices)))
    monkeypatch.setattr("pipeline.runtime.device.find_precision", lambda *_: "float32")
    plans = [read_plan("first"), read_plan("second")]
    assert resources.count_workers(plans) == resources.GPU_WORKERS
    assert resources.count_workers(plans) == 1
    assert resources.count_workers(plans) == 1


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_number_of_jobs_is_a_whole_number_from_1(given: str, workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "--jobs", given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"jobs is {given!r}, but it must be a whole number from 1" in done.stderr
