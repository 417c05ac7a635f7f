"""The plan: everything that decides the result of a stage, written before the stage runs.

The stage ``plan`` runs after ``fetch`` and writes one file for each experiment. It binds the
experiment's complete settings, the hashes of its input pictures, and the hash of the code that
computes it. Later stages read their plan and not params.yaml, so that a run ends with the settings
it began with, and DVC re-runs a stage when its plan has changed and at no other time.
"""

from __future__ import annotations

from pipeline import paths
from pipeline.config.code_hash import code_hash
from pipeline.config.schema import Experiment, Params
from pipeline.errors import UserError, nearest
from pipeline.files import sha256, write_json
from pipeline.settings import Section

STYLIZE = "pipeline.experiments.run"
"""The module whose imports compute an experiment."""


class InputImage(Section):
    """A picture that an experiment uses.

    Attributes:
        name: in the catalogue; the file is ``data/images/NAME.png``.
        sha256: of that file.
    """

    name: str
    sha256: str


class Plan(Section):
    """Everything that decides the result of one experiment, beside the prepared network.

    Attributes:
        experiment: its name.
        settings: all of them, completed from the defaults.
        images: {role: picture}; the roles are ``content`` and ``style``.
        code: hash of the modules that compute it.
    """

    experiment: str
    settings: Experiment
    images: dict[str, InputImage]
    code: str


def read_plan(experiment: str) -> Plan:
    """Returns the plan of an experiment.

    Raises:
        UserError: there is none.
    """
    file = paths.plan(experiment)
    if not file.is_file():
        known = [path.stem for path in paths.PLAN.glob("[!_]*.json")]
        raise UserError(
            f"there is no plan {file.stem!r} in {paths.PLAN}{nearest(file.stem, known)} "
            "Run `dvc repro plan`, which writes the plan of each experiment in params.yaml"
        )
    return Plan.model_validate_json(file.read_text(encoding="utf-8"))


def write_plans(params: Params, skip_missing: bool = False) -> list[str]:
    """Writes the plans of all experiments whose pictures are there, and returns their names."""
    code, names = code_hash(STYLIZE), []
    for name, settings in params.experiments.items():
        roles = {"content": settings.content, "style": settings.style}
        if not all(paths.picture(image).is_file() for image in roles.values()):
            continue
        images = {
            role: InputImage(name=image, sha256=sha256(paths.picture(image)))
            for role, image in roles.items()
        }
        plan = Plan(experiment=name, settings=settings, images=images, code=code)
        write_json(paths.plan(name), plan.model_dump(mode="json"))
        names.append(name)
    return names
