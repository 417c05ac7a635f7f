"""The identity of a run: its plan, network, device and software, which decide its result."""

import hashlib
import json
from typing import Any, NamedTuple

import torch

from pipeline import paths
from pipeline.config.plan import Plan
from pipeline.files import json_text, sha256
from pipeline.networks.weight_files import check_backbone
from pipeline.records.checkpoints import Checkpoints
from pipeline.records.provenance import package_versions
from pipeline.runtime.device import find_device, find_precision
from pipeline.runtime.precision import Precision


class Run(NamedTuple):
    """A run of an experiment in this process.

    Attributes:
        description: the settings, the record of the network, and the hashes of plan and inputs.
        environment: the versions of packages, the device, the threads and the precision.
        checkpoints: of this run and of no other: any change of the above or of the processor's
            instructions begins a new run. The plan holds the hash of the code.
    """

    plan: Plan
    device: torch.device
    precision: Precision
    description: dict[str, Any]
    environment: dict[str, Any]
    checkpoints: Checkpoints


def identify(plan: Plan) -> Run:
    """Returns the run that a plan describes, on this machine.

    Raises:
        UserError: the device or the precision is not available, or the network was not prepared.
    """
    device = find_device(plan.settings.device)
    precision = find_precision(plan.settings.precision, device)
    description = _describe(plan)
    environment = {
        "packages": package_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    processor = torch.backends.cpu.get_cpu_capability()
    decisive = description["plan"], description["inputs"], processor, environment
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    checkpoints = Checkpoints(plan.experiment, key[:16])
    return Run(plan, device, precision, description, environment, checkpoints)


def _describe(plan: Plan) -> dict[str, Any]:
    networks = {"weights": paths.WEIGHTS_FILE, "warm_start_weights": paths.EMBEDDED_FILE}
    for file in networks.values():
        check_backbone(file)
    if not plan.settings.uses_embedded_network:
        del networks["warm_start_weights"]
    pictures = {role: image.sha256 for role, image in plan.images.items()}
    return {
        # As the stage plan writes it, so that the hash is that of its file.
        "plan": hashlib.sha256(json_text(plan.model_dump(mode="json")).encode()).hexdigest(),
        "settings": plan.settings.model_dump(),
        "backbone": json.loads(paths.BACKBONE_RECORD.read_text(encoding="utf-8")),
        "inputs": pictures | {role: sha256(file) for role, file in networks.items()},
    }
