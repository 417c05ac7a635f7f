"""The figures of ``benchmarks.speed`` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

README = "../README.md#speed"
KINDS = {
    "": "a CPU that multiplies bfloat16",
    "-gpu": "a CUDA GPU",
    "-float32": "a CPU that does not multiply bfloat16",
}


def tables(results: Mapping[str, Any], kind: str) -> str:
    """Returns a page with a table for each part; "Not measured." for a part without results.

    Args:
        results: {name of a part: its result and the hardware it was measured on}.
        kind: kind of machine, a key of ``KINDS``.
    """
    makers: dict[str, Callable[[Any], list[str]]] = {
        "evaluation": _evaluation,
        "deterministic": _deterministic,
        "threads": _threads,
        "memory": _memory,
        "run": _run,
        "overhead": _overhead,
        "startup": _startup,
        "pipeline": _pipeline,
        "scaling": _scaling,
    }
    if kind == "-gpu":
        makers |= {"picture": _picture}
    for init in ("content", "noise"):
        sizes = [int(key.rpartition("-")[2]) for key in results if key.startswith(f"loss-{init}-")]
        for size in sorted(sizes):
            makers[f"loss-{init}-{size}"] = partial(_loss, f"speed-{init}-{size}{kind}.jpg", init)
    lines = [
        "# Benchmarks",
        "",
        f"By `python -m benchmarks.speed` on {KINDS[kind]}. [What the figures say]({README}).",
        "",
    ]
    for part, maker in makers.items():
        if part in results:
            hardware = ", ".join(_hardware(results[part]["hardware"]))
            lines += [*maker(results[part]["result"]), "", f"{hardware}.", ""]
        else:
            lines += [f"## {part.capitalize()}", "", "Not measured.", ""]
    return "\n".join(lines)


def _hardware(entry: Mapping[str, Any]) -> Iterable[str]:
    threads, torch_version = f"{entry['threads']} threads", f"torch {entry['torch']}"
    return entry["date"], entry["device"], threads, torch_version


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    head = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]


def _evaluation(result: list[dict[str, Any]]) -> list[str]:
    names = [name for name in result[0] if name not in ("size", "limits")]
    names = [name for name in names if not name.startswith("product")]
    limited = {name: name.removesuffix(" recorded") for name in names}
    limited = {name: limit for name, limit in limited.items() if limit in result[0]["limits"]}
    rows = [
        [
            row["size"],
            *(f"{row[name]:.4g}" for name in names),
            *(f"{row[name] / row['limits'][limit]:.2f}" for name, limit in limited.items()),
        ]
        for row in result
    ]
    columns = ["size", *(f"{name}, s" for name in names)]
    columns += [f"{name} / limit" for name in limited]
    return [
        "## One evaluation",
        "",
        "Median time of the loss and its gradient by VGG-19. The limit is the time that the same "
        "number of operations takes in a product of two 2048 × 2048 matrices (8192 × 8192 on a "
        "GPU), measured in turns with the evaluation.",
        "",
        *_table(columns, rows),
    ]


def _deterministic(result: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        [
            {"vgg": "vgg19", "small": "vgg19-small"}[network],
            *(f"{row[name]:.4g}" for name in ("free", "deterministic")),
            f"{100 * (row['deterministic'] / row['free'] - 1):+.1f} %",
        ]
        for network, row in result.items()
    ]
    return [
        "## Deterministic mode",
        "",
        "Median time of an evaluation at 256×192 in the fastest precision.",
        "",
        *_table(["network", "off, s", "on, s", "difference"], rows),
    ]


def _threads(result: list[dict[str, Any]]) -> list[str]:
    counts = list(result[0]["seconds"])
    rows = [
        [
            f"{row['network']}, {row['precision']}",
            *(f"{row['seconds'][count] / row['steps']:.4g}" for count in counts),
            "yes" if row["same"] else "NO",
        ]
        for row in result
    ]
    return [
        "## Threads",
        "",
        "Seconds of an evaluation and a step of L-BFGS at 256×192 with 1 to 4 threads, and whether "
        "image, gradient and losses are bit-identical for all of them.",
        "",
        *_table(["network, precision", *counts, "bit-identical"], rows),
    ]


def _memory(result: list[dict[str, Any]]) -> list[str]:
    names = [name for name in result[0] if name != "size"]
    rows = [
        [
            row["size"],
            *(f"{row[name]:.0f}" for name in names),
            f"{100 * row['float32'] / row['plain float32']:.0f} %",
        ]
        for row in result
    ]
    columns = ["size", *(f"{name}, MiB" for name in names), "float32 / plain"]
    return [
        "## Memory of an evaluation",
        "",
        "Growth of the process's peak memory during two evaluations (one on a GPU).",
        "",
        *_table(columns, rows),
    ]


def _run(result: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{row['network']}, {row['precision']}, {row['size']}",
            f"{row['measured'] / 2**20:.0f}",
            f"{row['expected'] / 2**20:.0f}",
            f"{100 * (row['expected'] / row['measured'] - 1):+.0f} %",
        ]
        for row in result
    ]
    return [
        "## Memory of a run",
        "",
        "Peak memory of the whole process, with a history of 5 in L-BFGS and an offline W&B run, "
        "and the estimate that the run makes before it starts.",
        "",
        *_table(
            ["network, precision, long edge", "measured, MiB", "estimate, MiB", "difference"], rows
        ),
    ]


def _overhead(result: Mapping[str, Any]) -> list[str]:
    return [
        "## Overhead",
        "",
        f"In a run of {result['evaluations']} evaluations at 512×384 in {result['precision']}, the "
        f"loss and its gradient take {result['evaluation_s']:.4g} s an evaluation. The whole run "
        "(L-BFGS with a history of 20, Lightning, history, intermediates, checkpoints, an offline "
        f"W&B run) takes {result['run_s']:.4g} s for each: {100 * result['share']:.1f} % more.",
    ]


def _startup(result: Mapping[str, float]) -> list[str]:
    rows = [[f"`{name}`", f"{spent:.2f}"] for name, spent in result.items()]
    return [
        "## Start-up",
        "",
        "A process that imports the module and exits.",
        "",
        *_table(["module", "s"], rows),
    ]


def _pipeline(result: Mapping[str, float]) -> list[str]:
    rows = [[name, f"{spent:.1f}"] for name, spent in result.items()]
    return [
        "## Pipeline",
        "",
        "In a clone of the latest commit, with an offline W&B run for each experiment. One "
        "experiment is a process from its start to its end: 200 evaluations at 256 pixels, with "
        "picture, provenance and W&B run written.",
        "",
        *_table(["what", "s"], rows),
    ]


def _scaling(result: list[dict[str, Any]]) -> list[str]:
    counts = list(result[0]["evaluations"])
    rows = [
        [
            row["pair"],
            row["init"],
            *(str(row["evaluations"][count] or "not reached") for count in counts),
        ]
        for row in result
    ]
    return [
        "## Scaling of L-BFGS",
        "",
        "Evaluations that `scaling: mean` needs to reach the loss that `scaling: newest` (torch's) "
        "reaches in 200 and in 400, by the small network at 256 pixels with a history of 20.",
        "",
        *_table(["content × style", "from", *counts], rows),
    ]


def _picture(result: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["size"],
            row["precision"],
            *(f"{row[name]:.3g}" for name in ("first_s", "run_s")),
            *(f"{1000 * row[name]:.3g}" for name in ("evaluation_s", "lbfgs_s")),
            f"{row['evaluation_s'] / row['limit_s']:.2f}",
            f"{100 * row['lbfgs_s'] * 500 / row['run_s']:.0f} %",
        ]
        for row in result
    ]
    columns = ["size", "precision", "first run, s", "next, s", "an evaluation, ms", "L-BFGS, ms"]
    columns += ["evaluation / limit", "L-BFGS / run"]
    return [
        "## A picture",
        "",
        "500 evaluations by VGG-19 from the content image, with history and progress bar. The "
        "evaluation (a replayed CUDA graph) and L-BFGS with a history of 20 are also timed alone. "
        "The limit is the one in bf16, as above.",
        "",
        *_table(columns, rows),
    ]


def _loss(pictures: str, init: str, result: Mapping[str, Any]) -> list[str]:
    plain = {"evaluations": 500, "float32_evaluations": 500}
    plain |= {"seconds": result["plain_s"], "loss": result["target"]}
    plain |= {"saved": result["plain_saved"]} if "plain_saved" in result else {}
    rows = [
        [
            name,
            f"{setting['evaluations']} ({setting['float32_evaluations']})",
            f"{setting['seconds']:.{0 if setting['seconds'] >= 20 else 1}f}",
            f"{setting['loss']:.4g}",
            f"{setting['saved']:.4g}" if "saved" in setting else "not measured",
            f"{result['plain_s'] / setting['seconds']:.1f}",
        ]
        for name, setting in {"plain": plain, **result["settings"]}.items()
    ]
    columns = ["setting", "evaluations (float32)", "s", "loss", "as saved", "times as fast"]
    return [
        f"## Time to the loss of a plain run, from {init}, {result['size']}",
        "",
        "`plain` has a history of 100 in L-BFGS; the others have 20 unless they say otherwise. All "
        "use torch's scaling unless they say otherwise. From noise, the length of a step is "
        f"bounded for `plain` too. The pictures: [{pictures}]({pictures}).",
        "",
        *_table(columns, rows),
    ]
