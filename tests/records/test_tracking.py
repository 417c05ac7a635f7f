"""Weights & Biases: offline runs read back, a fake server on loopback, and servers that fail."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from PIL import Image

from pipeline.config.schema import Tracking
from pipeline.errors import UserError
from pipeline.records.tracking import run_location, tracked_run, wandb_image

KEY = "k" * 40


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """W&B reads the environment once in a process: every test gets its own reading."""
    wandb.teardown()
    yield
    wandb.teardown()


def inspected(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of the one offline run below a folder."""
    (run,) = folder.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in answer.stdout.splitlines() if line.strip()]


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as one run needs; keeps what it is sent, and fails as it is told.

    ``fault`` is empty, ``never answers``, ``dies in the middle`` or ``hangs at finish``.
    """

    protocol_version = "HTTP/1.1"
    fault: ClassVar[str] = ""
    released: ClassVar[threading.Event] = threading.Event()
    history: ClassVar[list[dict[str, Any]]] = []
    uploads: ClassVar[dict[str, bytes]] = {}
    run: ClassVar[dict[str, Any]] = {}

    def handle_one_request(self) -> None:
        if self.fault == "never answers":
            self.released.wait(60)
        if self.fault == "dies in the middle" and self.run:
            threading.Thread(target=self.server.shutdown).start()
            self.server.socket.close()
        if self.fault in ("", "hangs at finish") or not (self.run or self.released.is_set()):
            super().handle_one_request()
        else:
            self.close_connection = True

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            self._answer(self._graphql(json.loads(body)))
            return
        if self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.history.extend(json.loads(line) for line in lines.get("content", []))
        self._answer({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        if self.fault == "hangs at finish":
            self.released.wait(60)
        self.uploads[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query["query"]:
            self.run.update({k: v for k, v in query["variables"].items() if v is not None})
            project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
            bucket = {"id": "b", "name": query["variables"]["name"], "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query["query"]:
            root = f"http://127.0.0.1:{self.server.server_port}/upload"  # type: ignore[attr-defined]
            names = query["variables"]["files"]
            files = [{"name": name, "uploadUrl": f"{root}/{name}"} for name in names]
            answer = {"runID": "b", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": answer}}
        return {"data": {"viewer": {"id": "v", "entity": "entity", "flags": "{}"}}}

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        """A client that hangs up is what these tests are about."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    for kept in (Server.history, Server.uploads, Server.run, Server.released):
        kept.clear()
    monkeypatch.setattr(Server, "fault", "")
    running = _QuietServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
    yield running
    Server.released.set()
    running.shutdown()
    thread.join()
    running.server_close()


def log_a_run(tracking: Tracking, root: Path, during: Any = lambda: None) -> None:
    config = {"settings": {"size": 32}}
    with tracked_run(tracking, root=root, name="subject", job_type="stylize", config=config) as run:
        for evaluation in range(1, 8):
            row = {"evaluation": evaluation, "total": 1 / evaluation}
            picture = Image.new("RGB", (8, 6), (evaluation, 0, 0))
            extra = {"intermediate": wandb_image(picture, "seen")} if evaluation == 4 else {}
            run.log({**row, **extra})
        during()
        run.summary.update({"saved_total": 0.25})


def test_without_a_key_the_run_is_offline_and_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_a_run(Tracking(project="mine", group="g", tags=["t"]), tmp_path)
    text = json.dumps(inspected(tmp_path))
    assert text.count('"total"') >= 7
    assert "wandb sync" in capsys.readouterr().out
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/intermediate*.png")
    with Image.open(picture) as image:
        assert image.getpixel((0, 0)) == (4, 0, 0)


def test_online_run_reaches_the_server(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    log_a_run(Tracking(project="mine", group="figure-4", tags=["noise"]), tmp_path)
    assert [row["evaluation"] for row in Server.history] == list(range(1, 8))
    assert [row["_step"] for row in Server.history if "intermediate" in row] == [3]
    assert Server.run["groupName"] == "figure-4"
    assert Server.run["jobType"] == "stylize"
    assert Server.run["tags"] == ["noise"]
    assert any(name.startswith("media/images/intermediate") for name in Server.uploads)
    assert json.loads(Server.uploads["wandb-summary.json"])["saved_total"] == 0.25
    assert b"size" in Server.uploads["config.yaml"]
    assert not any(KEY.encode() in body for body in Server.uploads.values())


def test_mode_is_the_params_then_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    log_a_run(Tracking(mode="offline"), tmp_path / "a")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_a_run(Tracking(), tmp_path / "b")
    assert any((tmp_path / "a").glob("wandb/offline-run-*"))
    assert not any((tmp_path / "b").glob("wandb/*run-*"))


def test_a_key_from_wandb_login_is_found(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:{server.server_port}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    log_a_run(Tracking(), tmp_path)
    assert len(Server.history) == 7


def test_invalid_key_leaves_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password short\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    log_a_run(Tracking(), tmp_path)
    assert "W&B's key cannot be read (API key" in capsys.readouterr().out
    assert len(inspected(tmp_path)) > 0


@pytest.mark.parametrize("address", ["no address", "https://"])
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_invalid_address_is_refused(
    mode: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    with pytest.raises(UserError, match="W&B refuses"):
        log_a_run(Tracking(mode=mode), tmp_path)


def test_run_that_fails_is_marked_as_failed(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("of the experiment")

    with pytest.raises(ValueError, match="of the experiment"):
        log_a_run(Tracking(), tmp_path, during=fail)
    (ending,) = [record for record in inspected(tmp_path) if "exit" in record]
    assert ending["exit"]["exit_code"] == 1


def test_settings_that_wandb_refuses_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="W&B refuses what"):
        log_a_run(Tracking.model_construct(project="a/b"), tmp_path)


def test_run_is_grouped_by_its_figure_unless_params_name_a_group(
    server: Any, tmp_path: Path
) -> None:
    for wanted, group in (("fig4", None), ("mine", "mine")):
        tracking = Tracking(group=group)
        with tracked_run(
            tracking, root=tmp_path, name="a", job_type="stylize", config={}, group="fig4"
        ):
            pass
        assert Server.run["groupName"] == wanted


def test_run_location_leads_to_the_run(server: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"root": tmp_path, "name": "a", "job_type": "stylize", "config": {}}
    with tracked_run(Tracking(mode="online"), **given) as run:
        location = run_location(run, tmp_path)
        assert location["url"].startswith("http://127.0.0.1")
        assert (tmp_path / location["sync"].removeprefix("wandb sync ")).is_dir()
    with tracked_run(Tracking(mode="offline"), **given) as run:
        location = run_location(run, tmp_path)
    assert "url" not in location
    assert (tmp_path / location["sync"].removeprefix("wandb sync ")).is_dir()
    with tracked_run(Tracking(mode="disabled"), **given) as run:
        assert run_location(run, tmp_path) == {}
