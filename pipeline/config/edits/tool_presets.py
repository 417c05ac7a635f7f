"""Presets that give an experiment the definitions of another tool, so that its weights carry over.

``docs/presets.md`` has the source of every value, and what differs.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.errors import UserError, nearest, shown

Sections = dict[str, dict[str, Any]]
"""{"defaults": {key: value}, "backbone": {key: value}}, values as params.yaml would have them."""

ORIGINAL_WEIGHTS = "https://web.eecs.umich.edu/~justincj/models/vgg19-d01eb7cb.pth"
"""The original release of VGG-19, converted from Caffe; neural-style-pt downloads it from there."""

_FILTERS = {"conv1_1": 64, "conv2_1": 128, "conv3_1": 256, "conv4_1": 512, "conv5_1": 512}
_ONE_OVER_SQUARES = {layer: filters**-2 for layer, filters in _FILTERS.items()}


Phases = tuple[list[tuple[int, int]], int | None]
"""(size, evaluations) of each phase before the last, and the evaluations of the last or None."""


class Tool(NamedTuple):
    """A tool that a preset is made of.

    Attributes:
        title: what the command line says of it.
        backbone, defaults: the settings that differ from those of all tools.
        size: what the tool makes if nothing else is said, in pixels of ``size_edge``.
        evaluations: those at the last size.
        phases: what comes before the last size, from that size.
    """

    title: str
    backbone: dict[str, Any]
    defaults: dict[str, Any]
    size: int
    evaluations: int
    phases: Callable[[int], Phases] = lambda _: ([], None)


_ALL_BACKBONE: dict[str, Any] = {
    "architecture": "vgg19",
    "weights": ORIGINAL_WEIGHTS,
    "convention": "caffe",
    "pooling": "max",
    "rescale": False,
}
_ALL_DEFAULTS: dict[str, Any] = {
    "content_layers": {"conv4_2": 1.0},
    "content_weight": 1.0,
    "style_layers": _ONE_OVER_SQUARES,
    "style_weight": 1000.0,
    "style_mix": "losses",
    "convention": "mean",
    "variation_form": "mean",
    "variation_weight": 0.0,
    "moments_layers": dict.fromkeys(_FILTERS, 1.0),
    "moments_weight": 0.0,
    "histogram_weight": 0.0,
    "sliced_wasserstein_weight": 0.0,
    "wasserstein_layers": {layer: 1 / len(_FILTERS) for layer in _FILTERS},
    "wasserstein_weight": 0.0,
    "spectrum_weight": 0.0,
    "laplacian_weight": 0.0,
    "range_weight": 0.0,
    "init": "content",
    "noise_level": 0.1,
    "size_edge": "long",
    "style_resize": "own",
    "resampling": "bilinear",
    "antialias": True,
    "colour": "style",
    "schedule": "plain",
    "warm_start": None,
    "early_stop": None,
    "lbfgs": {"lr": 1.0, "history_size": 100, "scaling": "newest", "line_search_fn": None},
}
_JOHNSON: dict[str, Any] = {
    "content_weight": 5.0,
    "style_weight": 100.0,
    "style_mix": "gram_matrices",
    "variation_weight": 1e-3,
    "init": "noise",
    # Its noise has a standard deviation of 0.001 on the 0–255 scale; ours is uniform.
    "noise_level": 1.36e-5,
}


def _halves_above(largest: int) -> Callable[[int], Phases]:
    """Returns the phases of spst: sizes are halved while they are above ``largest`` pixels."""

    def phases(size: int) -> Phases:
        sizes = [size]
        while sizes[0] > largest:
            sizes.insert(0, sizes[0] // 2)
        evaluations = [max(600 // 3**scale, 30) for scale in range(len(sizes))]
        return list(zip(sizes, evaluations, strict=True))[:-1], evaluations[-1]

    return phases


def _crowsons_scales(size: int) -> Phases:
    """Returns the sizes that are smaller by powers of √2, down to 128; 1000 evaluations first."""
    sizes, step = {size}, 1
    while (smaller := round(size / 2 ** (step / 2))) >= min(128, size):
        sizes.add(smaller)
        step += 1
    evaluations = [1000, *[500] * (len(sizes) - 1)]
    return list(zip(sorted(sizes), evaluations, strict=True))[:-1], evaluations[-1]


TOOLS: dict[str, Tool] = {
    "gatys-notebook": Tool(
        "The authors' notebook, PytorchNeuralStyleTransfer (2017).",
        {},
        {"size_edge": "short", "resampling": "pillow-2.6", "antialias": False},
        512,
        500,
    ),
    "gatys-2017": Tool(
        "The authors' code of 2017, NeuralImageSynthesis, at two sizes.",
        {},
        {},
        1024,
        200,
        lambda size: ([(size // 2, 500)], None),
    ),
    "neural-style": Tool(
        "Johnson's neural-style (2015, Lua).",
        {"convention": "caffe-256"},
        {**_JOHNSON, "variation_form": "half_sum"},
        512,
        1000,
    ),
    "neural-style-pt": Tool(
        "ProGamerGov's neural-style-pt.",
        {},
        {**_JOHNSON, "variation_form": "absolute"},
        512,
        1000,
    ),
    "crowson": Tool(
        "Crowson's style-transfer-pytorch: its losses and scales, not its optimizer.",
        {"weights": "imagenet", "convention": "torchvision"},
        {
            "content_weight": 0.015,
            "style_weight": 0.0,
            "wasserstein_layers": {
                layer: weight / 341
                for layer, weight in zip(_FILTERS, (256, 64, 16, 4, 1), strict=True)
            },
            "wasserstein_weight": 1.0,
            "variation_form": "stencil",
            "variation_weight": 2.0,
            "range_weight": 1000.0,  # the tool keeps the values in [0, 1]
            "resampling": "bicubic",
            "lbfgs": {"lr": 1.0, "history_size": 20, "scaling": "mean", "line_search_fn": None},
        },
        512,
        500,
        _crowsons_scales,
    ),
    "spst": Tool(
        "Galerne et al. 2024, Scaling Painting Style Transfer (SPST-fast).",
        {},
        {"moments_weight": 1e4, "size_edge": "short", "resampling": "bicubic"},
        2048,
        600,
        _halves_above(1023),
    ),
}


def preset(name: str, size: int | None = None) -> Sections:
    """Returns the values of a preset by section; all presets have the same keys.

    With a ``size``, pixels of the preset's ``size_edge``, in place of the tool's own, the sizes
    before it follow by the tool's rule.

    Raises:
        UserError: there is no such preset.
    """
    if name not in TOOLS:
        known = ", ".join(TOOLS)
        raise UserError(f"no preset {name!r}{nearest(name, list(TOOLS))} The presets are {known}")
    tool = TOOLS[name]
    size = size or tool.size
    phases, evaluations = tool.phases(size)
    defaults = {
        **_ALL_DEFAULTS,
        **tool.defaults,
        "size": size,
        "sizes": [{"size": each, "evaluations": count} for each, count in phases],
        "evaluations": evaluations or tool.evaluations,
    }
    return copy.deepcopy({"defaults": defaults, "backbone": {**_ALL_BACKBONE, **tool.backbone}})


_DEFINING = {
    "defaults": ("convention", "variation_form"),
    "backbone": ("architecture", "pooling", "rescale"),
}
"""The keys that say what a weight means."""


def preset_contradictions(name: str, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each key of the user's that does not go with a preset.

    ``given`` are the user's own keys by section, as in ``preset``'s result. Other keys may be
    given: they take the place of the preset's.
    """
    values = preset(name)
    found = []
    for section, keys in _DEFINING.items():
        for key in keys:
            wanted = values[section][key]
            value = given.get(section, {}).get(key, wanted)
            if value != wanted:
                found.append(
                    f"{section}.{key} is {shown(value)}, but the weights of the preset {name} are "
                    f"for {shown(wanted)}. Leave out the key or the preset"
                )
    for mistakes in (_network_mistakes, _phase_mistakes, _layer_mistakes):
        found += mistakes(name, given)
    return found


def _network_mistakes(name: str, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    backbone, own = preset(name)["backbone"], given.get("backbone", {})
    weights, convention = ({**backbone, **own}[key] for key in ("weights", "convention"))
    if weights == "embedded":
        return [
            f"backbone.weights is {shown(weights)}, but the preset {name} is for VGG-19. Give a "
            "file of VGG-19"
        ]
    if weights == "imagenet" and convention != "torchvision":
        return [
            f"backbone.weights is {shown(weights)}, but the preset {name} has the original VGG-19 "
            f"and its convention {convention}. Give a file of the original, or set "
            "backbone.convention: torchvision and other weights of the losses"
        ]
    if convention != backbone["convention"] and "weights" not in own:
        return [
            f"backbone.convention is {shown(convention)}, but the weights of the preset {name} "
            f"are a file for {backbone['convention']}. Give backbone.weights too, or leave out "
            "the key"
        ]
    return []


def _phase_mistakes(name: str, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    defaults, own = preset(name)["defaults"], given.get("defaults", {})
    sizes, found = own.get("sizes", defaults["sizes"]), []
    if sizes and own.get("schedule") == "coarse_to_fine":
        found.append(
            f"defaults.schedule is 'coarse_to_fine', but the preset {name} has phases at "
            f"{', '.join(str(each['size']) for each in sizes)} pixels. Leave out the key, or set "
            "sizes: []"
        )
    size = own.get("size")
    if "sizes" not in own and isinstance(size, int) and sizes and size <= sizes[-1]["size"]:
        found.append(
            f"defaults.size is {size}, but the preset {name} has a phase at {sizes[-1]['size']} "
            "pixels before it. Give the size to the preset, which then makes the phases fit"
        )
    return found


def _layer_mistakes(name: str, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each list of layers: its weights 1/n are not those of the preset."""
    defaults, own = preset(name)["defaults"], given.get("defaults", {})
    found = []
    for term in ("content", "style", "moments", "wasserstein"):
        layers, key = own.get(f"{term}_layers"), f"{term}_layers"
        weights = dict(defaults[key])
        shared = set(weights.values()) == {1 / max(1, len(weights))}
        if isinstance(layers, list) and layers and defaults[f"{term}_weight"] and not shared:
            layer, weight = next(iter(weights.items()))
            found.append(
                f"defaults.{key} is the list {shown(layers)}, whose layers share a weight of 1, "
                f"but the preset {name} has other weights. Write a mapping such as "
                f"{{{layer}: {weight:.6g}}}"
            )
    return found
