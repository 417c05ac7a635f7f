"""Weights & Biases, kept from harming an experiment: a copy of its record, never the record.

Without a key runs are offline; a server that does not answer in time costs ``init_timeout`` and
``finish_timeout`` seconds at most, and what was logged stays on disk for ``wandb sync``. Where
there is no room for it, that is the system's temporary folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pipeline.errors import UserError
from pipeline.records.provenance import code_version
from pipeline.records.status import Whereabouts

if TYPE_CHECKING:
    from PIL.Image import Image
    from wandb import Run

    from pipeline.config.schema import Tracking

Mode = Literal["online", "offline", "disabled"]

LEAST_ROOM = 16 * 2**20
"""Bytes that must be free where W&B keeps its record; pictures and curves of one run."""


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
    """Yields a W&B run, whose ``log`` and ``summary.update`` do not raise.

    Closes it afterwards, as failed if the block raised, and says how to upload what was not.

    Args:
        tracking: the section of params.yaml.
        root: absolute path of the folder that gets ``wandb/``, if it has room for it.
        name, job_type: shown in the dashboard; the job type is the stage's name.
        config: everything that defines the run; plain values, no secrets.
        group: shown in the dashboard where params.yaml names none.
        against: the logged value that curves are drawn against.
    """
    root.mkdir(parents=True, exist_ok=True)
    run = _start(
        tracking,
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group or group or _default_group(),
        tags=tracking.tags,
        name=name,
        job_type=job_type,
        config=dict(config),
        dir=str(_with_room(root)),
    )
    run.define_metric(against, hidden=True)
    run.define_metric("*", step_metric=against)
    harmless = _Harmless(run)
    try:
        yield cast("Run", harmless)
    except BaseException:
        _finish(run, exit_code=1, incomplete=harmless.incomplete)
        raise
    _finish(run, exit_code=0, incomplete=harmless.incomplete)


def _with_room(root: Path) -> Path:
    """Returns ``root``, or a temporary folder where its disk is full."""
    folder = root / "wandb"
    if shutil.disk_usage(folder if folder.is_dir() else root).free >= LEAST_ROOM:
        return root
    try:
        other = Path(tempfile.mkdtemp(prefix="wandb-"))
    except OSError:
        return root
    print(f"{folder} has less than {LEAST_ROOM / 2**20:g} MiB left: W&B's record goes to {other}")
    return other


class _Harmless:
    """A W&B run that has anything a run has, and whose failures are said once and then over.

    W&B copies pictures into its folder when they are logged, and raises where that is full.
    """

    def __init__(self, run: Run) -> None:
        self._run, self.incomplete = run, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def log(self, *arguments: Any, **options: Any) -> None:
        self._try(self._run.log, *arguments, **options)

    @property
    def summary(self) -> Any:
        return SimpleNamespace(update=partial(self._try, self._run.summary.update))

    def _try(self, action: Callable[..., object], *arguments: Any, **options: Any) -> None:
        try:
            action(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - whatever W&B cannot do, the run goes on
            if not self.incomplete:
                print(f"W&B cannot keep all of this run ({_first_line(error)})")
            self.incomplete = True


def _start(tracking: Tracking, **arguments: Any) -> Run:
    # W&B reports its own errors to a server that no time-out of ours governs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        return _started(tracking, **arguments)
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(
            "W&B refuses what params.yaml has under tracking, or the environment's WANDB_… "
            f"variables: {_refused(error)}"
        ) from error


def _started(tracking: Tracking, **arguments: Any) -> Run:
    import wandb

    mode = _mode(tracking)
    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=tracking.init_timeout,
        finish_timeout=tracking.finish_timeout,
        finish_timeout_raises=True,
        x_disable_stats=mode == "offline",
    )
    if mode == "online":
        try:
            return wandb.init(mode=mode, settings=settings, **arguments)
        except (wandb.Error, OSError) as error:
            print(f"W&B does not answer ({_first_line(error)}): this run is tracked offline")
            mode = "offline"
    try:
        return wandb.init(mode=mode, settings=settings, **arguments)
    except wandb.errors.UsageError:
        raise
    except (wandb.Error, OSError) as error:
        print(
            f"W&B cannot keep a record in {arguments['dir']} ({_first_line(error)}): this run is "
            "not tracked. Make room there, and run the experiment again to have it tracked"
        )
        return wandb.init(mode="disabled", settings=settings, **arguments)


def _finish(run: Run, exit_code: int, incomplete: bool) -> None:
    folder, offline = _folder(run), run.offline or incomplete
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:  # noqa: BLE001 - the record is on disk, whatever W&B says
        print(f"W&B could not finish its upload ({_first_line(error)})")
        offline = True
    if offline and folder.is_dir():
        print(f"W&B, offline: to upload this run, `wandb sync {folder}`")


def whereabouts(run: Run, root: Path) -> Whereabouts:
    """Returns where a run is; ``root`` as it was started with."""
    if run.disabled:
        return {}
    folder = _folder(run)
    if folder.is_relative_to(root):
        folder = folder.relative_to(root)
    found: Whereabouts = {"sync": f"wandb sync {folder}"}
    if not run.offline and run.url:
        found["url"] = run.url
    return found


def _folder(run: Run) -> Path:
    return Path(run.dir).parent


def logged_picture(picture: Image | Path, caption: str) -> Any:
    """Returns a picture, or the file of one as it is, in the form that a W&B run logs.

    None where that cannot be had: W&B writes it into the system's temporary folder.
    """
    import wandb

    try:
        return wandb.Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)
    except Exception as error:  # noqa: BLE001 - whatever W&B cannot do, the run goes on
        print(f"W&B cannot keep the picture of {caption} ({_first_line(error)})")
        return None


def _mode(tracking: Tracking) -> Mode:
    if tracking.mode != "auto":
        return tracking.mode
    wish = os.environ.get("WANDB_MODE")
    if wish in get_args(Mode):
        return cast(Mode, wish)
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return read_netrc_auth(host=wandb.setup().settings.base_url) is not None
    except (wandb.Error, OSError) as error:
        print(f"W&B's key cannot be had ({_first_line(error)}): this run is tracked offline")
        return False


def _default_group() -> str:
    """One group for what one command ran: DVC's name of the experiment, else the git revision."""
    if name := os.environ.get("DVC_EXP_NAME"):
        return name
    return (code_version()["revision"] or "no-revision")[:12]


def _refused(error: Exception) -> str:
    """Returns what is wrong, without the value: it may be a key."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
