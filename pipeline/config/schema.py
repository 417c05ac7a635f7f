"""Pydantic models of the sections of params.yaml: types, ranges and defaults of the keys."""

from collections.abc import Iterator
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.axes import at_least_one, labelled
from pipeline.errors import UserError
from pipeline.losses import loss_terms, make_terms
from pipeline.losses.styles import Mask, Style, Styles, StyleTerm, styles_by_role
from pipeline.losses.term import LayerWeights, LossTerm
from pipeline.networks.layers import ARCHITECTURES, check_layers
from pipeline.networks.settings import Backbone, WeightConvention
from pipeline.settings import CellName, Label, Name, Section, Source, Text, Weight, one_line


class CataloguedImage(Section):
    """A picture of the catalogue: its source, the hash of its file, its author and licence."""

    source: Source
    hash: Annotated[
        str | None, Field(pattern=r"^(sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32})$")
    ] = None
    credit: Text = "unknown"
    licence: Text = "unknown"


class Lbfgs(Section):
    """Options of ``optim.lbfgs.LBFGS``; torch's, how the history is stored, and ``scaling``."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    history_size: Annotated[int, Field(ge=1, le=1000)] = 20
    history_precision: Literal["float32", "bf16"] = "float32"
    history_on_host: bool = False
    scaling: Literal["newest", "mean"] = "mean"
    tolerance_grad: Weight = 0.0
    tolerance_change: Weight = 0.0
    line_search_fn: Literal["strong_wolfe"] | None = None
    max_eval: Annotated[int, Field(ge=1, le=1000)] = 25


class EarlyStop(Section):
    """When a run ends before it has used all its evaluations."""

    evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    gain: Annotated[float, Field(gt=0, lt=1)] = 0.001


Colour = Literal["style", "luminance", "cholesky", "pca"]
"""Where the result's colours come from: ``transfer.build`` and ``imaging.colour``."""


class CoarseSize(Section):
    """A phase at a smaller size, before the main one."""

    size: Annotated[int, Field(ge=16, le=16384)]
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)]
    network: Literal["backbone", "embedded"] = "backbone"


class Output(Section):
    """The file of the result: bits of a channel, pixels per inch, and transparency."""

    bits: Literal[8, 16] = 8
    dpi: Annotated[int, Field(ge=1, le=10_000)] | None = None
    alpha: bool = False  # that of the content image


class RunSettings(Section):
    """How the total loss of an experiment is minimised."""

    init: Name = "noise"  # one of STARTS, or a picture of the catalogue
    noise_level: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    size: Annotated[int, Field(ge=16, le=16384)] | None
    size_edge: Literal["long", "short"] = "long"
    style_resize: Literal["content", "own"] = "content"
    resampling: Literal["bicubic", "bilinear", "pillow-2.6"] = "bicubic"
    antialias: bool = True
    colour: Colour = "style"
    schedule: Literal["plain", "coarse_to_fine"] = "plain"
    coarse_evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    sizes: Annotated[list[CoarseSize], Field(max_length=20)] = []
    warm_start: Literal["embedded"] | None = None
    warm_evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)]
    early_stop: EarlyStop | None = None
    first_step: Annotated[float, Field(gt=0, le=1)] = 1e-3
    largest_step: Annotated[float, Field(gt=0, le=1)] = 0.1
    lbfgs: Lbfgs = Lbfgs()
    # Each is a picture in the report and in W&B; 500 are a film of the authors' 500 evaluations.
    intermediates: Annotated[
        list[Annotated[int, Field(ge=1, le=10_000_000)]], Field(max_length=500)
    ] = []
    timelapse: bool = False
    output: Output = Output()
    # A multiple of ``networks.frozen.stages.GRID``.
    tile: Literal["auto"] | Annotated[int, Field(ge=16, le=16384, multiple_of=16)] | None = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    deterministic: bool = True
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"


if TYPE_CHECKING:
    Settings = RunSettings  # code outside of the losses names no key of a term
else:
    _TERM_SETTINGS = [term.Settings for term in loss_terms()]

    class Settings(RunSettings, *reversed(_TERM_SETTINGS)):  # the last base's fields come first
        """What ``defaults`` may set for all experiments: settings of the run and of each term."""


STARTS = ("noise", "content", "style")
"""Values of ``init`` that name no picture of the catalogue."""


class Experiment(Settings):
    """The complete settings of one experiment, with the names of its pictures."""

    content: Name
    style: Styles

    @property
    def styles(self) -> dict[str, Style]:
        """{role: style image}: ``style``, or ``style_1``, ``style_2`` … of several."""
        return styles_by_role(self.style)

    @property
    def masks(self) -> dict[str, Mask]:
        """{role: mask}: ``ROLE_content_mask`` and ``ROLE_mask`` of the style with the role."""
        each = {
            role: mask
            for name, style in self.styles.items()
            for role, mask in (
                (f"{name}_content_mask", style.content_mask),
                (f"{name}_mask", style.style_mask),
            )
        }
        return {role: mask for role, mask in each.items() if mask is not None}

    @property
    def images(self) -> dict[str, str]:
        """{role: name of the picture in the catalogue} of all pictures that are used."""
        return {
            "content": self.content,
            **{role: style.image for role, style in self.styles.items()},
            **{role: mask.image for role, mask in self.masks.items()},
            **({} if self.init in STARTS else {"init": self.init}),
        }

    @property
    def used_images(self) -> dict[str, str]:
        """Those of ``images`` that the result depends on."""
        used = {"init", *self.image_roles, *({self.init} & set(STARTS))}
        styles = {**self.styles, **self.masks} if "style" in used else {}
        return {role: name for role, name in self.images.items() if role in {*used, *styles}}

    @property
    def uses_embedded_network(self) -> bool:
        """Whether a phase before the main one runs on the embedded network."""
        return bool(self.warm_start) or any(each.network == "embedded" for each in self.sizes)

    @property
    def image_roles(self) -> tuple[str, ...]:
        """Which of ``content`` and ``style`` the total loss depends on."""
        roles = (role for term in self._active_terms() for role in term.image_roles)
        return tuple(dict.fromkeys(roles))

    def _active_terms(self) -> list[LossTerm]:
        return [term for term in self.terms() if term.active]

    def terms(self) -> tuple[LossTerm, ...]:
        """Returns the loss terms."""
        return make_terms(self.model_dump())

    @model_validator(mode="after")
    def _check_loss_is_not_empty(self) -> Self:
        if not any(term.sufficient for term in self._active_terms()):
            raise ValueError("nothing to optimise: every weight is 0, or no layers are listed")
        return self

    @model_validator(mode="after")
    def _check_timelapse_has_frames(self) -> Self:
        if self.timelapse and not self.intermediates:
            raise ValueError(
                "the time-lapse shows the intermediates, and there are none. List evaluations "
                "under intermediates, or set timelapse to false"
            )
        return self

    @model_validator(mode="after")
    def _check_controls_fit(self) -> Self:
        if self.resampling == "pillow-2.6" and self.antialias:
            raise ValueError("resampling pillow-2.6 does not antialias. Set antialias: false")
        if self.devices > 1 and self.tile is None:
            raise ValueError(
                f"the tiles are what {self.devices} devices divide, and tile is null. Set tile to "
                "auto or pixels, or devices to 1"
            )
        if isinstance(self.tile, int) or self.devices > 1:
            for term in self.terms():
                if not term.tileable:
                    without = "devices to 1" if self.devices > 1 else "tile to null or auto"
                    raise ValueError(
                        f"{term.name} needs the positions of the whole image at once, and not tile "
                        f"by tile. Set {without}, or {term.weight_key} to 0"
                    )
        # Also those of weight 0, whose losses are recorded.
        terms = [term for term in self.terms() if "style" in term.image_roles]
        if self.masks:
            for term in terms:
                if term.name != "style":
                    raise ValueError(
                        f"masks guide Gram matrices alone. Set {term.weight_key} to 0, or remove "
                        "the masks"
                    )
        regions = any(style.content_mask for style in self.style)
        if regions and len(self.style) > 1 and getattr(self, "style_mix", "losses") != "losses":
            raise ValueError("content masks give each style a region. Set style_mix to losses")
        for term in terms:
            if not isinstance(term, StyleTerm):
                continue
            for layer in term.part_weights:
                if not term.shares(layer):
                    raise ValueError(
                        f"no style has the layer {layer} of {term.layers_key}. Add it to the "
                        "layers of a style, or remove it"
                    )
        compared = {layer for term in terms for layer in term.part_weights}
        for style in self.style:
            if unused := [layer for layer in style.layers or [] if layer not in compared]:
                raise ValueError(
                    f"the style {style.image} has the layer {unused[0]}, which no loss compares. "
                    "Add it to style_layers, or remove it"
                )
        return self


class Figure(Section):
    """Experiments that the report shows as one grid. Only the report depends on it."""

    title: Annotated[str, Field(min_length=1, max_length=200), BeforeValidator(one_line)]
    caption: Text = ""
    rows: Annotated[list[Annotated[list[CellName], Field(min_length=1)]], Field(min_length=1)]
    row_titles: list[Label] = []
    column_titles: list[Label] = []
    measure: Literal["reconstruction", "trade-off", "starts", "distances"] | None = None

    @model_validator(mode="after")
    def _check_titles_fit(self) -> Self:
        counts = {"row_titles": len(self.rows), "column_titles": max(map(len, self.rows))}
        for key, count in counts.items():
            given = len(getattr(self, key))
            if given not in (0, count):
                raise ValueError(f"{key} has {given} titles for {count}. Give each one, or none")
        return self

    @property
    def experiments(self) -> list[str]:
        """The names in the grid, each once, in reading order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


class Grid(Section):
    """An experiment with all combinations of some values of its settings, the axes.

    Each combination is a cell, an experiment of its own.
    """

    base: CellName  # a cell's is refused with a reason
    # {setting: {label of a value: value}}; lbfgs.history_size is a setting in a section.
    over: Annotated[
        dict[str, Annotated[dict[str, Any], BeforeValidator(labelled)]],
        AfterValidator(at_least_one),
    ]
    title: Annotated[str, Field(max_length=150), BeforeValidator(one_line)] = ""
    caption: Text = ""

    @property
    def size(self) -> int:
        """The number of cells."""
        return prod(map(len, self.over.values()))

    def cells(self, grid: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the name of each cell and {setting: value}; the last axis changes fastest.

        Names are made of values and not of places, so that a cell keeps its name, and its results,
        when other values are added, removed or put in another order.
        """
        for labels in product(*self.over.values()):
            values = zip(self.over.items(), labels, strict=True)
            yield "-".join([grid, *labels]), {key: axis[label] for (key, axis), label in values}


# What W&B takes.
_Project = Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")]
_Owner = Annotated[str, Field(min_length=1, max_length=128)]
_Tag = Annotated[str, Field(min_length=1, max_length=64)]


class Tracking(Section):
    """Options of Weights & Biases. They decide no result, and a change re-runs nothing.

    None leaves an option to W&B's variables, and to the default of ``records.tracking``.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: _Project | None = None
    entity: _Owner | None = None
    group: _Owner | None = None
    tags: Annotated[list[_Tag], Field(max_length=100)] | None = None
    init_timeout: Annotated[float, Field(gt=0, le=600)] | None = None
    finish_timeout: Annotated[float, Field(gt=0, le=600)] | None = None


def _check_distilled_layers(layers: dict[str, float]) -> dict[str, float]:
    try:
        check_layers(layers, ARCHITECTURES["vgg19-small"])
    except UserError as error:
        raise ValueError(str(error)) from error
    for name in ARCHITECTURES["vgg19-small"]:
        if not layers.get(name):
            raise ValueError(f"{name} has no weight above 0, so the network would not learn it")
    return layers


class Distillation(Section):
    """How the small network is trained. Only the frozen stage ``distil`` depends on it."""

    weights: Source = "imagenet"
    convention: WeightConvention = "torchvision"
    precision: Literal["bf16", "float32"] = "bf16"
    pictures: Annotated[list[Source], Field(min_length=1)]
    widths: Annotated[list[Annotated[int, Field(ge=1, le=512)]], Field(min_length=5, max_length=5)]
    layers: Annotated[LayerWeights, AfterValidator(_check_distilled_layers)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    plain_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    images: Annotated[int, Field(ge=1, le=100_000)] = 192
    optimised: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    crop_size: Annotated[int, Field(ge=32, le=1024)] = 96
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 12
    passes: Annotated[int, Field(ge=1, le=100)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3


class Checkpointing(Section):
    """How often a running experiment is saved. A change decides no result and re-runs nothing."""

    every: Annotated[float, Field(ge=0, le=86_400)] = 30.0  # seconds between two checkpoints


class RunOptions(NamedTuple):
    """The options of a run that do not decide its result, and are therefore not in its plan."""

    tracking: Tracking
    checkpoints: Checkpointing
    group: str | None  # of the run in W&B: the cell's grid, or the first figure that shows it


class ReportSettings(Section):
    """The sections of params.yaml that the report shows."""

    images: dict[Name, CataloguedImage]
    defaults: Settings
    experiments: Annotated[dict[CellName, Experiment], Field(min_length=1)]
    figures: dict[Name, Figure] = {}

    def figure_of(self, experiment: str) -> str | None:
        """Returns the name of the first figure that shows an experiment, or None."""
        shows = (name for name, figure in self.figures.items() if experiment in figure.experiments)
        return next(shows, None)


class Params(ReportSettings):
    """All of params.yaml, each experiment completed from ``defaults``.

    The cells of ``grids`` are among the experiments, and their figures among the figures.
    """

    backbone: Backbone
    # dvc.yaml names these three, so that DVC needs them, if only empty.
    figures: dict[Name, Figure]
    cast: dict[Name, Name]
    grids: dict[Name, Grid]
    distillation: Distillation | None = None
    tracking: Tracking = Tracking()
    checkpoints: Checkpointing = Checkpointing()

    def run_options(self, experiment: str) -> RunOptions:
        """Returns the options that decide no result of an experiment."""
        group = self.grid_of.get(experiment) or self.figure_of(experiment)
        return RunOptions(self.tracking, self.checkpoints, group)

    @cached_property
    def grid_of(self) -> dict[str, str]:
        """{cell: the name of its grid}."""
        return {cell: name for name, grid in self.grids.items() for cell, _ in grid.cells(name)}
