"""The figures of ``benchmarks.speed`` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

KINDS = {
    "": "a CPU that multiplies bfloat16",
    "-gpu": "a CUDA GPU",
    "-float32": "a CPU that does not multiply bfloat16",
}


def tables(results: Mapping[str, Any], kind: str) -> str:
    """Returns a page of what was measured; a part that never was is said to be missing.

    Args:
        results: by the names of the parts.
        kind: of the machine, as ``problems.KIND`` has it.
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
        f"By `python -m benchmarks.speed` on {KINDS[kind]}; see benchmarks/README.md.",
        "",
    ]
    for part, maker in makers.items():
        if part in results:
            on = results[part]["on"]
            lines += [*maker(results[part]["found"]), "", ", ".join(_hardware(on)) + ".", ""]
        else:
            lines += [f"## {part.capitalize()}", "", "Not measured.", ""]
    return "\n".join(lines)


def _hardware(on: Mapping[str, Any]) -> Iterable[str]:
    return on["date"], on["device"], f"{on['threads']} threads", f"torch {on['torch']}"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    head = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]


def _evaluation(found: list[dict[str, Any]]) -> list[str]:
    names = [name for name in found[0] if name not in ("size", "limits")]
    names = [name for name in names if not name.startswith("product")]
    limited = {name: name.removesuffix(" recorded") for name in names}
    limited = {name: limit for name, limit in limited.items() if limit in found[0]["limits"]}
    rows = [
        [
            row["size"],
            *(f"{row[name]:.4g}" for name in names),
            *(f"{row[name] / row['limits'][limit]:.2f}" for name, limit in limited.items()),
        ]
        for row in found
    ]
    columns = ["size", *(f"{name}, s" for name in names)]
    columns += [f"{name} / limit" for name in limited]
    return [
        "## One evaluation",
        "",
        "Loss and gradient by VGG-19, median. The limit is the time of as many operations in a "
        "matrix product of 2048 × 2048, on a GPU 8192 × 8192, measured in turns with it.",
        "",
        *_table(columns, rows),
    ]


def _deterministic(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        [
            {"vgg": "vgg19", "small": "vgg19-small"}[network],
            *(f"{row[name]:.4g}" for name in ("free", "deterministic")),
            f"{100 * (row['deterministic'] / row['free'] - 1):+.1f} %",
        ]
        for network, row in found.items()
    ]
    return [
        "## Deterministic mode",
        "",
        "An evaluation at 256×192 in the fastest precision, median, without it and with it.",
        "",
        *_table(["network", "without, s", "with, s", ""], rows),
    ]


def _threads(found: list[dict[str, Any]]) -> list[str]:
    counts = list(found[0]["seconds"])
    rows = [
        [
            f"{row['network']}, {row['precision']}",
            *(f"{row['seconds'][count] / row['steps']:.4g}" for count in counts),
            "yes" if row["same"] else "NO",
        ]
        for row in found
    ]
    return [
        "## Threads",
        "",
        "Seconds of an evaluation and a step of L-BFGS at 256×192 with so many threads, and "
        "whether image, gradient and losses come out the same to the bit with all of them.",
        "",
        *_table(["network, precision", *counts, "the same"], rows),
    ]


def _memory(found: list[dict[str, Any]]) -> list[str]:
    names = [name for name in found[0] if name != "size"]
    rows = [
        [
            row["size"],
            *(f"{row[name]:.0f}" for name in names),
            f"{100 * row['float32'] / row['plain float32']:.0f} %",
        ]
        for row in found
    ]
    columns = ["size", *(f"{name}, MiB" for name in names), "float32 / plain"]
    return [
        "## Memory of an evaluation",
        "",
        "What two evaluations add to the process's peak, on a GPU one.",
        "",
        *_table(columns, rows),
    ]


def _run(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{row['network']}, {row['precision']}, {row['size']}",
            f"{row['measured'] / 2**20:.0f}",
            f"{row['expected'] / 2**20:.0f}",
            f"{100 * (row['expected'] / row['measured'] - 1):+.0f} %",
        ]
        for row in found
    ]
    return [
        "## Memory of a run",
        "",
        "The peak of the whole process, with a history of 5 in L-BFGS and an offline W&B run, "
        "beside what it expects before it begins.",
        "",
        *_table(["network, precision, long edge", "measured, MiB", "expected", ""], rows),
    ]


def _overhead(found: Mapping[str, Any]) -> list[str]:
    return [
        "## Overhead",
        "",
        f"In a run of {found['evaluations']} evaluations at 512×384 in {found['precision']}, loss "
        f"and gradient take {found['evaluation_s']:.4g} s an evaluation, and everything "
        f"{found['run_s']:.4g} s, with L-BFGS (history 20), Lightning, history, intermediates, "
        f"checkpoints and an offline W&B run: {100 * found['share']:.1f} % more.",
    ]


def _startup(found: Mapping[str, float]) -> list[str]:
    rows = [[f"`{name}`", f"{spent:.2f}"] for name, spent in found.items()]
    return [
        "## Start-up",
        "",
        "A process that imports it and ends.",
        "",
        *_table(["what", "s"], rows),
    ]


def _pipeline(found: Mapping[str, float]) -> list[str]:
    rows = [[name, f"{spent:.1f}"] for name, spent in found.items()]
    return [
        "## Pipeline",
        "",
        "In a clone, with an offline W&B run for each experiment: `make repro` from nothing, which "
        "runs an experiment on each core; `dvc repro` from nothing, with nothing to do, with one "
        "experiment changed. One cell is a process from its start to its end: 200 evaluations at "
        "256 pixels, picture, provenance and W&B run written.",
        "",
        *_table(["what", "s"], rows),
    ]


def _scaling(found: list[dict[str, Any]]) -> list[str]:
    counts = list(found[0]["evaluations"])
    rows = [
        [
            row["pair"],
            row["init"],
            *(str(row["evaluations"][count] or "not reached") for count in counts),
        ]
        for row in found
    ]
    return [
        "## Scaling of L-BFGS",
        "",
        "Evaluations with `scaling: mean` until the loss is where `newest`, torch's, leads in as "
        "many as stand above; by the small network at 256 pixels, with a history of 20.",
        "",
        *_table(["content × style", "from", *counts], rows),
    ]


def _picture(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["size"],
            row["precision"],
            *(f"{row[name]:.3g}" for name in ("first_s", "run_s")),
            *(f"{1000 * row[name]:.3g}" for name in ("evaluation_s", "lbfgs_s")),
            f"{row['evaluation_s'] / row['limit_s']:.2f}",
            f"{100 * row['lbfgs_s'] * 500 / row['run_s']:.0f} %",
        ]
        for row in found
    ]
    columns = ["size", "precision", "first run, s", "next, s", "an evaluation, ms", "L-BFGS, ms"]
    columns += ["evaluation / limit", "L-BFGS / run"]
    return [
        "## A picture",
        "",
        "500 evaluations by VGG-19 from the content image, with history and progress; what of a "
        "step is the evaluation, replayed, and what L-BFGS with a history of 20, by itself. The "
        "limit is that in bf16, as above.",
        "",
        *_table(columns, rows),
    ]


def _loss(pictures: str, init: str, found: Mapping[str, Any]) -> list[str]:
    plain = {"evaluations": 500, "float32_evaluations": 500}
    plain |= {"seconds": found["plain_s"], "loss": found["target"]}
    plain |= {"saved": found["plain_saved"]} if "plain_saved" in found else {}
    rows = [
        [
            name,
            f"{setting['evaluations']} ({setting['float32_evaluations']})",
            f"{setting['seconds']:.{0 if setting['seconds'] >= 20 else 1}f}",
            f"{setting['loss']:.4g}",
            f"{setting['saved']:.4g}" if "saved" in setting else "not measured",
            f"{found['plain_s'] / setting['seconds']:.1f}",
        ]
        for name, setting in {"plain": plain, **found["settings"]}.items()
    ]
    columns = ["setting", "evaluations (float32)", "s", "loss", "as saved", "times as fast"]
    return [
        f"## Time to the loss of a plain run, from {init}, {found['size']}",
        "",
        "`plain` has a history of 100 in L-BFGS, the others of 20 where they say nothing else; all "
        "have torch's scaling but those that say so. From noise the steps of `plain` are bound in "
        "length, as theirs are. The "
        f"pictures: [{pictures}]({pictures}).",
        "",
        *_table(columns, rows),
    ]
