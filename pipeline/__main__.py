"""The command line: ``python -m pipeline COMMAND``.

Each command imports what it needs when it runs, so that ``--help`` takes no time.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError, command_line

JOBS_HELP = "Experiments at a time; by default as cores and memory allow."
app = typer.Typer(
    help="Neural style transfer (Gatys et al. 2016) as reproducible experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
preset = typer.Typer(
    help="Write a group of values into params.yaml. No other line of it changes.",
    no_args_is_help=True,
)
app.add_typer(preset, name="preset")


@app.command()
def check() -> None:
    """Check params.yaml and name its mistakes."""
    from pipeline.config.params import PARAMS_FILE, read_params

    print(f"{PARAMS_FILE}: {len(read_params().experiments)} experiments")


@app.command()
def run(jobs: Annotated[str, typer.Option(help=JOBS_HELP)] = "") -> None:
    """Compute all experiments that are out of date, and the report."""
    from pipeline.experiments.runner import run

    if jobs and not (jobs.isdecimal() and int(jobs)):
        raise UserError(
            f"jobs is {jobs!r}, but it must be a whole number from 1: how many experiments at a "
            "time. Leave it out for as many as cores and memory allow"
        )
    run(int(jobs) if jobs else None)


@preset.command()
def paper() -> None:
    """The pictures, the network and the size of the paper."""
    from pipeline.config.presets import PAPER, write_values

    write_values(PAPER)


@preset.command()
def weights(path: Annotated[Path, typer.Argument(help="VGG-19 as .pth or .safetensors.")]) -> None:
    """VGG-19 with the weights in a file, as the network."""
    from pipeline.config.presets import vgg19_from, write_values

    write_values(vgg19_from(path))


if __name__ == "__main__":
    command_line(app)
