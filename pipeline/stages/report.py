"""Stage ``report``: the results of all experiments → static pages in ``reports``."""

from pipeline.config.params import read_params
from pipeline.config.plan import read_report_plan
from pipeline.report.build import build_report
from pipeline.stages import run_stage


def report() -> None:
    """Replaces the report, and logs its pictures to W&B."""
    build_report(read_report_plan(), read_params().tracking)


if __name__ == "__main__":
    run_stage(report)
