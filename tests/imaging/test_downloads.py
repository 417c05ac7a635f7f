"""Sources, against a real server on loopback that misbehaves."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import save_picture, tiny_params, write_params
from picture_server import Server, server
from PIL import Image

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.imaging.downloads import Limit, locate
from pipeline.imaging.fetching import fetch_images
from pipeline.imaging.picture_files import read_picture
from pipeline.records.status import read_failure
from pipeline.stages.fetch import fetch

__all__ = ["server"]


@pytest.fixture
def catalogue(workspace: Path, weights_file: Path) -> Any:
    """Returns a function that fetches one picture from a source, in the workspace."""

    def fetched(source: str, known_hash: str | None = None) -> Path:
        params: Any = tiny_params(weights_file)
        params["images"]["subject"] = {"source": source, "hash": known_hash}
        params["experiments"]["new"] = {"content": "gravel", "style": "subject"}
        write_params(workspace, params)
        fetch(read_params(), ["new"])
        return paths.picture("subject")

    return fetched


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_picture_is_downloaded_once_and_checked(server: str, catalogue: Any) -> None:
    known = hashlib.md5(Server.picture).hexdigest()
    path = catalogue(f"{server}/good.jpg", f"md5:{known}")
    with Image.open(path) as picture:
        assert picture.size == (64, 48)
        assert picture.text["Source-SHA256"] == hashlib.sha256(Server.picture).hexdigest()
    path.unlink()
    catalogue(f"{server}/good.jpg", f"md5:{known}")
    assert Server.requests == ["/good.jpg"]
    assert "style-transfer-pipeline" in Server.agents[-1]


def test_download_cut_short_is_tried_again(server: str, catalogue: Any) -> None:
    assert catalogue(f"{server}/flaky.jpg").is_file()
    assert Server.requests == ["/flaky.jpg"] * 2


@pytest.mark.parametrize(
    ("path", "known_hash", "message"),
    [
        ("nowhere.jpg", None, "answered 404. Correct the source"),
        ("page.jpg", None, "is not a picture: it starts with b'<!DOCTYPE html"),
        ("cut.jpg", None, "could not be downloaded"),
        ("silentcut.jpg", None, "cut short"),
        ("slow.jpg", None, "was silent for 0.5 s. Try later"),
        ("good.jpg", f"sha256:{'0' * 64}", "has another content than sha256:000"),
    ],
)
def test_misbehaving_server_is_named_and_nothing_is_left(
    path: str, known_hash: str | None, message: str, server: str, catalogue: Any
) -> None:
    fetch(read_params(), ["first"])
    with pytest.raises(UserError) as raised:
        catalogue(f"{server}/{path}", known_hash)
    text = str(raised.value)
    assert text.startswith(f"image 'subject' from {server}/{path}: ")
    assert message in text
    assert files_of(Path("data")) == {
        "images/chelsea.png",
        "images/gravel.png",
        "status/_images.json",
        "status/new.txt",
    }
    assert read_failure("new") == text


def test_all_missing_pictures_are_named_and_the_others_are_there(
    workspace: Path, weights_file: Path
) -> None:
    params: Any = tiny_params(weights_file)
    for name in ("lost", "gone", "unused"):
        params["images"][name] = {"source": f"data/own/{name}.png"}
    params["experiments"]["third"] = {"content": "lost", "style": "gone"}
    params["experiments"]["fourth"] = {"content": "chelsea", "style": "lost"}
    write_params(workspace, params)
    with pytest.raises(UserError) as raised:
        fetch(read_params())
    lost, gone = str(raised.value).splitlines()
    assert lost.startswith("image 'lost' from data/own/lost.png: data/own/lost.png: there is no")
    assert gone.startswith("image 'gone' from data/own/gone.png: ")
    assert [file.stem for file in sorted(paths.IMAGES.iterdir())] == ["chelsea", "coffee", "gravel"]
    assert read_failure("third") == f"{lost}\n{gone}"
    assert read_failure("fourth") == lost
    assert read_failure("first") == ""


def test_picture_whose_address_is_gone_is_kept_if_nothing_else_is_asked(
    server: str, catalogue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is in a clone, which has from DVC's remote what the server has no more."""
    address = f"{server}/good.jpg"
    before = catalogue(address).read_bytes()
    shutil.rmtree(paths.downloads())
    monkeypatch.setattr(Server, "_good", Server._missing)
    assert catalogue(address).read_bytes() == before
    with pytest.raises(UserError, match="answered 404"):
        catalogue(address, f"sha256:{'0' * 64}")


def test_own_picture_that_is_gone_is_not_kept(workspace: Path, catalogue: Any) -> None:
    (workspace / "data/own").mkdir(parents=True)
    own = save_picture(workspace / "data/own/mine.png")
    catalogue("data/own/mine.png")
    own.unlink()
    with pytest.raises(UserError, match="there is no file"):
        catalogue("data/own/mine.png")


def test_what_nobody_asks_for_is_removed(workspace: Path) -> None:
    fetch(read_params())
    save_picture(paths.IMAGES / "old.png")
    fetch(read_params(), ["first"])
    assert paths.picture("old").is_file()
    fetch(read_params())
    assert not paths.picture("old").exists()
    assert paths.picture("chelsea").is_file()


def test_picture_is_written_again_only_after_a_change(workspace: Path, catalogue: Any) -> None:
    save_picture(workspace / "mine.png")

    def written() -> int:
        return catalogue("mine.png").stat().st_ino

    first = catalogue("mine.png").read_bytes()
    before = written()
    assert written() == before
    save_picture(workspace / "mine.png", mode="L")
    assert written() != before, "the file has changed"
    save_picture(workspace / "mine.png")
    before = written()
    paths.picture("subject").write_bytes(b"an edit by hand")
    assert written() != before
    assert paths.picture("subject").read_bytes() == first
    before = written()
    fetch_images({"subject": ("mine.png", None)}, "the hash of other code")
    assert paths.picture("subject").stat().st_ino != before


def test_transparency_is_kept_beside_the_colours(workspace: Path) -> None:
    Image.new("RGBA", (8, 6), (200, 0, 0, 51)).save("mine.png")
    assert fetch_images({"subject": (str(workspace / "mine.png"), None)}, "code") == {}
    fetched = paths.picture("subject")
    with Image.open(fetched) as stored:
        assert (stored.mode, stored.getpixel((0, 0))) == ("RGBA", (200, 0, 0, 51))
    assert read_picture(fetched).getpixel((0, 0)) == (244, 204, 204)


def test_deadline_holds_outside_the_main_thread(server: str, tmp_path: Path) -> None:
    """The server sends a byte now and then, in its headers."""
    with ThreadPoolExecutor(1) as pool:
        source = f"{server}/drip.jpg"
        download = pool.submit(locate, source, None, tmp_path, Limit(2**20, 0.3))
        with pytest.raises(UserError, match=r"took more than 0\.3 s, the most that a download may"):
            download.result()
    assert files_of(tmp_path) == set()


def test_deadline_holds_while_a_name_is_looked_up(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: Server.hang.wait(20))
    with pytest.raises(UserError, match=r"took more than 0\.3 s"):
        locate("http://somewhere.org/a.jpg", None, tmp_path, Limit(2**20, 0.3))
    assert files_of(tmp_path) == set()


def test_unreachable_host_is_named(catalogue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="Check the connection, or give a local path"):
        catalogue("http://127.0.0.1:9/picture.jpg")


def test_failed_fetch_keeps_the_picture_of_before(server: str, catalogue: Any) -> None:
    before = catalogue(f"{server}/good.jpg").read_bytes()
    with pytest.raises(UserError):
        catalogue(f"{server}/nowhere.jpg")
    assert paths.picture("subject").read_bytes() == before


def test_local_file_is_read_and_its_hash_checked(workspace: Path, catalogue: Any) -> None:
    path = save_picture(workspace / "mine.png")
    assert catalogue("mine.png").is_file()
    assert catalogue(str(path)).is_file()
    with pytest.raises(UserError, match="another content"):
        catalogue("mine.png", f"md5:{'0' * 32}")
    with pytest.raises(UserError, match=r"there is no file .*yours\.png"):
        catalogue("yours.png")
    assert path.is_file()


def test_local_file_that_is_no_picture_is_not_deleted(workspace: Path, catalogue: Any) -> None:
    (workspace / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match="is not a picture"):
        catalogue("notes.txt")
    assert (workspace / "notes.txt").is_file()


def test_relative_path_is_found_from_a_queued_copy(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "mine.png")
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert locate("mine.png", None, copy).is_file()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package/a.png", "no package 'no_such_package' is installed"),
        ("package:skimage/data/nothing.png", "there is no file"),
        ("package:skimage/../../../../etc/passwd", "points outside the package"),
        ("package:os;x/a.png", "no package"),
        ("~no-such-user/a.png", "Correct the source"),
    ],
)
def test_package_source_that_is_not_there_is_named(
    source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        locate(source, None, tmp_path)


def test_unknown_experiment_names_the_nearest(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"no experiment 'frist'. Did you mean 'first'\?"):
        fetch(read_params(), ["frist"])
