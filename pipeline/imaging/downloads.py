"""Finds the file behind a source: downloads a URL, or looks up a local path or a package."""

import hashlib
import importlib.util
import os
import re
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from pipeline import __version__
from pipeline.errors import UserError

USER_AGENT = f"style-transfer-pipeline/{__version__} (reproduction of Gatys et al. 2016)"
TIMEOUT_S = 30.0  # how long a server may send nothing
RETRIES = 2


class Limit(NamedTuple):
    """The most bytes that a download may have, and the most seconds that all its attempts take."""

    size: int
    duration: float


PICTURE = Limit(256 * 2**20, 600)
WEIGHTS = Limit(2**30, 3600)  # VGG-19 with its fully connected layers has 548 MiB

_PACKAGE = "package:"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_CHANGED = (
    "has another content than {known_hash}: {error} If the new content is what you want, write its "
    "hash into params.yaml"
)
_DOWNLOAD_ERRORS: dict[type[Exception], str] = {
    requests.HTTPError: "answered {error.response.status_code}. Correct the source, or try later",
    requests.Timeout: "was silent for {timeout:g} s. Try later, or give a local path as source",
    requests.exceptions.InvalidURL: "is no address: {error}. Correct the source",
    requests.exceptions.InvalidSchema: (
        "leads to an address that is neither https:// nor http:// ({error}). Correct the source"
    ),
    OSError: (
        "could not be downloaded ({error}). Check the connection, or give a local path as source"
    ),
    ValueError: _CHANGED,  # pooch raises it
}
"""{exception of a download: message after the source}; the first that fits counts."""


def locate(source: str, known_hash: str | None, downloads: Path, limit: Limit = PICTURE) -> Path:
    """Returns the path of the file at a source, after its download if it is a URL.

    Args:
        source: ``https://…`` or ``http://…``, ``package:NAME/PATH`` for a file inside an installed
            Python package, or a path: absolute, from ``~``, or relative to the repository.
        known_hash: ``sha256:…`` or ``md5:…`` of the file, or None for no check.
        downloads: folder that keeps downloaded files, so that each is downloaded once.

    Raises:
        UserError: there is no such file, its download exceeds the limit, or its hash is another.
    """
    if scheme := _SCHEME.match(source):
        if scheme[1].lower() not in ("http", "https"):
            raise UserError(
                f"{source}: {scheme[1]}:// is not read, only https:// and http://. For a file on "
                "this machine give its path"
            )
        return _download(source, known_hash, downloads, limit)
    try:
        path = _in_package(source) if source.startswith(_PACKAGE) else _local(source)
        if path.is_file():
            _check_hash(path, source, known_hash)
            return path
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the home of no user
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"{source} cannot be read: {reason}. Correct the source") from error
    if path.is_dir():
        raise UserError(f"{source}: {path} is a folder. Name a file in it")
    raise UserError(f"{source}: there is no file {path}. Correct the source")


def _in_package(source: str) -> Path:
    package, _, inner = source.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{source}: no package {package!r} is installed. Install it, or correct it")
    root = Path(spec.submodule_search_locations[0])
    path = (root / inner).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"{source} points outside the package {package!r}. Give it as a plain path")
    return path


def _local(source: str) -> Path:
    path = Path(source).expanduser()
    # Queued DVC experiments run in a copy of the repository that lacks what git does not track.
    if not path.is_absolute() and not path.exists():
        path = Path(os.environ.get("DVC_ROOT", ".")) / path
    return path


def _check_hash(path: Path, source: str, known_hash: str | None) -> None:
    if known_hash is None:
        return
    algorithm, _, expected = known_hash.partition(":")
    actual = pooch.file_hash(path, algorithm)
    if actual != expected.lower():
        error = f"it is {algorithm}:{actual}."
        raise UserError(f"{source} {_CHANGED.format(known_hash=known_hash, error=error)}")


def _download(source: str, known_hash: str | None, downloads: Path, limit: Limit) -> Path:
    try:
        suffix = Path(urlsplit(source).path).suffix
    except ValueError as error:
        raise UserError(f"{source} is no address: {error}. Correct the source") from error
    name = hashlib.sha256(source.encode()).hexdigest()[:16] + suffix
    store = pooch.create(
        downloads, "", registry={name: known_hash}, urls={name: source}, retry_if_failed=RETRIES
    )
    transfer = partial(_transfer_in_time, limit=limit, deadline=time.monotonic() + limit.duration)
    try:
        return Path(store.fetch(name, downloader=transfer))
    except (OSError, ValueError) as error:  # requests' are OSErrors
        message = next(text for kind, text in _DOWNLOAD_ERRORS.items() if isinstance(error, kind))
        values = {"known_hash": known_hash, "timeout": TIMEOUT_S, "error": error}
        raise UserError(f"{source} {message.format(**values)}") from error


def _transfer_in_time(
    address: str, target: str, _: pooch.Pooch, limit: Limit, deadline: float
) -> None:
    """Downloads an address into a file; raises ``UserError`` at the deadline (``time.monotonic``).

    A thread downloads, because no time-out of a socket ends a server that sends a byte now and
    then, or a slow look-up of its name.
    """
    failures: list[BaseException] = []

    def transfer() -> None:
        try:
            _transfer(address, target, limit.size, deadline)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            failures.append(error)

    thread = Thread(target=transfer, daemon=True)  # it may outlive the deadline, not the process
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive() or time.monotonic() > deadline:
        raise UserError(
            f"{address} took more than {limit.duration:g} s, the most that a download may take. "
            "Download it yourself, and give its path as source"
        )
    if failures:
        raise failures[0]


def _transfer(address: str, target: str, largest: int, deadline: float) -> None:
    """Downloads at most ``largest`` bytes into a file, and ends soon after the deadline."""
    headers = {"User-Agent": USER_AGENT}
    with (
        requests.get(address, stream=True, timeout=TIMEOUT_S, headers=headers) as answer,
        Path(target).open("wb") as file,
        tqdm(unit="B", unit_scale=True, disable=None) as progress,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_content(chunk_size=64 * 2**10):
            progress.update(len(chunk))
            if file.tell() + len(chunk) > largest:
                raise UserError(
                    f"{address} sends more than {largest / 2**20:g} MiB, the most that is taken. "
                    "Download it yourself, and give its path as source"
                )
            file.write(chunk)
            if time.monotonic() > deadline:
                return
