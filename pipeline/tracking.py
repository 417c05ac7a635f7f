"""Weights & Biases, kept from harming an experiment: a copy of its record, never the record.

Without a key runs are offline; a server that does not answer in time costs ``init_timeout`` and
``finish_timeout`` seconds at most, and what was logged stays on disk for ``wandb sync``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pipeline.errors import UserError
from pipeline.provenance import code_version
from pipeline.status import Whereabouts

if TYPE_CHECKING:
    from PIL.Image import Image
    from wandb import Run

    from pipeline.schema import Tracking

Mode = Literal["online", "offline", "disabled"]


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
    """Yields a W&B run.

    Closes it afterwards, as failed if the block raised, and says how to upload what was not.

    Args:
        tracking: the section of params.yaml.
        root: absolute path of the folder that gets ``wandb/``.
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
        dir=str(root),
    )
    run.define_metric(against, hidden=True)
    run.define_metric("*", step_metric=against)
    try:
        yield run
    except BaseException:
        _finish(run, exit_code=1)
        raise
    _finish(run, exit_code=0)


def _start(tracking: Tracking, **arguments: Any) -> Run:
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
    except (wandb.Error, ValueError) as error:
        raise UserError(f"W&B refuses what params.yaml has under tracking: {error}") from error


def _finish(run: Run, exit_code: int) -> None:
    folder, offline = _folder(run), run.offline
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
    found: Whereabouts = {"sync": f"wandb sync {_folder(run).relative_to(root)}"}
    if run.url and not run.offline:
        found["url"] = run.url
    return found


def _folder(run: Run) -> Path:
    return Path(run.dir).parent


def logged_picture(picture: Image, caption: str) -> Any:
    """Returns a picture in the form that a W&B run logs."""
    import wandb

    return wandb.Image(picture, caption=caption)


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
    return read_netrc_auth(host=wandb.setup().settings.base_url) is not None


def _default_group() -> str:
    """One group for what one command ran: DVC's name of the experiment, else the git revision."""
    if name := os.environ.get("DVC_EXP_NAME"):
        return name
    return (code_version()["revision"] or "no-revision")[:12]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
