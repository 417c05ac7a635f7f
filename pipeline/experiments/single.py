"""Computes the picture of the command ``transfer``, without DVC and without params.yaml.

It is the same experiment: settings are completed and checked like those of params.yaml, the plan
binds them to the hashes of the pictures and of the code, and the result has them in its metadata.
What a run needs on the way lies in the user's cache, so that the same command goes on from where
it was stopped.
"""

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

import pooch

from pipeline import paths
from pipeline.config.code_hash import code_hash
from pipeline.config.edits.additions import add_experiment
from pipeline.config.params import find_experiment
from pipeline.config.plan import BACKBONE_CODE, read_plan, write_plans
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.experiments.progress import ProgressDisplay
from pipeline.experiments.request import EXPERIMENT, Request, to_params
from pipeline.experiments.run import run_experiment
from pipeline.files import json_text, read_json
from pipeline.imaging.fetching import fetch_images
from pipeline.imaging.output.result_files import check_output
from pipeline.networks.prepare import prepare
from pipeline.networks.weight_files import cached_imagenet_weights
from pipeline.records.locks import hold
from pipeline.records.tracking import in_sweep

MAX_AGE = 30 * 86_400.0
"""Seconds after which the workspace of a run that was stopped is removed."""


def transfer(request: Request, out: Path, save_as: str = "") -> None:
    """Computes one picture and writes it to ``out``.

    With a name in ``save_as``, first adds it as an experiment to the params.yaml of this folder.

    Raises:
        UserError: a mistake in the request, or in what it names.
        SystemExit: 143 after SIGTERM, 130 after an interrupt; the best image so far is in ``out``.
    """
    params = to_params(request, vgg19_is_here=cached_imagenet_weights() is not None)
    out = out.expanduser().absolute()
    output = find_experiment(params, EXPERIMENT).output
    check_output(out, output.bits, output.alpha)
    if save_as:
        add_experiment(save_as, params)
    compute_picture(params, out)
    print(out)


def compute_picture(params: Params, out: Path) -> None:
    """Computes one picture from checked parameters and writes it to ``out``.

    Args:
        params: parameters whose only experiment is named ``EXPERIMENT``.
        out: an absolute path that ``check_output`` accepts.

    Raises:
        UserError: a picture or the weights of the network cannot be read, or do not fit.
        SystemExit: as in ``transfer``.
    """
    key = hashlib.sha256(json_text(params.model_dump(mode="json")).encode()).hexdigest()[:16]
    cache = Path(pooch.os_cache("style-transfer"))
    network = _prepared_network(params, cache / "networks")
    workspace = cache / "runs" / key
    _remove_old(cache / "runs", workspace)
    (workspace / "data").mkdir(parents=True, exist_ok=True)
    if in_sweep():  # its W&B run stays when the workspace is removed
        os.environ.setdefault("WANDB_DIR", str(Path.cwd()))
    with contextlib.chdir(workspace):
        if not paths.BACKBONE.exists():
            paths.BACKBONE.symlink_to(network, target_is_directory=True)
        _fetch(params)
        write_plans(params)
        with ProgressDisplay() as display:
            options = params.run_options(EXPERIMENT)
            run_experiment(read_plan(EXPERIMENT), options, display.report, out)
    shutil.rmtree(workspace, ignore_errors=True)


def _fetch(params: Params) -> None:
    names = find_experiment(params, EXPERIMENT).images.values()
    sources = {name: (params.images[name].source, None) for name in names}
    failures = fetch_images(sources, code_hash("pipeline.imaging.picture_files"))
    if failures:
        raise UserError("\n".join(failures.values()))


def _prepared_network(params: Params, folder: Path) -> Path:
    """Returns the folder of the prepared network, which is prepared once and kept in the cache."""
    settings = json_text(params.backbone.model_dump(mode="json")) + code_hash(BACKBONE_CODE)
    workspace = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
    workspace.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(workspace), hold(Path("lock"), wait=True):
        if not read_json(paths.BACKBONE_RECORD):  # which is written last
            prepare(params.backbone)
        return paths.BACKBONE.absolute()


def _remove_old(runs: Path, own: Path) -> None:
    for workspace in runs.glob("*"):
        if workspace != own and time.time() - workspace.stat().st_mtime > MAX_AGE:
            shutil.rmtree(workspace, ignore_errors=True)
