"""The variable that L-BFGS moves in place of an image: the image less mid-grey, times a scale.

The first step of L-BFGS has length 1 in the L1 norm. Spread over a million pixels it is almost lost
in float32, so the scale makes it a useful distance at every size. Mid-grey is subtracted because
float32 is finest around 0.
"""

from torch import Tensor

MID_GREY = 0.5


def variable_scale(image: Tensor, first_step: float) -> float:
    """Returns the scale at which the first step moves a pixel by ``first_step`` in the mean."""
    return 1 / (first_step * image.numel())


def to_variable(image: Tensor, scale: float) -> Tensor:
    """Returns the variable for an image (RGB, 0 black and 1 white), contiguous."""
    return ((image - MID_GREY) * scale).contiguous()


def to_image(variable: Tensor, scale: float) -> Tensor:
    """Returns the image for a variable, RGB, not clamped."""
    return variable / scale + MID_GREY
