"""Experiments on a Ray cluster: two nodes of one core each, on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, write_params
from projects import Project, small_params
from test_runner import wait_until
from test_tracking import of_kind, records_of, summary_of

from pipeline import __version__, paths
from pipeline.config.params import read_params
from pipeline.config.plan import read_plan
from pipeline.errors import UserError
from pipeline.experiments import runner
from pipeline.experiments.executors.executor import Outcome
from pipeline.experiments.executors.ray_cluster import (
    ClusterOptions,
    RayExecutor,
    check_reachable,
)
from pipeline.experiments.executors.resources import Gpu, share_of_gpu
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.results import has_current_results
from pipeline.experiments.run import run_experiment

try:
    from ray.cluster_utils import Cluster
except ImportError:
    pytest.skip("needs Ray: pip install --editable '.[ray]'", allow_module_level=True)

GIB = 2**30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def submit(executor: RayExecutor, *names: str) -> list[Future[Outcome]]:
    params = read_params()
    return [executor.submit(read_plan(name), params.run_options(name)) for name in names]


def contents(name: str) -> dict[str, bytes]:
    folder = paths.EXPERIMENTS / name
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def change(
    workspace: Path, defaults: dict[str, Any] | None = None, **experiments: dict[str, Any]
) -> None:
    """Writes other defaults and more experiments into params.yaml, and the plans again."""
    params: dict[str, Any] = yaml.safe_load((workspace / "params.yaml").read_text("utf-8"))
    params["defaults"] |= defaults or {}
    params["experiments"] |= experiments
    write_params(workspace, params | {"checkpoints": {"every": 0.2}})


@pytest.mark.usefixtures("measured")
def test_results_and_wandb_runs_are_those_of_this_process(
    cluster: Any, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_short = {"content": "chelsea", "style": "gravel", "first_step": 1e-9}
    change(prepared, third=too_short)
    stale = prepared / "data/experiments/first/intermediates/00002.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    options = ClusterOptions(cluster.address)
    with ProgressDisplay(3) as display, RayExecutor(options, display) as executor:
        *good, bad = (each.result(180) for each in submit(executor, "first", "second", "third"))
    assert good == [Outcome("first"), Outcome("second")]
    assert bad.error.startswith("the image did not move")  # a sentence, and no second attempt
    assert not stale.exists()
    assert [has_current_results(name) for name in ("first", "second", "third")] == [1, 1, 0]
    text = capsys.readouterr().out
    assert "its worker was lost" not in text
    tracked = {}
    for folder in prepared.glob("wandb/offline-run-*"):
        assert f"wandb sync {folder}" in text
        records = records_of(folder)
        tracked[of_kind(records, "run")["display_name"]] = summary_of(records)["end"]
    assert tracked == {"first": "budget", "second": "budget", "third": "failed"}
    for name in ("first", "second"):
        there = contents(name)
        run_experiment(read_plan(name), read_params().run_options(name))
        assert there == contents(name)
        assert len(there) == 7


def test_experiment_of_a_lost_node_goes_on_from_its_checkpoint_on_another(
    cluster: Any, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two threads, since only a third node has two cores.
    change(prepared, {"evaluations": 200, "intermediates": [], "threads": 2})
    victim = cluster.add_node(num_cpus=2)
    shared = tmp_path / "shared"
    options = ClusterOptions(cluster.address, shared)
    with ProgressDisplay(1) as display, RayExecutor(options, display) as executor:
        (future,) = submit(executor, "first")
        wait_until(lambda: any(shared.glob("first-*.pt")))
        cluster.remove_node(victim, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        assert future.result(180) == Outcome("first")
    text = capsys.readouterr().out
    assert "first: its worker was lost. It runs again on" in text
    assert "first: goes on after evaluation" in text
    assert contents("first")["history.csv"].count(b"\n") == 201


def test_command_that_was_killed_loses_only_what_it_was_computing(
    cluster: Any, tmp_path: Path
) -> None:
    params = small_params() | {"checkpoints": {"every": 0.2}}
    params["defaults"]["evaluations"] = 1
    params["experiments"]["second"]["evaluations"] = 100_000
    project = Project.prepared(tmp_path, params)
    address = "--address", cluster.address
    command = "pipeline", "run", "--executor", "ray", *address, "--shared", "shared"
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
    ) as process:
        results = [project.folder / f"data/experiments/{name}" for name in ("first", "second")]
        wait_until(lambda: (results[0] / "provenance.json").is_file())
        wait_until(lambda: any((project.folder / "shared").glob("second-*.pt")))
        process.kill()
    assert not (results[1] / "image.png").exists()
    project.change(lambda params: params["experiments"]["second"].update(evaluations=1))
    text = project.python(*command)
    assert "1 experiment to compute" in text
    assert "first: total loss" not in text
    assert "second: total loss" in text
    assert project.repro() == set()


def test_commits_are_made_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = [0.0], list[list[str]]()
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])

    def commit(names: list[str]) -> None:
        made.append(list(names))
        clock[0] += 10

    monkeypatch.setattr(runner.dvc_stages, "commit_experiments", commit)
    commits = runner._Commits(["before"])
    commits.add("first")
    commits.make_if_due()
    assert made == []
    clock[0] = 31
    commits.make_if_due()
    commits.add("second")
    clock[0] = 140
    commits.make_if_due()
    assert made == [["before", "first"]]
    clock[0] = 142
    commits.make_if_due()
    assert made == [["before", "first"], ["second"]]


def test_share_of_a_gpu_grows_with_the_memory_that_is_needed(prepared: Path) -> None:
    settings = read_plan("first").settings
    small, large = Gpu(4 * GIB, "bf16"), Gpu(80 * GIB, "bf16")
    assert share_of_gpu(settings, large) == 0.125
    assert 0.25 < share_of_gpu(settings, small) < 1
    assert share_of_gpu(settings, Gpu(GIB, "tf32")) == 1
    assert share_of_gpu(settings, small._replace(precision="tf32")) > share_of_gpu(settings, small)


def package(folder: Path, version: str) -> Path:
    """Writes a package of another version, or one that cannot be imported as if it lacked."""
    if version:
        shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline")
        file = folder / "pipeline/__init__.py"
        file.write_text(file.read_text("utf-8").replace(__version__, version))
    else:
        (folder / "pipeline").mkdir(parents=True)
        (folder / "pipeline/__init__.py").write_text("raise ImportError")
    return folder


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("0.0.7", "of the cluster has version 0.0.7 of this package with the code "),
        ("", "of the cluster does not have this package. Install version "),
    ],
)
def test_node_without_this_version_of_the_package_is_refused(
    version: str, sentence: str, cluster: Any, prepared: Path, tmp_path_factory: Any
) -> None:
    folder = package(tmp_path_factory.mktemp("other"), version)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    try:
        with (
            pytest.raises(UserError, match=sentence),
            ProgressDisplay(1) as display,
            RayExecutor(ClusterOptions(cluster.address), display),
        ):
            pass
    finally:
        cluster.remove_node(node)


def test_address_without_a_cluster_is_refused_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_reachable(ClusterOptions(address))  # something answers there, but not Ray
        code = (
            "from pipeline.experiments.executors import ray_cluster; "
            f"ray_cluster.CONNECTING_S = 1; ray_cluster._connect({address!r}, None)"
        )
        # In a process of its own, which Ray ends some time.
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert "no Ray cluster answers there (no answer within 1 s)" in done.stderr
    with pytest.raises(UserError, match=r"no Ray cluster answers there \(.*refused"):
        check_reachable(ClusterOptions(address))


@pytest.mark.parametrize("address", ["nowhere", "ray://host:10001", "host:port", ":1"])
def test_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(UserError, match="must be 'auto' or HOST:PORT"):
        check_reachable(ClusterOptions(address))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--executor", "slurm"], "--executor is 'slurm', but it must be local or ray"),
        (["--address", "auto"], "--address auto is for a cluster. Give --executor ray with it"),
        (["--shared", "x"], "--shared x is for a cluster. Give --executor ray with it"),
        (["--executor", "ray", "--address", "a:1", "--jobs", "2"], "--jobs 2 is for this machine"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "pipeline", "run", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed here. Install it with `pip install"):
        check_reachable(ClusterOptions())
