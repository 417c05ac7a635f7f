"""The figures with the paper's own pictures, downloaded from a server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from conftest import REPOSITORY, write_params, write_plans_again

from pipeline import paths
from pipeline.config.edits.presets import PAPER, write_values
from pipeline.config.params import read_params
from pipeline.imaging.picture_files import read_picture
from pipeline.networks.prepare import prepare
from pipeline.stages.fetch import fetch
from pipeline.stages.report import report
from pipeline.stages.stylize import stylize

PICTURES = REPOSITORY.parent / "shared" / "images"
FILES = {
    "neckarfront": "neckarfront.jpg",
    "shipwreck": "shipwreck.jpg",
    "starry_night": "starry_night.jpg",
    "the_scream": "the_scream.jpg",
    "composition_vii": "the_scream.jpg",  # the one that is not there
}

pytestmark = pytest.mark.skipif(not PICTURES.is_dir(), reason=f"no pictures in {PICTURES.name}")


class Server(SimpleHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def address() -> Iterator[str]:
    handler = partial(Server, directory=str(PICTURES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_figure_comes_out_with_the_papers_pictures(
    address: str, tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Path("params.yaml").write_text((REPOSITORY / "params.yaml").read_text("utf-8"), "utf-8")
    write_values(PAPER)
    params: Any = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    for name, file in FILES.items():
        image = params["images"][name]
        pinned = image["hash"] if name == "neckarfront" else None
        image |= {"source": f"{address}/{file}?{name}", "hash": pinned}
    for image in params["images"].values():
        if image["source"].startswith("data/"):
            image["source"] = str(REPOSITORY / image["source"])
    params["backbone"] |= {"weights": str(weights_file), "calibration_size": 64}
    params["defaults"] |= {"size": 48, "evaluations": 2, "intermediates": [], "device": "cpu"}
    params["tracking"] = {"mode": "disabled"}
    write_params(tmp_path, params)

    read = read_params()
    prepare(read.backbone)
    first = [figure.experiments[0] for figure in read.figures.values()]
    fetch(read)
    write_plans_again()
    assert len(Server.requests) == len(set(Server.requests)) == len(FILES)
    for name in first:
        stylize(name)
    report()
    page = Path("reports/index.html").read_text("utf-8")
    for name, figure in read.figures.items():
        assert f'id="figure-{name}"' in page
        assert f"media/experiments/{figure.experiments[0]}/image.png" in page
    photograph = paths.picture(read.experiments["fig4-1"].content)
    assert read_picture(photograph).size == (1024, 768)
    assert "Andreas Praefcke" in page
