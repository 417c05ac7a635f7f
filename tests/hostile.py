"""What makes bad input: pictures, weights and YAML that somebody will hand to the pipeline."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors
from torch import Tensor

COLOUR = (200, 100, 50)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Returns a picture in one of Pillow's formats."""
    stored = io.BytesIO()
    picture.save(stored, kind, **options)
    return stored.getvalue()


def plain(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """Returns a picture of one colour, of (width, height)."""
    return encoded(Image.new("RGB", size, COLOUR), kind, **options)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def noise(kind: str) -> bytes:
    """Returns a picture that compresses badly, so that two thirds of it lack pixels."""
    return encoded(Image.effect_noise((64, 48), 90).convert("RGB"), kind)


def animated(kind: str) -> bytes:
    frames = [Image.new("L", (8, 8), level) for level in (0, 128, 255)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """Returns 20000x20000 pixels in 49 KB."""
    return encoded(Image.new("1", (20000, 20000)), "PNG")


def of_mode(mode: str, colour: object, kind: str = "TIFF") -> bytes:
    """Returns 8x8 pixels in one of Pillow's modes."""
    return encoded(Image.new(mode, (8, 8), colour), kind)  # type: ignore[arg-type]


def sixteen_bits(level: int) -> bytes:
    """Returns 6x4 pixels of a grey level of 256, in 16 bits."""
    return encoded(Image.fromarray(np.full((4, 6), 257 * level, dtype=np.uint16)), "PNG")


def turned() -> bytes:
    """Returns a picture whose EXIF says that it stands upright as 30x40, white at the top."""
    upright = Image.new("RGB", (30, 40), "black")
    upright.paste("white", (0, 0, 30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def clear_palette() -> bytes:
    """Returns a palette picture, half of it transparent in its tRNS chunk."""
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([10, 20, 30, *COLOUR])
    picture.paste(0, (0, 0, 4, 8))
    return encoded(picture, "PNG", transparency=bytes([0, 255]))


def first_layer(**changes: Tensor) -> dict[str, Tensor]:
    """Returns conv1_1 of VGG-19 under torchvision's keys, all that is looked at before it fails."""
    keyed = {
        "features.0.weight": torch.zeros(64, 3, 3, 3),
        "features.0.bias": torch.zeros(64),
    }
    return keyed | {f"features.0.{kind}": tensor for kind, tensor in changes.items()}


def pickled(content: object) -> bytes:
    stored = io.BytesIO()
    torch.save(content, stored)
    return stored.getvalue()


class Opener:
    """Makes a file named ``opened`` when it is unpickled by a loader that runs code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("opened"),)


def of_another_network() -> bytes:
    """Returns the first keys of torchvision's ResNet-18."""
    return safetensors(
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.bias": torch.zeros(64)},
    )


def billion_laughs() -> str:
    """Returns YAML of 400 characters that stands for ten to the ninth words."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for level in range(1, 9):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


class Case(NamedTuple):
    """One row: a change to a workspace that works, a command, and what it must answer.

    Attributes:
        name: of the test.
        change: takes the parameters, and may write files; its result is not looked at.
        command: a stage and its arguments, or ``check``, which checks params.yaml.
        message: all of it, with "…" for what differs from run to run; empty for legal input.
        size: (width, height) of the legal picture.
        pixel: its colour at the top left.
    """

    name: str
    change: Callable[[dict[str, Any]], object]
    command: str
    message: str
    size: tuple[int, int] = (0, 0)
    pixel: tuple[int, int, int] = (0, 0, 0)


def bad_picture(name: str, file: str, content: bytes | str, message: str) -> Case:
    def change(params: dict[str, Any]) -> None:
        write("own/" + file, content)
        params["images"]["subject"]["source"] = f"own/{file}"

    return Case(name, change, "fetch new", f"image 'subject' from own/{file}: own/{file} {message}")


def legal_picture(
    name: str, file: str, content: bytes, size: tuple[int, int], pixel: tuple[int, int, int]
) -> Case:
    return bad_picture(name, file, content, "")._replace(message="", size=size, pixel=pixel)


def bad_source(name: str, address: str, message: str) -> Case:
    def change(params: dict[str, Any]) -> None:
        params["images"]["subject"]["source"] = address

    return Case(name, change, "fetch new", f"image 'subject' from {address}: {address}{message}")


def too_small(name: str, size: tuple[int, int], message: str) -> Case:
    """A picture that is read, and too small for the network that a run takes it to."""

    def change(params: dict[str, Any]) -> None:
        write("data/images/other.png", plain("PNG", size))
        params["backbone"] |= {"architecture": "vgg19-small", "weights": "embedded"}
        params["defaults"]["style_layers"] = ["conv5_1"]
        params["experiments"]["new"]["size"] = None

    return Case(
        name, change, "stylize new", f"{message}. Use a larger picture or size, or shallower layers"
    )


def bad_weights(
    name: str, file: str, content: bytes | str, message: str, network: str = "vgg19"
) -> Case:
    def change(params: dict[str, Any]) -> None:
        write("own/" + file, content)
        params["backbone"] |= {"architecture": network, "weights": f"own/{file}"}

    return Case(name, change, "backbone", f"own/{file}{message}")


def bad_params(name: str, change: Callable[[dict[str, Any]], object], message: str) -> Case:
    return Case(name, change, "check", f"params.yaml{message}")


def bad_text(name: str, text: str, message: str) -> Case:
    """A params.yaml that is written like this, whatever it says."""
    return Case(name, lambda params: params.update(written=text), "check", f"params.yaml{message}")


def write(name: str, content: bytes | str) -> None:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
