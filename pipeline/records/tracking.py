"""Weights & Biases runs that never stop or fail an experiment (docs/reliability.md)."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import psutil
import requests
from pydantic import ValidationError

from pipeline.errors import UserError, masked
from pipeline.records.provenance import code_version

if TYPE_CHECKING:
    from PIL.Image import Image
    from wandb import Artifact, Run

    from pipeline.config.schema import Tracking

Mode = Literal["online", "offline", "disabled"]
OTHER_NAMES = {"dryrun": "offline", "run": "online"}
"""Values of WANDB_MODE that mean the same as one of the above."""
NAMES_OF_ONE_RUN = "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"
"""Variables that would make all runs of a command overwrite each other."""
PROJECT = "style-transfer"
"""Of all runs, if nothing else is said."""
TIMEOUT_S = 15.0
"""How long a run waits for the server at its start and at its end, if nothing else is said."""
GRACE_S = 3.0
"""How much longer W&B's process may take for its end before it is killed."""
ANSWER_S = 2.0
"""How long the server of an online run may take for an answer before artifacts are logged."""
MIN_FREE_MIB = 16
"""MiB that must be free for the files of a W&B run: its curves and pictures."""


@contextmanager
def tracked_run(
    tracking: Tracking,
    *,
    root: Path,
    name: str,
    job_type: str,
    config: Mapping[str, Any],
    group: str | None = None,
    against: str = "evaluation",
) -> Iterator[Run]:
    """Yields a W&B run that does not raise, and finishes it.

    Of its methods ``log``, ``log_artifact``, ``use_artifact`` and ``summary.update`` are safe.

    The summary holds what ``summary.update`` is given, and no last values of the curves. If the
    block raises, the run is finished as failed, and ``end`` in its summary says whether it was
    interrupted. How to upload an offline run is printed.

    What params.yaml says is taken first, then W&B's variables and the file ``wandb/settings`` that
    `wandb init` writes, then the arguments.

    Args:
        tracking: the section of params.yaml.
        root: absolute path of the folder that gets ``wandb/``, if WANDB_DIR names no other and its
            disk is not full. A relative WANDB_DIR begins here.
        name, job_type, config: shown in the dashboard; no secrets.
        group: of the run; by default one for all runs of a command, DVC's experiment or the git
            revision.
        against: the logged value on the x axis of the curves.

    Raises:
        UserError: W&B refuses its settings in params.yaml or in the environment.
    """
    for variable in NAMES_OF_ONE_RUN if not in_sweep() else ():
        if os.environ.pop(variable, None):
            print(f"{variable} is not used: each experiment is a W&B run of its own")
    folder = _folder_with_space(root / Path(os.environ.get("WANDB_DIR", "")).expanduser())
    for kind in ("CACHE", "DATA"):  # by default both are under the user's home
        os.environ.setdefault(f"WANDB_{kind}_DIR", str(folder / "wandb" / kind.lower()))
    defaults = {
        "project": PROJECT,
        "run_group": group or default_group(),
        "run_name": name,
        "run_job_type": job_type,
    }
    run = _start(tracking, defaults, config=dict(config), dir=str(folder))
    run.define_metric(against, hidden=True, summary="none")
    run.define_metric("*", step_metric=against, summary="none")
    safe, exit_code = _SafeRun(run), 1
    try:
        yield cast("Run", safe)
        exit_code = 0
    except BaseException as error:
        stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
        safe.summary.update({"end": "interrupted" if stopped else "failed"})
        raise
    finally:
        _finish(run, exit_code, safe.incomplete)


def in_sweep() -> bool:
    """Returns whether an agent of a W&B sweep began this process, for one run that it names."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def default_group() -> str:
    """Returns the group of the runs of a command: DVC's experiment, or the git revision."""
    name = os.environ.get("DVC_EXP_NAME")
    return name or (code_version()["revision"] or "no-revision")[:12]


def _sync_command(folder: Path) -> str:
    """Returns the command that uploads a run, or the rest of one, for a shell."""
    online = [] if folder.name.startswith("offline-") else ["--include-online"]
    return shlex.join(["wandb", "sync", *online, str(folder)])


def wandb_image(picture: Image | Path, caption: str) -> Any:
    """Returns a picture, or that of a file, as a W&B run logs it; None if W&B cannot copy it."""
    import wandb

    try:
        return wandb.Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)
    except Exception as error:  # noqa: BLE001 - no failure of W&B may end an experiment
        print(f"W&B cannot keep the picture of {caption} ({first_line(error)})")
        return None


def takes_artifacts(run: Run) -> bool:
    """Returns whether a run is offline, or its server answers: without, W&B would wait for it."""
    if run.disabled or run.offline:
        return True
    try:
        requests.head(run.settings.base_url, timeout=ANSWER_S)
    except requests.RequestException:
        return False
    return True


class _SafeRun:
    """A W&B run whose failures, on a full disk above all, are printed once and not raised."""

    def __init__(self, run: Run) -> None:
        self._run, self.incomplete = run, False
        self.log = partial(self._try, run.log)
        self.log_artifact = partial(self._try, _publish, run)
        self.use_artifact = partial(self._try, _publish, run, used=True)
        self.summary = SimpleNamespace(update=partial(self._try, run.summary.update))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def _try(self, action: Callable[..., object], *arguments: Any, **options: Any) -> None:
        try:
            action(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - no failure of W&B may end an experiment
            if not self.incomplete:
                print(f"W&B cannot keep all of this run ({first_line(error)})")
            self.incomplete = True


def _publish(
    run: Run, artifact: Artifact, *, aliases: Sequence[str] = (), used: bool = False
) -> None:
    """Does what the methods ``log_artifact`` and ``use_artifact`` of a run do, but does not wait.

    Online, both first ask the server, and our time-outs do not apply to that. Offline, the second
    raises. What either sends in the end is this message, which W&B treats alike in both modes.
    """
    artifact.finalize()
    assert run._interface is not None
    run._interface.publish_artifact(
        run, artifact, [*aliases, "latest"], is_user_created=True, use_after_commit=used
    )


def _start(tracking: Tracking, defaults: Mapping[str, Any], **arguments: Any) -> Run:
    """Starts a run online if that is wanted and possible, else offline, else disabled.

    ``defaults`` are fields of W&B's settings.
    """
    # W&B reports its own errors to a server to which our time-outs do not apply.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        mode = _mode(tracking)
        defaults = {
            **defaults,
            "console": "off",
            "silent": True,
            "init_timeout": TIMEOUT_S,
            "finish_timeout": TIMEOUT_S,
            "x_disable_stats": mode == "offline",
            "x_save_requirements": False,  # it takes 0.1 s to read the metadata of all packages
        }
        known = wandb.Settings()
        known.update_from_env_vars({name: value for name, value in os.environ.items() if value})
        given = known.model_fields_set | known.read_system_settings().all().keys()
        settings = wandb.Settings(
            **{key: value for key, value in defaults.items() if key not in given}
            | _settings_of_params(tracking),
            program=os.environ.get("WANDB_PROGRAM") or _command(),
            finish_timeout_raises=True,
        )
        if mode == "online":
            try:
                return wandb.init(mode=mode, settings=settings, **arguments)
            except (wandb.Error, OSError) as error:
                print(f"W&B does not answer ({first_line(error)}): this run is tracked offline")
                mode = "offline"
        try:
            return wandb.init(mode=mode, settings=settings, **arguments)
        except wandb.errors.UsageError:
            raise
        except (wandb.Error, OSError) as error:
            print(
                f"W&B cannot keep a record in {arguments['dir']} ({first_line(error)}): this run "
                "is not tracked. Make room there, and run the experiment again to have it tracked"
            )
            return wandb.init(mode="disabled", settings=settings, **arguments)
    except (wandb.errors.UsageError, ValueError) as error:
        # Without the refused values, one of which may be a key.
        details = error.errors() if isinstance(error, ValidationError) else []
        reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in details)
        raise UserError(
            "W&B refuses what params.yaml has under tracking, or the environment's WANDB_… "
            f"variables: {reason or error}"
        ) from error


def _settings_of_params(tracking: Tracking) -> dict[str, Any]:
    """Returns what params.yaml says, as fields of W&B's settings."""
    said = tracking.model_dump(exclude={"mode"}, exclude_none=True)
    return {{"group": "run_group", "tags": "run_tags"}.get(k, k): v for k, v in said.items()}


def _command() -> str | None:
    """Returns the command of this process without `python` and without its arguments.

    W&B records the arguments itself, but not the `-m` of a module as it was typed, and for a worker
    process nothing.
    """
    command, arguments = sys.orig_argv[1:], sys.argv[1:]
    if arguments and command[-len(arguments) :] == arguments:
        command = command[: -len(arguments)]
    return " ".join(command) or None


def _mode(tracking: Tracking) -> Mode:
    mode = os.environ.get("WANDB_MODE", "") if tracking.mode == "auto" else tracking.mode
    mode = OTHER_NAMES.get(mode, mode)
    if mode in get_args(Mode):
        return cast(Mode, mode)
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    try:
        if read_netrc_auth(host=wandb.setup().settings.base_url) is not None:
            return "online"
    except (wandb.Error, OSError) as error:
        print(f"W&B's key cannot be read ({first_line(error)}): this run is tracked offline")
    return "offline"


def _folder_with_space(root: Path) -> Path:
    """Returns ``root``, or a temporary folder if ``root`` cannot be made or its disk is full."""
    folder = root / "wandb"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder if folder.is_dir() else root).free >= MIN_FREE_MIB * 2**20:
            return root
        reason = f"has less than {MIN_FREE_MIB} MiB left"
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
    try:
        other = Path(tempfile.mkdtemp(prefix="wandb-"))
    except OSError:
        return root
    print(f"{folder} {reason}: W&B's record goes to {other}")
    return other


def _finish(run: Run, exit_code: int, incomplete: bool) -> None:
    folder, offline = Path(run.dir).parent, run.offline or incomplete
    # W&B's own time-out does not end the upload of an artifact.
    limit = threading.Timer((run.settings.finish_timeout or 0) + GRACE_S, _end_process)
    limit.daemon = True
    try:
        if not run.offline and run.settings.finish_timeout:
            limit.start()
        run.finish(exit_code=exit_code)
    except Exception as error:  # noqa: BLE001 - the record is on disk, whatever W&B says
        print(f"W&B could not finish its upload ({first_line(error)})")
        offline = True
        if limit.finished.is_set():
            _forget_process()
            print(f"W&B's process did not end and was stopped: the end of {folder} may be missing")
    finally:
        limit.cancel()
    if offline and folder.is_dir():
        print(f"W&B, offline: to upload this run, {_sync_command(folder)}")


def _end_process() -> None:
    """Kills W&B's process, with what it has not written of the record."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()


def _forget_process() -> None:
    """Lets the next run begin a process of its own."""
    import wandb

    with suppress(Exception):  # the process does not answer any more
        wandb.teardown()


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, without passwords."""
    return masked((str(error).splitlines() or [type(error).__name__])[0])
