"""Plans: files that hold everything that decides the result of a stage, written before it runs.

The later stages read their plan and not params.yaml, so a run ends with the settings that it began
with, and DVC re-runs a stage when its plan has changed.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipeline import paths
from pipeline.config.code_hash import PACKAGE, code_hash
from pipeline.config.schema import Experiment, Params, ReportSettings
from pipeline.errors import UserError, nearest
from pipeline.files import read_json, sha256, write_json
from pipeline.networks.settings import Backbone
from pipeline.settings import Section

# The modules whose imports compute the result of a stage.
BACKBONE_CODE = "pipeline.networks.prepare"
EXPERIMENT_CODE = "pipeline.experiments.run"
REPORT_CODE = "pipeline.stages.report"
REPORT_TEMPLATES = PACKAGE / "report" / "templates"


class InputImage(Section):
    """A picture that an experiment uses: its name in the catalogue, the hash of its PNG file."""

    name: str
    sha256: str


class Plan(Section):
    """Everything that decides the result of one experiment, beside the prepared network."""

    experiment: str
    settings: Experiment
    images: dict[str, InputImage]  # by role, ``content`` and ``style``
    code: str  # hash of the modules that compute the result


class BackbonePlan(Section):
    """Everything that decides how the network is prepared, beside the files of its weights."""

    settings: Backbone
    code: str


class ReportPlan(ReportSettings):
    """Everything that decides the report, beside the results of the experiments."""

    code: str


AnyPlan = TypeVar("AnyPlan", bound=Section)


def read_plan(experiment: str) -> Plan:
    """Returns a plan, or raises ``UserError`` if it is missing or a picture was replaced since."""
    plan = _read(paths.plan(experiment), Plan)
    for image in plan.images.values():
        file = paths.picture(image.name)
        if not file.is_file() or sha256(file) != image.sha256:
            raise UserError(
                f"{file} is not the picture that {paths.plan(experiment)} was written for. "
                "Run `dvc repro plan`, which fetches the pictures and writes the plans again"
            )
    return plan


def read_backbone_plan() -> BackbonePlan:
    """Returns the plan of the stage ``backbone``, or raises ``UserError``."""
    return _read(paths.BACKBONE_PLAN, BackbonePlan)


def read_report_plan() -> ReportPlan:
    """Returns the plan of the stage ``report``, or raises ``UserError``."""
    return _read(paths.REPORT_PLAN, ReportPlan)


def _read(file: Path, model: type[AnyPlan]) -> AnyPlan:
    try:
        return model.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        known = [path.stem for path in paths.PLANS.glob("[!_]*.json")]
        raise UserError(
            f"there is no plan {file.stem!r} in {paths.PLANS}{nearest(file.stem, known)} "
            "Run `dvc repro plan`, which writes the plan of each experiment in params.yaml"
        ) from error
    except ValidationError as error:
        raise UserError(
            f"{file} was written by another version of this project, or is damaged. "
            "Run `dvc repro plan`"
        ) from error


def write_plans(params: Params, skip_missing: bool = False) -> list[str]:
    """Writes the plans of all experiments, of the backbone and of the report; removes all others.

    Returns the names of the experiments that have a plan. An experiment whose picture is missing
    raises ``UserError``. With ``skip_missing``, for after a fetch that failed, it gets no plan, nor
    does one whose picture is that of an earlier fetch.
    """
    plans = _experiment_plans(params, skip_missing)
    files: dict[Path, Section] = {paths.plan(plan.experiment): plan for plan in plans}
    code = code_hash(BACKBONE_CODE)
    files[paths.BACKBONE_PLAN] = BackbonePlan(settings=params.backbone, code=code)
    shown = {section: getattr(params, section) for section in ReportSettings.model_fields}
    code = code_hash(REPORT_CODE, sorted(REPORT_TEMPLATES.iterdir()))
    files[paths.REPORT_PLAN] = ReportPlan.model_construct(**shown, code=code)
    for file, plan in files.items():
        write_json(file, plan.model_dump(mode="json"))
    for file in set(paths.PLANS.glob("*.json")) - set(files):
        file.unlink()
    return [plan.experiment for plan in plans]


def _experiment_plans(params: Params, skip_missing: bool) -> list[Plan]:
    records = read_json(paths.FETCH_RECORDS) if skip_missing else {}
    images = {
        file.stem: InputImage(name=file.stem, sha256=sha256(file))
        for file in paths.IMAGES.glob("*.png")
        if "error" not in records.get(file.stem, {})
    }
    code = code_hash(EXPERIMENT_CODE)
    plans = []
    # Plans are constructed and not validated, since pydantic would check all settings once more.
    for name, settings in params.experiments.items():
        missing = [image for image in settings.images.values() if image not in images]
        if not missing:
            inputs = {role: images[image] for role, image in settings.images.items()}
            plan = Plan.model_construct(
                experiment=name, settings=settings, images=inputs, code=code
            )
            plans.append(plan)
        elif not skip_missing:
            raise UserError(
                f"the image {missing[0]!r} of {name} was not fetched. Run `dvc repro fetch`"
            )
    return plans
