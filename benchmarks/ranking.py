"""Ranks presets by the measures of their pictures, with bootstrap intervals, and writes tables.

The pairs of pictures are resampled within each style (Efron & Tibshirani 1993, percentile
intervals), because the styles were chosen and the measures differ between them more than within.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Measured = Mapping[str, Mapping[str, Mapping[str, float]]]
"""{preset: {pair: {measure: value}}}; a pair is ``CONTENT × STYLE``."""
Array = NDArray[np.float64]

HIGHER_IS_CLOSER = ("structure",)
"""Measures that are largest for equal pictures; all others are distances."""
ROUNDS, SEED = 10_000, 0
"""Of the bootstrap."""
PERCENTILES = 2.5, 97.5
DIGITS = 4
"""Decimal places of what is written."""
ALL = "all"


def ranking(values: Measured) -> dict[str, Any]:
    """Returns {"all" or style: {measure: {preset: row}}}.

    A row has ``mean`` and ``rank``, the means over the pairs of the value and of the rank, and the
    95 % intervals of both. Rank 1 is the closest of all presets to the content or style image of
    the same pair. Presets with equal values share the mean of their ranks.
    """
    presets = list(values)
    pairs = list(values[presets[0]])
    measures = list(values[presets[0]][pairs[0]])
    styles = [pair.partition(" × ")[2] for pair in pairs]
    result: dict[str, Any] = {}
    for scope in (ALL, *dict.fromkeys(styles)):
        chosen = [place for place, style in enumerate(styles) if scope in (ALL, style)]
        samples = resampled([styles[place] for place in chosen])
        result[scope] = {}
        for measure in measures:
            table = np.array(
                [[values[preset][pairs[place]][measure] for place in chosen] for preset in presets]
            )
            ordered = ranks(-table if measure in HIGHER_IS_CLOSER else table)
            rows = zip(presets, table, ordered, strict=True)
            result[scope][measure] = {
                preset: {
                    "mean": _rounded(row.mean()),
                    "mean_interval": interval(row, samples),
                    "rank": _rounded(places.mean()),
                    "rank_interval": interval(places, samples),
                }
                for preset, row, places in rows
            }
    return result


def ranks(table: Array) -> Array:
    """Returns the ranks within each column, 1 for the smallest, and their mean for equal values."""
    below = (table[None] < table[:, None]).sum(axis=1)
    equal = (table[None] == table[:, None]).sum(axis=1)
    result: Array = 1 + below + (equal - 1) / 2
    return result


def resampled(styles: list[str]) -> NDArray[np.int64]:
    """Returns (ROUNDS, pairs) places of pairs, drawn with replacement within each style."""
    generator = np.random.default_rng(SEED)
    parts = []
    for style in dict.fromkeys(styles):
        places = np.flatnonzero([each == style for each in styles])
        parts.append(generator.choice(places, (ROUNDS, len(places))))
    return np.concatenate(parts, axis=1)


def interval(row: Array, samples: NDArray[np.int64]) -> list[float]:
    """Returns the bounds of the 95 % interval of the mean of a row."""
    return [_rounded(bound) for bound in np.percentile(row[samples].mean(axis=1), PERCENTILES)]


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def tables(results: Mapping[str, Any]) -> str:
    """Returns the results of all networks as Markdown."""
    lines = [
        "# Presets",
        "",
        "Written by `python -m benchmarks.presets`. [Presets](../../docs/presets.md#compared) says "
        "what was computed and what the tables do not say; "
        "[measures](../../docs/measures.md) defines the measures.",
        "",
        "A rank is that among all presets of the same content and style, 1 for the closest to the "
        "content image (`content_distance`, `structure`) or to the style image (the others). In "
        "brackets: 95 % bootstrap intervals of the mean, pairs resampled within each style. An "
        "interval of one style rests on its few pairs alone.",
    ]
    for network, result in results.items():
        hardware = result["hardware"]
        lines += [
            "",
            f"## {network}",
            "",
            f"{hardware['date']}, {hardware['device']}, torch {hardware['torch']}, "
            f"{result['precision']}; long edge {result['size']} pixels, {result['evaluations']} "
            f"evaluations. [All pictures](presets-{network}.jpg)",
        ]
        for scope, measures in result["ranking"].items():
            title = "All pairs" if scope == ALL else f"Style {scope}"
            lines += ["", f"### {title}" + _of(network, results), *_table(measures, "rank", 2)]
            lines += ["", "Mean values:", *_table(measures, "mean", 3)]
    return "\n".join(lines) + "\n"


def _of(network: str, results: Mapping[str, Any]) -> str:
    """Returns the end of a heading where several networks have the same headings."""
    return f", {network}" if len(results) > 1 else ""


def _table(measures: Mapping[str, Any], key: str, digits: int) -> list[str]:
    titles = [f"`{measure}`" for measure in measures]
    lines = ["", f"| preset | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for preset in next(iter(measures.values())):
        rows = [measures[measure][preset] for measure in measures]
        cells = [
            f"{row[key]:.{digits}f} ({row[f'{key}_interval'][0]:.{digits}f}–"
            f"{row[f'{key}_interval'][1]:.{digits}f})"
            for row in rows
        ]
        lines.append(f"| `{preset}` | {' | '.join(cells)} |")
    return lines
