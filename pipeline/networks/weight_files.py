"""Reads VGG-19 from every published layout; reads and writes the project's own weight files."""

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
from pipeline.networks.layers import ARCHITECTURES, LAYERS
from pipeline.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, layers_of

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "vgg19-small.safetensors"
"""The small network that is part of this package."""

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
"""What the original network subtracts from blue, green and red, on the 0–255 scale."""

CAFFE_WHITE = {"caffe": 255, "caffe-256": 256}
"""Convention → what stands for white in the input of the original network."""

GIVE_A_PATH = (
    "Give the path of a file you have (.pth or .safetensors) in params.yaml, at backbone.weights "
    "(`make repro WEIGHTS=/path/to/vgg19.pth` does that), or at distillation.weights for a teacher"
)


def cached_imagenet_weights() -> Path | None:
    """Returns torchvision's file of VGG-19 in torch's cache, or None if it is not there."""
    path = _imagenet_source()[1]
    return path if path.is_file() else None


def imagenet_weights() -> Path:
    """Returns torchvision's ``VGG19_Weights.IMAGENET1K_V1`` file, from torch's cache or downloaded.

    Raises:
        UserError: it is not in the cache and cannot be downloaded.
    """
    url, path = _imagenet_source()
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


def _imagenet_source() -> tuple[str, Path]:
    """Returns the address of torchvision's VGG-19, and its file in torch's cache."""
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def load_weights(path: Path, convention: str) -> dict[str, Tensor]:
    """Loads VGG-19's convolutions from a published file, as ``Features`` takes them: float32, RGB.

    Args:
        path: ``.pth`` or ``.safetensors``. The keys may be torchvision's ``features.0.weight`` or
            the authors' ``conv1_1.weight``; those of fully connected layers are ignored.
        convention: the input that the network was trained on. ``torchvision``: RGB in [0, 1], less
            the ImageNet mean, over its standard deviation. ``caffe``: BGR, 0–255, mean subtracted.
            ``caffe-256``: the same with white at 256, as Johnson's neural-style feeds it.

    Raises:
        UserError: no such file, unreadable, or not VGG-19's sixteen convolutions.
    """
    tensors = _read(path)
    if "conv1_1.head" in tensors:
        raise UserError(
            f"{path} is a vgg19-small, not VGG-19. Set backbone.architecture: vgg19-small, or "
            "give a file of VGG-19"
        )
    weights: dict[str, Tensor] = {}
    for layer in LAYERS.values():
        kernels = (layer.channels_out, layer.channels_in, 3, 3)
        for kind, shape in (("weight", kernels), ("bias", kernels[:1])):
            keys = f"features.{layer.number}.{kind}", f"{layer.name}.{kind}"
            tensor = next((tensors[key] for key in keys if key in tensors), None)
            if tensor is None:
                raise UserError(
                    f"{path} has neither {keys[0]} nor {keys[1]}: it is not VGG-19 in "
                    "torchvision's or the authors' layout. Its first keys are "
                    f"{', '.join(map(str, list(tensors)[:4]))}"
                )
            weights[keys[1]] = _as_float32(tensor, keys[1], shape, path, "VGG-19")
    if convention in CAFFE_WHITE:
        white = CAFFE_WHITE[convention]
        weights["conv1_1.weight"] = weights["conv1_1.weight"].flip(1).contiguous()
        weights["mean"] = torch.tensor(CAFFE_MEAN_BGR[::-1]) / white
        weights["std"] = torch.full((3,), 1 / white)
    else:
        weights["mean"], weights["std"] = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return weights


def load_small(path: Path) -> dict[str, Tensor]:
    """Loads a small network that ``save_small`` wrote, as float32; raises as ``load_weights``."""
    tensors, layers = _read(path), ARCHITECTURES["vgg19-small"]
    shapes: dict[str, tuple[int, ...]] = {"mean": (3,), "std": (3,)}
    channels = 3
    for name in layers:
        bias = tensors.get(f"{name}.bias")  # its length is the width, unless the file is wrong
        width = len(bias) if isinstance(bias, Tensor) and bias.dim() == 1 else 1
        shapes[f"{name}.weight"] = (width, channels, 3, 3)
        shapes[f"{name}.bias"] = (width,)
        shapes[f"{name}.head"] = (LAYERS[name].channels_out, width)
        channels = width
    if missing := sorted(set(shapes) - set(tensors)):
        raise UserError(
            f"{path} has no {missing[0]}: it is not a vgg19-small. For a file of VGG-19 set "
            "backbone.architecture: vgg19"
        )
    return {
        name: _as_float32(tensors[name], name, shape, path, "vgg19-small")
        for name, shape in shapes.items()
    }


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file of weights at {path}. {GIVE_A_PATH}")
    safe = path.suffix == ".safetensors"
    try:
        if safe:
            tensors = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about how the file was saved
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything when the bytes are malicious
        # torch's own message advises the user to switch weights_only off.
        reason = str(error) if safe else "it is cut short, or holds more than tensors"
        raise UserError(
            f"{path} cannot be read as weights: {reason}. A state_dict saved as .pth or "
            ".safetensors is needed"
        ) from error
    if not isinstance(tensors, Mapping):
        raise UserError(f"{path} holds a {type(tensors).__name__}. A state_dict is needed")
    return tensors


def _as_float32(tensor: Any, name: str, shape: tuple[int, ...], path: Path, network: str) -> Tensor:
    """Returns what a file holds under a name, if it is a finite tensor of the given shape."""
    what = f"{path}: {' of '.join(reversed(name.split('.')))}"  # "weight of conv1_1"
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


def save_small(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a small network, as ``small_vgg`` takes it, atomically; matrices in float16."""
    halves = {name: each.half() if each.dim() > 1 else each for name, each in weights.items()}
    save_weights(path, halves, architecture="vgg19-small")


def save_weights(path: Path, weights: Mapping[str, Tensor], **metadata: str) -> None:
    """Writes a network and metadata, such as the pooling of a prepared one, atomically."""
    contiguous = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        # safetensors' save_file would make a file that only its owner may read.
        temporary.write_bytes(save(contiguous, metadata))


def check_backbone(path: Path) -> None:
    """Raises ``UserError`` if there is no prepared network at ``path``."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage backbone first (`dvc repro`)")


def read_channels(path: Path) -> tuple[dict[str, int], str]:
    """Returns {layer: channels}, first to last, and the pooling; raises as ``load_backbone``."""
    with _open_backbone(path) as (file, pooling):
        layers = layers_of(file.keys())
        return {name: file.get_slice(f"{name}.weight").get_shape()[0] for name in layers}, pooling


def load_backbone(path: Path) -> tuple[dict[str, Tensor], str]:
    """Loads weights and pooling, as saved; raises ``UserError`` for a missing or damaged file."""
    with _open_backbone(path) as (file, pooling):
        return {name: file.get_tensor(name) for name in file.keys()}, pooling  # noqa: SIM118


@contextmanager
def _open_backbone(path: Path) -> Iterator[tuple[Any, str]]:
    check_backbone(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file, file.metadata()["pooling"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Make it again: `dvc repro --force backbone`"
        ) from error
