"""Stage ``report``: the results of all experiments → static pages in ``reports``."""

from pipeline.config.params import read_params
from pipeline.config.plan import read_report_plan
from pipeline.experiments.results import set_others_aside
from pipeline.report.build import build_report
from pipeline.stages import run_stage


def report() -> None:
    """Replaces the report, logs its pictures to W&B, sets other results aside."""
    plan = read_report_plan()
    set_others_aside(plan.experiments)
    build_report(plan, read_params().tracking)


if __name__ == "__main__":
    run_stage(report)
