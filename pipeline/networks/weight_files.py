"""Files of VGG-19 weights, in any of the published layouts, as the tensors ``Features`` takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.networks.layers import ARCHITECTURES, LAYERS, Layer
from pipeline.networks.vgg import IMAGENET_MEAN, IMAGENET_STD

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
"""What the original network subtracts from blue, green and red on the 0–255 scale."""

GIVE_A_PATH = (
    "Give the path of a file you have (.pth or .safetensors) in params.yaml, at backbone.weights "
    "(`make repro WEIGHTS=/path/to/vgg19.pth` does that), or at distillation.weights for a teacher"
)


def imagenet_weights() -> Path:
    """Returns the file of torchvision's ``VGG19_Weights.IMAGENET1K_V1``, downloaded if it must be.

    The cache is torch's: ``$TORCH_HOME/hub/checkpoints``, by default ``~/.cache/torch/…``.

    Raises:
        UserError: it is not in the cache and cannot be downloaded.
    """
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"VGG-19's weights (550 MB) are not at {path} and {url} could not be downloaded "
            f"({error}). {GIVE_A_PATH}"
        ) from error
    return path


def load_weights(path: Path, convention: str) -> dict[str, Tensor]:
    """Returns the weights in a published file of VGG-19, under the paper's names.

    Args:
        path: ``.pth`` (read with ``weights_only=True``) or ``.safetensors``. The keys may be
            torchvision's ``features.0.weight`` or the authors' ``conv1_1.weight``; keys of the
            fully connected layers are ignored.
        convention: what the network was trained on. ``torchvision``: RGB in [0, 1], less the
            ImageNet mean, over its standard deviation. ``caffe``: BGR, 0–255, mean subtracted.

    Returns:
        What ``Features`` takes: float32, input channels in RGB order, and ``mean`` and ``std`` of
        that order, such that RGB in [0, 1] goes in.

    Raises:
        UserError: no such file, unreadable, or not VGG-19's sixteen convolutions.
    """
    found = _read(path)
    if "conv1_1.head" in found:
        raise UserError(
            f"{path} is a vgg19-small, not VGG-19. Set backbone.architecture: vgg19-small"
        )
    weights: dict[str, Tensor] = {}
    for layer in LAYERS.values():
        weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"] = _convolution(
            found, layer, path
        )
    if convention == "caffe":
        weights["conv1_1.weight"] = weights["conv1_1.weight"].flip(1).contiguous()
        weights["mean"] = torch.tensor(CAFFE_MEAN_BGR[::-1]) / 255
        weights["std"] = torch.full((3,), 1 / 255)
    else:
        weights["mean"], weights["std"] = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return weights


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file of weights at {path}. {GIVE_A_PATH}")
    safe = path.suffix == ".safetensors"
    try:
        if safe:
            found = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about how the file was saved
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes made to harm bring any out of the unpickler
        # Not torch's own words, which advise to switch weights_only off.
        reason = str(error) if safe else "it is cut short, or holds more than tensors"
        raise UserError(
            f"{path} cannot be read as weights: {reason}. A state_dict saved as .pth or "
            ".safetensors is needed"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}. A state_dict is needed")
    return found


def _convolution(found: Mapping[str, Tensor], layer: Layer, path: Path) -> tuple[Tensor, Tensor]:
    shapes = {
        "weight": (layer.channels_out, layer.channels_in, 3, 3),
        "bias": (layer.channels_out,),
    }
    tensors = []
    for kind, shape in shapes.items():
        keys = f"features.{layer.number}.{kind}", f"{layer.name}.{kind}"
        tensor = next((found[key] for key in keys if key in found), None)
        if tensor is None:
            raise UserError(
                f"{path} has neither {keys[0]} nor {keys[1]}: it is not VGG-19 in torchvision's or "
                f"the authors' layout. Its first keys are {', '.join(map(str, list(found)[:4]))}"
            )
        tensors.append(_checked(tensor, f"{path}: {kind} of {layer.name}", shape, "VGG-19"))
    return tensors[0], tensors[1]


def _checked(tensor: Any, what: str, shape: tuple[int, ...], network: str) -> Tensor:
    """Returns a tensor as float32, once it is one, of that shape, and finite."""
    remedy = f"Give a file of {network}"
    if not isinstance(tensor, Tensor):
        raise UserError(f"{what} is a {type(tensor).__name__}; a tensor is needed. {remedy}")
    if tuple(tensor.shape) != shape:
        raise UserError(f"{what} is {tuple(tensor.shape)}; {network} has {shape}. {remedy}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        kind = f"{tensor.dtype} as {tensor.layout}"
        raise UserError(f"{what} is {kind}; floating point as torch.strided is needed. {remedy}")
    numbers: Tensor = tensor.detach().float()
    if not numbers.isfinite().all():
        raise UserError(f"{what} holds NaN or infinity. Get it anew")
    return numbers


EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "vgg19-small.safetensors"
"""The small network that is part of this package."""


def save_small(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a small network as ``small_vgg`` has it, matrices in float16; atomically."""
    kept = {
        name: (tensor.half() if tensor.dim() > 1 else tensor).contiguous().cpu()
        for name, tensor in weights.items()
    }
    _save(path, kept, {"architecture": "vgg19-small"})


def load_small(path: Path) -> dict[str, Tensor]:
    """Returns the small network in a file, float32.

    Raises:
        UserError: no such file, unreadable, or not what ``save_small`` writes.
    """
    found = _read(path)
    layers = ARCHITECTURES["vgg19-small"]
    keys = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias", "head")}
    if missing := sorted({"mean", "std", *keys} - set(found)):
        raise UserError(
            f"{path} has no {missing[0]}: it is not a vgg19-small. For a file of VGG-19 set "
            "backbone.architecture: vgg19"
        )
    shapes: dict[str, tuple[int, ...]] = {"mean": (3,), "std": (3,)}
    channels = 3
    for name in layers:
        width = _length(found[f"{name}.bias"])
        shapes[f"{name}.weight"] = (width, channels, 3, 3)
        shapes[f"{name}.bias"] = (width,)
        shapes[f"{name}.head"] = (LAYERS[name].channels_out, width)
        channels = width
    return {
        key: _checked(found[key], f"{path}: {_what(key)}", shape, "vgg19-small")
        for key, shape in shapes.items()
    }


def _what(key: str) -> str:
    layer, _, kind = key.rpartition(".")
    return f"{kind} of {layer}" if layer else kind


def _length(tensor: Any) -> int:
    """Returns how many channels a bias has; 1 for what is none, which will not fit."""
    return tensor.numel() if isinstance(tensor, Tensor) and tensor.dim() == 1 else 1


def save_backbone(path: Path, weights: Mapping[str, Tensor], pooling: str) -> None:
    """Writes a prepared network, with its pooling, as safetensors; atomically."""
    _save(
        path, {name: tensor.contiguous() for name, tensor in weights.items()}, {"pooling": pooling}
    )


def _save(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        # Not save_file, which makes a file that nobody else may read.
        temporary.write_bytes(save(weights, metadata))


def check_backbone(path: Path) -> None:
    """Raises ``UserError`` where there is no prepared network."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage backbone first (`dvc repro`)")


def read_channels(path: Path) -> tuple[dict[str, int], str]:
    """Returns {layer: its channels}, first to last, and the pooling of a prepared network.

    Raises:
        UserError: as ``load_backbone``.
    """
    with _opened(path) as file:
        known = set(file.keys())
        kernels = {name: f"{name}.weight" for name in LAYERS if f"{name}.weight" in known}
        shapes = {name: file.get_slice(key).get_shape() for name, key in kernels.items()}
        return {name: shape[0] for name, shape in shapes.items()}, file.metadata()["pooling"]


def load_backbone(path: Path) -> tuple[dict[str, Tensor], str]:
    """Returns the weights and the pooling that ``save_backbone`` wrote.

    Raises:
        UserError: no such file, or one that was cut short.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["pooling"]  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_backbone(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Make it again: `dvc repro --force backbone`"
        ) from error
