"""Lineage in W&B: the result of an experiment, its input pictures and its network as artifacts."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import paths
from pipeline.config.plan import Plan
from pipeline.records.provenance import code_version
from pipeline.records.tracking import first_line, takes_artifacts

if TYPE_CHECKING:
    from wandb import Artifact, Run

RESULT_FILES = "image.png", "history.csv", "metrics.json"
LOCK_FILE = Path("dvc.lock")


class Input(NamedTuple):
    """A file that a run read: its SHA-256, and the DVC stage that wrote it with its output."""

    file: Path
    sha256: str
    stage: str
    output: Path
    metadata: Mapping[str, Any]


def log_lineage(run: "Run", plan: Plan, description: Mapping[str, Any]) -> None:
    """Logs the result of an experiment to its W&B run, and its inputs as used by it.

    The result is an artifact of type ``result`` with the files themselves, under the name of the
    experiment. Each input picture is one of type ``input``, each network one of type ``network``:
    references to the files, whose versions are their SHA-256. Their names have a dot, as no name of
    an experiment has, because W&B allows a name in a project for one type only. DVC's experiment
    and the git revision are aliases of all of them. Nothing is done without W&B, and where its
    server does not answer: W&B's process would try to upload them without end.

    Args:
        run: yielded by ``tracked_run``; its methods do not raise.
        description: of the run, as ``records.identity`` returns it.
    """
    if run.disabled:
        return
    if not takes_artifacts(run):
        print(f"W&B does not answer: the lineage of {plan.experiment} is not kept")
        return
    try:
        result, inputs = _artifacts(plan, description)
    except Exception as error:  # noqa: BLE001 - no failure of W&B may end an experiment
        print(f"W&B cannot keep the lineage of {plan.experiment} ({first_line(error)})")
        return
    aliases = _aliases()
    run.log_artifact(result, aliases=aliases)
    for artifact in inputs:
        run.use_artifact(artifact, aliases=aliases)


def _artifacts(plan: Plan, description: Mapping[str, Any]) -> tuple["Artifact", list["Artifact"]]:
    import wandb

    names = {role: image.name for role, image in plan.images.items()}
    metadata = {key: description[key] for key in ("plan", "inputs")} | {"images": names}
    result = wandb.Artifact(plan.experiment, type="result", metadata=metadata)
    for name in RESULT_FILES:
        # A copy below wandb/, as the file will be replaced by the next run of the experiment.
        result.add_file(str(paths.EXPERIMENTS / plan.experiment / name), skip_cache=True)
    pictures = {
        f"picture.{image.name}": Input(
            paths.picture(image.name), image.sha256, "fetch", paths.IMAGES, {}
        )
        for image in plan.images.values()
    }
    record = description["backbone"]
    files = {"weights": paths.WEIGHTS_FILE, "warm_start_weights": paths.EMBEDDED_FILE}
    networks = {
        f"network.{record['architecture'] if role == 'weights' else 'embedded'}": Input(
            file, description["inputs"][role], "backbone", paths.BACKBONE, record
        )
        for role, file in files.items()
        if role in description["inputs"]
    }
    inputs = [_reference(name, "input", each) for name, each in pictures.items()]
    return result, inputs + [_reference(name, "network", each) for name, each in networks.items()]


def _reference(name: str, kind: str, each: Input) -> "Artifact":
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath

    metadata = {"sha256": each.sha256, **each.metadata}
    if md5 := _dvc_md5(each.stage, each.output):
        metadata["dvc"] = {"path": each.output.as_posix(), "md5": md5}
    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    # ``add_reference`` would hash the file again, or without a checksum take its address for the
    # version, and asks a shell for the umask.
    artifact.manifest.add_entry(
        ArtifactManifestEntry(
            path=LogicalPath(each.file.name),
            ref=each.file.absolute().as_uri(),
            digest=each.sha256,
            size=each.file.stat().st_size,
        )
    )
    return artifact


def _dvc_md5(stage: str, output: Path) -> str | None:
    """Returns DVC's hash of a stage's output, if dvc.lock has one; of a folder it ends in .dir.

    To parse the whole file as YAML would take longer than all else here.
    """
    if not LOCK_FILE.is_file():
        return None
    found = re.search(
        rf"^  {stage}:\n(?:    .*\n)*?    outs:\n(?:    [- ] .*\n)*?"
        rf"    - path: {re.escape(output.as_posix())}\n(?:      .*\n)*?      md5: (\S+)$",
        LOCK_FILE.read_text(encoding="utf-8", errors="replace"),
        re.MULTILINE,
    )
    return found[1] if found else None


def _aliases() -> list[str]:
    code, experiment = code_version(), os.environ.get("DVC_EXP_NAME")
    revision = code["revision"] and code["revision"][:12] + ("-dirty" if code["dirty"] else "")
    return [alias for alias in (experiment, revision) if alias]
