"""Runs one experiment from its plan, and writes its picture and its records."""

import os
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from pipeline import paths
from pipeline.config.plan import Plan
from pipeline.config.schema import RunOptions
from pipeline.errors import explaining_the_disk
from pipeline.experiments.results import COMPARED
from pipeline.files import own_folder, sha256, write_json
from pipeline.imaging.output.result_files import write_result
from pipeline.imaging.output.timelapse import write_timelapse
from pipeline.imaging.tensors import as_saved, to_size
from pipeline.losses.objective import Objective
from pipeline.measures.picture import measure
from pipeline.records.identity import Run, identify
from pipeline.records.lineage import log_lineage
from pipeline.records.locks import sole_run
from pipeline.records.provenance import code_version, provenance, settings_text
from pipeline.records.status import recording_failure
from pipeline.records.tracking import tracked_run, wandb_image
from pipeline.runtime.process_group import process_group
from pipeline.transfer.build import content_alpha, developed, read_inputs
from pipeline.transfer.callbacks import ReportProgress
from pipeline.transfer.checkpointing import best_image
from pipeline.transfer.memory import choose_tiles
from pipeline.transfer.phases import PhasedRun, Result

DEFAULT_THREADS = torch.get_num_threads()
"""Of an experiment that asks for no number; a worker may have computed one that did."""


def run_experiment(
    plan: Plan,
    options: RunOptions,
    report: ReportProgress = lambda *_: None,
    picture: Path | None = None,
) -> None:
    """Runs an experiment and writes its outputs into ``data/experiments/NAME``.

    Continues from a checkpoint of the same run, if there is one. ``report`` is called by
    ``transfer.callbacks.Progress``. The file ``picture`` gets the result too, in the format of its
    suffix, or the best image so far if the run is stopped.

    Raises:
        UserError: another process runs the experiment, its inputs do not fit, or its image did
            not change.
        SystemExit: 143 after SIGTERM, 130 after an interrupt, as of a killed process.
    """
    name = plan.experiment
    with sole_run(name), recording_failure(name), explaining_the_disk():
        own_folder(paths.EXPERIMENTS / name)
        # If this run ends early, the files of an earlier one must not be taken for its results.
        for file in ("provenance.json", "image.png"):
            (paths.EXPERIMENTS / name / file).unlink(missing_ok=True)
        _run(plan, options, report, picture)


def _run(plan: Plan, options: RunOptions, report: ReportProgress, picture: Path | None) -> None:
    name, settings = plan.experiment, plan.settings
    if settings.deterministic:
        # cuBLAS reads this at its first use, which comes before Lightning would set it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    run = identify(plan)
    tiles = choose_tiles(settings, run.device, run.precision)
    run.checkpoints.remove_old_ones_of_others()
    root = paths.shared_root()
    with (
        run.checkpoints.reserved(),
        process_group(settings.devices, run.device) as group,
        tracked_run(
            options.tracking,
            root=root,
            name=name,
            job_type="stylize",
            config={
                "experiment": name,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
                "code": code_version(),
                **run.description,
                **run.environment,
            },
            group=options.group,
        ) as tracked,
    ):
        logger = WandbLogger(experiment=tracked)
        try:
            result = PhasedRun(
                run, logger, options.checkpoints.every, report, tiles, group
            ).optimise()
        except SystemExit:
            if picture:
                _write_best_image(run, picture)
            raise
        metrics = _write_results(run, result)
        if picture:
            _write_image(run, result.image, picture)
        log_lineage(tracked, plan, run.description)
        image = paths.EXPERIMENTS / name / "image.png"
        shown = {"result": wandb_image(image, name)}
        tracked.log(shown)  # the media panels of W&B show what is in the history
        ending = {"end": result.stop_reason.kind, **shown}
        # The hash tells which of an experiment's runs made the image.png that is there.
        tracked.summary.update({**metrics, **ending, "result_sha256": sha256(image)})


def _write_image(run: Run, image: Tensor, file: Path) -> Tensor:
    """Writes an image that was optimised as the run's settings ask, and returns what is written."""
    settings = run.plan.settings
    content_image = read_inputs(settings).content_image
    image = developed(to_size(image, content_image.shape[-2:]), content_image, settings)
    write_result(
        image,
        file,
        bits=settings.output.bits,
        alpha=content_alpha(settings) if settings.output.alpha else None,
        dpi=settings.output.dpi,
        text=settings_text(run.plan.experiment, run.description),
    )
    return as_saved(image, settings.output.bits)


def _write_best_image(run: Run, file: Path) -> None:
    """Writes the best image of a run that was stopped, from its checkpoint, if there is one."""
    checkpoint = run.checkpoints.load()
    if checkpoint is not None:
        _write_image(run, best_image(checkpoint.state), file)
        print(f"stopped: the best image so far is in {file}. The same command goes on from there")


def _write_results(run: Run, result: Result) -> dict[str, float]:
    """Writes the outputs of a run, and returns its measures and losses.

    metrics.json has what compares experiments: the measures, and three losses. All other losses
    are in status.json, beside how the run ended.
    """
    name, state, stop_reason = run.plan.experiment, result.state, result.stop_reason
    settings, folder = run.plan.settings, paths.EXPERIMENTS / name
    saved = _write_image(run, result.image, folder / "image.png")
    if settings.timelapse:
        intermediates = sorted((folder / "intermediates").glob("*.png"))
        write_timelapse([*intermediates, folder / "image.png"], folder / paths.TIMELAPSE)
    names = "earlier_evaluations", "evaluations", "float32_evaluations", "iterations"
    counts = {count: getattr(state, count) for count in names}
    losses = {
        **_losses(result.objective, result.image, ""),
        **_losses(result.objective, saved, "saved_"),
    }
    if state.earlier_evaluations:  # otherwise they are in the first row of the history
        start = read_inputs(settings).start.to(result.image)
        losses |= _losses(result.objective, start, "start_")
    compared = {name: losses[name] for name in COMPARED}
    metrics = {**_measures(run, saved), **compared}
    write_json(folder / "metrics.json", metrics)
    status = {**stop_reason._asdict(), "notes": state.notes, "counts": counts, "losses": losses}
    write_json(folder / "status.json", status)
    write_json(folder / "provenance.json", provenance(name, run.description, run.environment))
    print(f"{name}: total loss {losses['total']:.4g}, as saved {losses['saved_total']:.4g}")
    if stop_reason.kind != "budget":
        print(f"{name}: ended by {stop_reason.kind}: {stop_reason.reason}")
    return {**metrics, **counts, **losses}


def _measures(run: Run, saved: Tensor) -> dict[str, float]:
    settings, styles = run.plan.settings, defaultdict[Path, float](float)
    for style in settings.styles.values():
        styles[paths.picture(style.image)] += style.weight
    vgg19 = run.description["backbone"]["architecture"] == "vgg19"
    network = paths.WEIGHTS_FILE if vgg19 else None
    return measure(saved, paths.picture(settings.content), styles, network)


def _losses(objective: Objective, image: Tensor, prefix: str) -> dict[str, float]:
    """Returns the losses of an image, without the weighted ones of single layers."""
    with torch.no_grad():
        losses = objective(image)
    return {
        f"{prefix}{name}": float(f"{losses[name].item():.9g}")
        for name in objective.names
        if not name.endswith("_weighted")
    }
