"""A run before it begins: where it computes, and everything that decides what comes of it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch

from pipeline import paths
from pipeline.config.schema import Experiment
from pipeline.files import sha256
from pipeline.networks.weight_files import check_backbone
from pipeline.records.checkpoints import Checkpoints, key_of
from pipeline.records.provenance import loaded_code, package_versions
from pipeline.runtime.device import find_device, find_precision
from pipeline.runtime.precision import Precision


class Run(NamedTuple):
    """A run of an experiment.

    Attributes:
        name, settings: of the experiment.
        device, precision: where the network computes, and in what.
        description: what defines it: settings, the network's record, the hashes of its inputs.
        made_by: packages, device, threads and precision.
        checkpoints: under the hash of both.
    """

    name: str
    settings: Experiment
    device: torch.device
    precision: Precision
    description: dict[str, Any]
    made_by: dict[str, Any]
    checkpoints: Checkpoints


def identify(name: str, settings: Experiment) -> Run:
    """Returns the run that an experiment would be in this process.

    Raises:
        UserError: no such device or precision here, or the network was not prepared.
    """
    device = find_device(settings.device)
    precision = find_precision(settings.precision, device)
    description = _describe(settings)
    made_by = {
        "packages": package_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    decisive = {"code": loaded_code(), "processor": torch.backends.cpu.get_cpu_capability()}
    checkpoints = Checkpoints(name, key_of({**description, **made_by, **decisive}))
    return Run(name, settings, device, precision, description, made_by, checkpoints)


def _describe(settings: Experiment) -> dict[str, Any]:
    files = {
        "content": paths.picture(settings.content),
        "style": paths.picture(settings.style),
        "weights": paths.WEIGHTS_FILE,
    }
    if settings.warm_start:
        files["warm_start_weights"] = paths.EMBEDDED_FILE
    for file in (paths.WEIGHTS_FILE, paths.EMBEDDED_FILE):
        check_backbone(file)
    inputs = {role: sha256(file) for role, file in files.items()}
    return {
        "settings": settings.model_dump(),
        "backbone": json.loads(paths.BACKBONE_RECORD.read_text(encoding="utf-8")),
        "inputs": inputs,
    }
