"""The command line: ``python -m pipeline COMMAND``.

Each command imports what it needs when it runs, so that ``--help`` takes no time.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.edits.tool_presets import TOOLS
from pipeline.errors import UserError, command_line, counted

EXECUTOR_HELP = "local: processes of this machine. ray: a cluster, see docs/cluster.md."
ADDRESS_HELP = "The Ray cluster: auto or HOST:PORT; by default Ray starts on this machine."
SHARED_HELP = "Folder for checkpoints that all nodes see by this path."
JOBS_HELP = "Experiments at a time; by default as cores and memory allow."
SIZE_HELP = "Length of the edge in pixels in place of the tool's; sizes before it follow."
app = typer.Typer(
    help="Neural style transfer (Gatys et al. 2016) as reproducible experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
presets = typer.Typer(
    help="Write a group of values into params.yaml. No other line of it changes.",
    no_args_is_help=True,
)
app.add_typer(presets, name="preset")


@app.command()
def check() -> None:
    """Check params.yaml and name its mistakes."""
    from pipeline.config.params import PARAMS_FILE, read_params

    print(f"{PARAMS_FILE}: {counted(len(read_params().experiments), 'experiment')}")


Content = Annotated[str, typer.Argument(help="The picture whose content is kept: a path or URL.")]
Styles = Annotated[list[str], typer.Argument(help="One or several pictures in whose style.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="By default CONTENT-STYLE.png here.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting as in params.yaml."),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="A further picture, for a mask or as init."),
]
Quality = Annotated[
    str, typer.Option(metavar="final", help="1024 pixels; VGG-19, if its weights are here.")
]
Preset = Annotated[
    str, typer.Option(metavar="TOOL", help=f"Another tool's definitions: {', '.join(TOOLS)}.")
]
SaveAs = Annotated[
    str, typer.Option(metavar="NAME", help="Add it to params.yaml here, as an experiment.")
]
Size = Annotated[
    int | None,
    typer.Option(min=16, help="Long edge in pixels: 4000 or 8000 for prints (docs/scaling.md)."),
]
Preview = Annotated[bool, typer.Option("--preview", help="256 pixels, in about half a minute.")]


@app.command()
def transfer(
    content: Content,
    styles: Styles,
    out: Out = None,
    settings: Assignments = None,
    picture: Pictures = None,
    size: Size = None,
    preview: Preview = False,
    quality: Quality = "",
    preset: Preset = "",
    save_as: SaveAs = "",
) -> None:
    """Compute one picture: the content of CONTENT in the style of STYLES.

    \b
    Examples:
      style-transfer cat.jpg painting.jpg --preview
      style-transfer cat.jpg painting.jpg -o cat.png --size 4000 --set content_weight=0.1
      style-transfer cat.jpg night.jpg day.jpg --set colour=luminance --quality final
    """
    from pipeline.experiments.request import Request, default_out
    from pipeline.experiments.single import transfer

    if quality not in ("", "final") or (quality and preview):
        raise UserError(
            f"--quality is {quality!r}, but it can only be final, and not with --preview. Leave "
            "one out"
        )
    if size is not None and (preview or quality):
        option = "--preview" if preview else f"--quality {quality}"
        raise UserError(f"{option} and --size {size} ask for different sizes. Leave one out")
    request = Request(
        content,
        styles,
        settings or [],
        picture or [],
        "preview" if preview else quality,
        preset,
        size,
    )
    transfer(request, out or default_out(request), save_as)


@app.command()
def run(
    jobs: Annotated[str, typer.Option(help=JOBS_HELP)] = "",
    executor: Annotated[str, typer.Option(metavar="local|ray", help=EXECUTOR_HELP)] = "local",
    address: Annotated[str, typer.Option(help=ADDRESS_HELP)] = "",
    shared: Annotated[Path | None, typer.Option(help=SHARED_HELP)] = None,
) -> None:
    """Compute all experiments that are out of date, and the report."""
    from pipeline.experiments.executors.ray_cluster import ClusterOptions
    from pipeline.experiments.runner import run

    if jobs and not (jobs.isdecimal() and int(jobs)):
        raise UserError(
            f"jobs is {jobs!r}, but it must be a whole number from 1: how many experiments at a "
            "time. Leave it out for as many as cores and memory allow"
        )
    if executor not in ("local", "ray"):
        raise UserError(f"--executor is {executor!r}, but it must be local or ray")
    if executor == "local" and (address or shared):
        option = f"--address {address}" if address else f"--shared {shared}"
        raise UserError(f"{option} is for a cluster. Give --executor ray with it, or leave it out")
    if address and jobs:
        raise UserError(
            f"--jobs {jobs} is for this machine, but at {address} the CPUs of the cluster decide. "
            "Leave --jobs or --address out"
        )
    cluster = ClusterOptions(address, shared) if executor == "ray" else None
    run(int(jobs) if jobs else None, cluster)


GridBase = Annotated[str, typer.Option(metavar="EXPERIMENT", help="Where its settings come from.")]
GridAxes = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUES",
        help="A setting and its values: content_weight=0.1,1,3 or seed=0..4. Give it once an axis.",
    ),
]


@app.command()
def grid(
    name: Annotated[
        str, typer.Argument(help="The grid's name, with which those of its cells begin.")
    ],
    base: GridBase,
    over: GridAxes,
) -> None:
    """Add a grid to params.yaml: an experiment with all combinations of some values."""
    from pipeline.config.edits.additions import add_grid
    from pipeline.config.params import PARAMS_FILE

    cells = add_grid(name, base, over)
    print(f"{PARAMS_FILE}: {counted(len(cells), 'cell')}, {cells[0]} to {cells[-1]}")
    print("To compute them: python -m pipeline run")


@app.command()
def sync(
    folder: Annotated[Path, typer.Argument(help="The folder wandb/, or that of one run in it.")] = (
        Path("wandb")
    ),
) -> None:
    """Upload the offline runs of W&B, also from a folder that was moved."""
    from pipeline.records.offline_runs import upload

    upload(folder)


@app.command()
def dashboard() -> None:
    """Save a W&B workspace with the curves, the pictures and the measures of all experiments."""
    from pipeline.config.params import read_params
    from pipeline.config.plan import read_report_plan
    from pipeline.report.dashboard import save_dashboard

    print(save_dashboard(read_report_plan(), read_params().tracking))


@presets.command()
def paper() -> None:
    """The pictures, the network and the size of the paper."""
    from pipeline.config.edits.presets import PAPER, write_values

    write_values(PAPER)


@presets.command()
def weights(path: Annotated[Path, typer.Argument(help="VGG-19 as .pth or .safetensors.")]) -> None:
    """VGG-19 with the weights in a file, as the network."""
    from pipeline.config.edits.presets import vgg19_from, write_values

    write_values(vgg19_from(path))


def _add_tool(name: str, title: str) -> None:
    @presets.command(name, help=title)
    def write(size: Annotated[int | None, typer.Option(min=16, help=SIZE_HELP)] = None) -> None:
        from pipeline.config.edits import tool_presets
        from pipeline.config.edits.presets import values_of, write_values

        write_values(values_of(tool_presets.preset(name, size)))


for _name, _tool in TOOLS.items():
    _add_tool(_name, _tool.title)


def style_transfer() -> None:
    """The console script ``style-transfer CONTENT STYLE``."""
    single = typer.Typer(pretty_exceptions_enable=False)
    single.command()(transfer)
    command_line(single)


if __name__ == "__main__":
    command_line(app)
