"""Laplacian loss: the edges of the content image (Li et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.losses.term import WHOLE, LossTerm
from pipeline.runtime.summation import total
from pipeline.settings import Section, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.losses.term import Collect
    from pipeline.networks.frozen.statistics import Statistics


class LaplacianLoss(LossTerm):
    """Mean squared difference of the Laplacians of the image and of the content image.

    Both are first averaged over squares of ``laplacian_pooling`` pixels, and the Laplacians of R, G
    and B are added up, as in the paper. **Differs:** a mean over the positions instead of a sum.
    """

    name, order, optional, weight_key = "laplacian", 80, True, "laplacian_weight"
    image_roles = ("content",)

    class Settings(Section):
        laplacian_weight: Weight = 0.0
        laplacian_pooling: Annotated[int, Field(ge=1, le=256)] = 4

    def set_targets(self, images: Mapping[str, Tensor], collect: Collect) -> None:
        self.targets = {WHOLE: self._laplacian(images["content"])}

    def sizes(self) -> dict[str, float]:
        """Returns the loss of a flat image."""
        target = self.targets[WHOLE]
        return {WHOLE: float(total(target.square())) / max(1, target.numel())}

    def parts(self, image: Tensor, statistics: Statistics) -> dict[str, Tensor]:
        difference = self._laplacian(image) - self.targets[WHOLE]
        return {WHOLE: total(difference.square()) / max(1, difference.numel())}

    def _laplacian(self, image: Tensor) -> Tensor:
        """Returns 4 x − the four neighbours, (1, H', W'); empty where no position has all four."""
        edge = self.settings["laplacian_pooling"]
        height, width = (length // edge for length in image.shape[-2:])
        squares = image[..., : height * edge, : width * edge].sum(1)
        pooled = squares.view(1, height, edge, width, edge).mean((2, 4))
        centre = pooled[:, 1:-1, 1:-1]
        vertical = pooled[:, :-2, 1:-1] + pooled[:, 2:, 1:-1]
        return 4 * centre - vertical - pooled[:, 1:-1, :-2] - pooled[:, 1:-1, 2:]
