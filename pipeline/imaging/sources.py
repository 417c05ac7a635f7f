"""Where a picture comes from: an address, a file inside an installed package, a local path.

The bytes behind a source are never trusted: whoever pins a hash has it checked here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from pipeline import __version__
from pipeline.errors import UserError

USER_AGENT = f"style-transfer-pipeline/{__version__} (reproduction of Gatys et al. 2016)"
TIMEOUT_S = 30.0
"""How long a server may be silent."""
RETRIES = 2


class Limit(NamedTuple):
    """What one download may bring, in bytes, and take, in seconds with all its attempts."""

    size: int
    duration: float


PICTURE = Limit(256 * 2**20, 600)
WEIGHTS = Limit(2**30, 3600)
"""VGG-19 with its fully connected layers has 548 MiB."""

_CHUNK = 64 * 2**10
_PACKAGE = "package:"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def locate(source: str, known_hash: str | None, downloads: Path, limit: Limit = PICTURE) -> Path:
    """Returns the path of the file that a source stands for, downloaded first where it must be.

    Args:
        source: ``https://…`` or ``http://…``, ``package:NAME/PATH`` for a file inside an installed
            Python package, or a path: absolute, from ``~``, or relative to the repository.
        known_hash: ``sha256:…`` or ``md5:…`` of the file, or None for no check.
        downloads: folder that keeps what was downloaded, so that nothing is fetched twice.
        limit: of a download.

    Raises:
        UserError: nothing there, no answer in time, too much, or another hash than the known one.
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
        found = path.is_file()
        if found:
            _check_hash(path, source, known_hash)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{source} cannot be read: {reason}. Correct the source") from error
    if not found and path.is_dir():
        raise UserError(f"{source}: {path} is a folder. Name a file in it")
    if not found:
        raise UserError(f"{source}: there is no file {path}. Correct the source")
    return path


def forget_download(path: Path, downloads: Path) -> None:
    """Removes a downloaded file that turned out to be no picture; leaves any other file alone."""
    if path.resolve().parent == downloads.resolve():
        path.unlink(missing_ok=True)


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
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise UserError(f"{source}: {error} Correct the source") from error
    # Queued DVC experiments run in a copy of the repository that lacks what git does not track.
    if not path.is_absolute() and not path.exists():
        path = Path(os.environ.get("DVC_ROOT", ".")) / path
    return path


def _check_hash(path: Path, source: str, known_hash: str | None) -> None:
    if known_hash is None:
        return
    algorithm, _, expected = known_hash.partition(":")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != expected.lower():
        raise UserError(
            f"{source} has another content than {known_hash}: it is {algorithm}:{actual}. "
            "If the new content is what you want, write its hash into params.yaml"
        )


def _download(source: str, known_hash: str | None, downloads: Path, limit: Limit) -> Path:
    name = hashlib.sha256(source.encode()).hexdigest()[:16] + _suffix(source)
    store = pooch.create(
        path=downloads,
        base_url="",
        registry={name: known_hash},
        urls={name: source},
        retry_if_failed=RETRIES,
    )

    def transfer(url: str, target: str, _: Any) -> None:
        _transfer(url, Path(target), limit.size)

    try:
        with _at_most(limit.duration, source):
            return Path(store.fetch(name, downloader=transfer))
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise UserError(f"{source} answered {status}. Correct the source, or try later") from error
    except requests.Timeout as error:
        raise UserError(
            f"{source} was silent for {TIMEOUT_S:g} s. Try later, or give a local path as source"
        ) from error
    except requests.exceptions.InvalidSchema as error:
        raise UserError(
            f"{source} leads to an address that is neither https:// nor http:// ({error}). "
            "Correct the source"
        ) from error
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"{source} could not be downloaded ({error}). "
            "Check the connection, or give a local path as source"
        ) from error
    except ValueError as error:
        if known_hash is None:
            raise UserError(f"{source} is no address: {error}. Correct the source") from error
        raise UserError(
            f"{source} has another content than {known_hash}: {error} "
            "If the new content is what you want, write its hash into params.yaml"
        ) from error


def _suffix(source: str) -> str:
    try:
        return Path(urlsplit(source).path).suffix
    except ValueError as error:
        raise UserError(f"{source} is no address: {error}. Correct the source") from error


def _transfer(address: str, target: Path, most: int) -> None:
    """Writes what an address answers, of which ``most`` bytes are taken."""
    headers = {"User-Agent": USER_AGENT}
    with (
        requests.get(address, stream=True, timeout=TIMEOUT_S, headers=headers) as answer,
        target.open("wb") as file,
        tqdm(unit="B", unit_scale=True, disable=None) as progress,
    ):
        answer.raise_for_status()
        received = 0
        for chunk in answer.iter_content(_CHUNK):
            progress.update(len(chunk))
            received += len(chunk)
            if received > most:
                raise UserError(
                    f"{address} sends more than {most / 2**20:g} MiB, the most that is taken. "
                    "Download it yourself, and give its path as source"
                )
            file.write(chunk)


@contextmanager
def _at_most(seconds: float, source: str) -> Iterator[None]:
    """Ends the block with a ``UserError`` when its time is over, whatever it waits for.

    A server that sends a byte now and then never runs into a socket's time-out, in its headers
    least of all; so an alarm it is, in the main thread, which is where stages run.
    """

    def end(_: int, __: FrameType | None) -> None:
        raise UserError(
            f"{source} took more than {seconds:g} s, the most that a download may take. "
            "Download it yourself, and give its path as source"
        )

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
