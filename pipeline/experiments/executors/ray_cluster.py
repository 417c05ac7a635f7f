"""The executor on Ray: submits experiments to a cluster, and writes the results it sends back."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import __version__, paths
from pipeline.config.code_hash import code_hash
from pipeline.config.plan import EXPERIMENT_CODE, Plan
from pipeline.config.schema import Experiment, RunOptions
from pipeline.errors import UserError, counted, explaining_the_disk, masked
from pipeline.experiments.executors import ray_task
from pipeline.experiments.executors.executor import STOPPING_S, Outcome, show
from pipeline.experiments.executors.ray_task import Result, Task
from pipeline.experiments.executors.resources import Gpu, memory_on_cpu, share_of_gpu
from pipeline.experiments.progress import ProgressDisplay
from pipeline.files import own_folder, replacing
from pipeline.records.locks import sole_run
from pipeline.records.status import recording_failure
from pipeline.records.tracking import default_group

if TYPE_CHECKING:
    from ray import ObjectRef

REACHING_S, CONNECTING_S, ASKING_S = 5.0, 20.0, 60.0
"""How long a cluster may take to be reached and connected to, and its nodes to answer."""
RETRIES = 3
"""How often an experiment is begun on another worker after it lost one."""
POLL_S = 0.2


class ClusterOptions(NamedTuple):
    """The cluster that computes the experiments.

    Attributes:
        address: ``auto`` or HOST:PORT; empty to start Ray on this machine for this command.
        shared: a folder for checkpoints that all nodes see by this path.
    """

    address: str = ""
    shared: Path | None = None


def check_reachable(options: ClusterOptions) -> None:
    """Raises ``UserError`` if Ray is not installed, or nothing answers at an address."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--executor ray needs the package ray, which is not installed here. Install it with "
            "`pip install 'style-transfer-pipeline[ray]'`, in a checkout with "
            "`pip install --editable '.[ray]'`"
        ) from error
    if options.address in ("", "auto"):
        return
    host, _, port = options.address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(
            f"--address is {options.address!r}, but it must be 'auto' or HOST:PORT, as `ray start "
            "--head` prints it"
        )
    try:
        socket.create_connection((host, int(port)), REACHING_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(options.address, str(error)) from error


class RayExecutor:
    """Computes experiments on a Ray cluster.

    ``display`` gets the progress of the experiments, and the lines that they print. ``cpus`` are
    those of a Ray that is started on this machine.
    """

    def __init__(
        self, options: ClusterOptions, display: ProgressDisplay, cpus: int | None = None
    ) -> None:
        self._options, self._display, self._cpus = options, display, cpus
        self._objects: dict[str, ObjectRef[bytes]] = {}
        self._running: dict[ObjectRef[Result], tuple[str, Future[Outcome]]] = {}
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._stopped = False

    def __enter__(self) -> RayExecutor:
        """Connects to the cluster.

        Raises:
            UserError: there is no cluster at the address, or a node cannot compute the experiments.
        """
        import ray

        self._ray = ray
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        _connect(self._options.address, self._cpus)
        for number, handler in handlers.items():  # Ray sets its own
            signal.signal(number, handler)
        try:
            self._prepare()
        except BaseException:
            ray.shutdown()
            raise
        self._watcher.start()
        return self

    def _prepare(self) -> None:
        """Looks at the nodes, and starts what the experiments report to."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        if self._options.shared:
            self._checkpoints: Path | None = self._options.shared.expanduser().absolute()
        else:  # without an address all workers are on this machine
            local = paths.shared_root() / ray_task.CHECKPOINTS
            self._checkpoints = None if self._options.address else local
        if self._checkpoints:
            with explaining_the_disk():
                self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._gpu = _ask_nodes(self._checkpoints)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        counts = {kind: [node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU", "memory")}
        self._most_cpus, self._most_gpus, self._most_memory = (
            max(each) for each in counts.values()
        )
        # A process keeps the GPU that it computed on first, so one that could get another of its
        # node's is not used twice, which is Ray's own rule. 0 is without a limit.
        max_calls = int(max(counts["GPU"]) > 1)
        self._remote = ray.remote(max_calls=max_calls)(ray_task.run_task)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(ray_task.Mailbox)
        self._mailbox = mailbox.remote()
        cpus, gpus = (int(sum(counts[kind])) for kind in ("CPU", "GPU"))
        machines = counted(len(nodes), "node")
        devices = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
        self._display.print(f"Ray: {machines} with {devices}")

    def __exit__(self, *_: object) -> None:
        """Stops what runs, which writes a checkpoint first, and leaves the cluster."""
        self._stopped = True
        self._watcher.join(STOPPING_S)
        left = list(self._running)
        for reference in left:
            self._ray.cancel(reference)
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=STOPPING_S)
        self._ray.shutdown()

    def submit(self, plan: Plan, options: RunOptions) -> Future[Outcome]:
        """Begins an experiment as soon as a worker with the cores and the memory is free."""
        files = [paths.picture(image.name) for image in plan.images.values()]
        files += [file for file in paths.BACKBONE.iterdir() if file.is_file()]
        task = Task(
            plan,
            options._replace(group=options.group or default_group()),
            {file.as_posix(): self._object(file) for file in files},
            self._checkpoints,
            paths.shared_root(),
            (sys.orig_argv, sys.argv),
        )
        future: Future[Outcome] = Future()
        remote = self._remote.options(
            name=plan.experiment, max_retries=RETRIES, **self._demand(plan.settings)
        )
        self._running[remote.remote(task, self._mailbox)] = plan.experiment, future
        return future

    def _object(self, file: Path) -> ObjectRef[bytes]:
        """Returns the bytes of a file as an object of the cluster, which is made once."""
        name = file.as_posix()
        if name not in self._objects:
            self._objects[name] = self._ray.put(file.read_bytes())
        return self._objects[name]

    def _demand(self, settings: Experiment) -> dict[str, float]:
        """Returns what Ray keeps free for an experiment: at most what its largest node has.

        A run that does not fit there refuses, with the size that would. Nodes may all join later.
        """
        cpus = max(settings.threads or 1, settings.devices)
        if self._gpu and settings.device != "cpu":
            beside = {"num_gpus": min(share_of_gpu(settings, self._gpu), self._most_gpus)}
        else:
            memory = memory_on_cpu(settings)
            beside = {"memory": min(memory, self._most_memory or memory)}
        return {"num_cpus": min(cpus, self._most_cpus or cpus), **beside}

    def _watch(self) -> None:
        """Shows what is reported and keeps what is finished, until the block ends."""
        while not self._stopped:
            running = list(self._running)
            if not running:
                time.sleep(POLL_S)
                continue
            try:
                done, _ = self._ray.wait(running, num_returns=len(running), timeout=POLL_S)
                # After the wait, so that all that finished experiments have reported is here.
                for experiment, message in self._ray.get(self._mailbox.take.remote()):
                    show(message, experiment, self._display)
                for reference in done:
                    experiment, future = self._running.pop(reference)
                    future.set_result(self._outcome(experiment, reference))
            except Exception as error:  # noqa: BLE001 - nobody else can tell the runner
                for experiment, future in self._running.values():
                    reason = f"The cluster is lost: {_first_line(error)}. Run again"
                    future.set_result(Outcome(experiment, reason))
                self._running.clear()

    def _outcome(self, experiment: str, reference: ObjectRef[Result]) -> Outcome:
        """Returns how an experiment ended, with its results written."""
        from ray.exceptions import RayError, RayTaskError

        try:
            result: Result = self._ray.get(reference)
            outcome, files = result
            _write(experiment, files, finished=not outcome.error)
        except UserError as error:
            return Outcome(experiment, str(error))
        except RayTaskError as error:
            return Outcome(experiment, masked(str(error)))
        except OSError as error:
            return Outcome(experiment, f"Its results cannot be written: {error}")
        except RayError as error:
            reason = f"Its worker was lost {RETRIES + 1} times: {_first_line(error)}"
            return Outcome(experiment, f"{reason}. Often its memory was full. Run again")
        return outcome


def _connect(address: str, cpus: int | None) -> None:
    """Connects to a cluster, or starts Ray on this machine.

    Raises:
        UserError: there is no cluster at the address, or one of another version of Ray.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray's rule for the future, and else it prints a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    failures: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, **quiet)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    # In another thread since Ray tries for two minutes, and then ends the process.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECTING_S)
    if thread.is_alive():
        raise _no_cluster(address, f"no answer within {CONNECTING_S:.0f} s")
    if failures:
        raise _no_cluster(address, _first_line(failures[0])) from failures[0]


def _ask_nodes(checkpoints: Path | None) -> Gpu | None:
    """Returns the GPU with the least memory, if the cluster has GPUs.

    Raises:
        UserError: a node does not have this version of the package, or not the shared folder.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    module, folder = EXPERIMENT_CODE, str(checkpoints or "")

    # A function in a function goes to the node as code, not by its name in a package that may lack.
    def answer(has_gpu: bool) -> tuple[str, str, bool, tuple[int, str] | None]:
        import os
        from pathlib import Path

        try:
            from pipeline import __version__
            from pipeline.config.code_hash import code_hash
        except ImportError:
            return "", "", False, None
        gpu = None
        if has_gpu:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # this task has asked for none
            import torch

            from pipeline.runtime.device import find_precision

            if torch.cuda.is_available():
                memory = torch.cuda.get_device_properties(0).total_memory
                gpu = memory, find_precision("auto", torch.device("cuda"))
        return __version__, code_hash(module), not folder or Path(folder).is_dir(), gpu

    own = __version__, code_hash(module)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            has_gpu = node["Resources"].get("GPU", 0) > 0
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(num_cpus=0, max_calls=int(has_gpu), scheduling_strategy=place)
            asked[remote(answer).remote(has_gpu)] = node["NodeManagerHostname"]
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ASKING_S)
    for reference in silent:
        raise UserError(
            f"node {asked[reference]} of the cluster did not answer within {ASKING_S:.0f} s. Stop "
            "Ray there with `ray stop`, or see in its logs what it does"
        )
    gpus = []
    for reference, name in asked.items():
        try:
            version, code, sees_folder, gpu = ray.get(reference)
        except RayTaskError as error:
            reason = f"node {name} of the cluster cannot compute experiments: {error}"
            raise UserError(f"{reason}. Correct its environment, or stop Ray there") from error
        except RayError:  # the node was lost before this, and the cluster has noticed it now
            continue
        if not version:
            raise UserError(
                f"node {name} of the cluster does not have this package. Install version "
                f"{__version__} in the environment in which Ray was started there"
            )
        if (version, code) != own:
            raise UserError(
                f"node {name} of the cluster has version {version} of this package with the code "
                f"{code[:12]}, but here it is version {own[0]} with the code {own[1][:12]}: the "
                "results would differ. Install the same there, and start Ray again"
            )
        if not sees_folder:
            raise UserError(
                f"--shared is {folder!r}, but node {name} of the cluster has no such folder. Give "
                "one that all nodes see by the same path, or leave it out"
            )
        if gpu:
            gpus.append(Gpu(*gpu))
    return min(gpus, default=None)


def _write(experiment: str, files: dict[str, bytes], finished: bool) -> None:
    """Writes what a worker has sent; nothing half-written is taken for the results.

    Raises:
        UserError: another process runs the experiment here, or the disk is full.
    """
    folder, root = paths.EXPERIMENTS / experiment, paths.shared_root()
    with explaining_the_disk():
        for name, content in files.items():
            if name.startswith("wandb/"):
                _write_file(root / name, content)
        if not finished:
            return
        with sole_run(experiment), recording_failure(experiment):
            own_folder(folder)
            own_folder(folder / "intermediates")
            provenance = folder / "provenance.json"
            provenance.unlink(missing_ok=True)
            for old in folder.rglob("*"):
                if old.is_file() and old.as_posix() not in files:
                    old.unlink()
            # The provenance is last: without it there are no results.
            for name in sorted(files, key=lambda name: name == provenance.as_posix()):
                if name.startswith(f"{folder.as_posix()}/"):
                    _write_file(Path(name), files[name])


def _write_file(file: Path, content: bytes) -> None:
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"--address is {address!r}, but no Ray cluster answers there ({reason}). Start one with "
        "`ray start --head`, whose address it prints, or leave the option out for a Ray on this "
        "machine alone"
    )


def _first_line(error: BaseException) -> str:
    return masked((str(error).strip().splitlines() or [type(error).__name__])[0])
