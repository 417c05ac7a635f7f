"""The section ``backbone`` of params.yaml: which network, and how it is prepared."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings import Section, Source

WeightConvention = Literal["torchvision", "caffe", "caffe-256"]
"""What the input of a published VGG-19 was in training; ``weight_files.load_weights`` explains."""


class Backbone(Section):
    """How the stage ``backbone`` prepares the network; params.yaml explains each key."""

    architecture: Literal["vgg19", "vgg19-small"] = "vgg19-small"
    weights: Source = "embedded"
    convention: WeightConvention = "torchvision"
    pooling: Literal["avg", "max"] = "avg"
    rescale: bool = True
    calibration: Annotated[list[Source], Field(min_length=1)]
    calibration_size: Annotated[int, Field(ge=64, le=4096)] = 512
    dead_below: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _check_weights_fit(self) -> Self:
        owner = {"imagenet": "vgg19", "embedded": "vgg19-small"}.get(self.weights)
        if owner not in (None, self.architecture):
            raise ValueError(
                f"weights {self.weights} are those of {owner}. Set architecture: {owner}, or give "
                f"{self.architecture} weights of its own"
            )
        if self.convention != "torchvision" and (owner or self.architecture == "vgg19-small"):
            raise ValueError(f"convention {self.convention} is for a file of VGG-19. Remove it")
        return self
