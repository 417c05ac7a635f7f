"""Reads and resizes masks: pictures that mark a region of another picture."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.errors import UserError
from pipeline.imaging.colour import luminance
from pipeline.imaging.picture_files import read_picture
from pipeline.imaging.tensors import to_tensor


def read_mask(path: Path, label: str | None) -> Tensor:
    """Returns the mask in a picture, (1, 1, H, W) float32: 1 inside, 0 outside.

    It is the luminance of the picture; with a ``label`` (``#rrggbb``), 1 where the picture has
    exactly this colour and 0 elsewhere.

    Raises:
        UserError: everything is outside; the message names the colours that the picture has.
    """
    picture = read_picture(path)
    if label is None:
        mask = luminance(to_tensor(picture))
        if not mask.any():
            raise UserError(f"{path} is black, so no pixel is inside. Paint the region white")
        return mask
    wanted = np.frombuffer(bytes.fromhex(label[1:]), np.uint8)
    pixels = np.array(picture)
    inside = (pixels == wanted).all(-1)
    if not inside.any():
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        most = colours[counts.argsort()[::-1][:8]]
        raise UserError(
            f"{path} has no pixel of the label {label}. Give a colour that it has; its most "
            f"frequent are {', '.join('#' + bytes(colour).hex() for colour in most)}"
        )
    return torch.from_numpy(inside).float()[None, None]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a mask at ``size`` (H, W): bilinear, with averages where it becomes smaller."""
    if tuple(mask.shape[-2:]) == size:
        return mask
    resized = interpolate(mask, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def is_empty_after(mask: Tensor, poolings: int) -> bool:
    """Returns whether nothing is inside where a network has averaged that many times."""
    edge = 2**poolings
    return min(mask.shape[-2:]) >= edge and not avg_pool2d(mask, edge).any()
