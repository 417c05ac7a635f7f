"""Where a picture comes from: an address, a file inside an installed package, a local path.

The bytes behind a source are never trusted: whoever pins a hash has it checked here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests

from pipeline import __version__
from pipeline.errors import UserError

USER_AGENT = f"style-transfer-pipeline/{__version__} (reproduction of Gatys et al. 2016)"
TIMEOUT_S = 30.0
"""How long a server may be silent."""
RETRIES = 2

_PACKAGE = "package:"


def locate(source: str, known_hash: str | None, downloads: Path) -> Path:
    """Returns the path of the file that a source stands for, downloaded first where it must be.

    Args:
        source: ``https://…`` or ``http://…``, ``package:NAME/PATH`` for a file inside an installed
            Python package, or a path: absolute, from ``~``, or relative to the repository.
        known_hash: ``sha256:…`` or ``md5:…`` of the file, or None for no check.
        downloads: folder that keeps what was downloaded, so that nothing is fetched twice.

    Raises:
        UserError: nothing there, no answer in time, or another hash than the known one.
    """
    if source.startswith(("https://", "http://")):
        return _download(source, known_hash, downloads)
    path = _in_package(source) if source.startswith(_PACKAGE) else _local(source)
    if not path.is_file():
        raise UserError(f"{source}: there is no file {path}. Correct the source")
    _check_hash(path, source, known_hash)
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


def _download(source: str, known_hash: str | None, downloads: Path) -> Path:
    name = hashlib.sha256(source.encode()).hexdigest()[:16] + Path(urlsplit(source).path).suffix
    store = pooch.create(
        path=downloads,
        base_url="",
        registry={name: known_hash},
        urls={name: source},
        retry_if_failed=RETRIES,
    )
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=TIMEOUT_S, headers={"User-Agent": USER_AGENT}
    )
    try:
        return Path(store.fetch(name, downloader=downloader))
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise UserError(f"{source} answered {status}. Correct the source, or try later") from error
    except requests.Timeout as error:
        raise UserError(
            f"{source} was silent for {TIMEOUT_S:g} s. Try later, or give a local path as source"
        ) from error
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"{source} could not be downloaded ({error}). "
            "Check the connection, or give a local path as source"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{source} has another content than {known_hash}: {error} "
            "If the new content is what you want, write its hash into params.yaml"
        ) from error
