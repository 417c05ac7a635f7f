"""A server on loopback that answers requests for pictures, and misbehaves as their path says."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from PIL import Image

from pipeline.imaging import downloads


def picture_bytes() -> bytes:
    stored = io.BytesIO()
    Image.effect_noise((64, 48), 90).convert("RGB").save(stored, "JPEG", quality=95)
    return stored.getvalue()


class Server(BaseHTTPRequestHandler):
    picture: ClassVar[bytes] = picture_bytes()
    requests: ClassVar[list[str]] = []
    agents: ClassVar[list[str]] = []
    hang: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.agents.append(self.headers["User-Agent"])
        name = self.path.strip("/").partition(".")[0]
        getattr(self, f"_{name}", self._missing)()

    def _answer(self, body: bytes, length: int | None = None, kind: str = "image/jpeg") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def _good(self) -> None:
        self._answer(self.picture, len(self.picture))

    def _flaky(self) -> None:
        if self.requests.count(self.path) == 1:
            self._answer(self.picture[:100], len(self.picture))
        else:
            self._good()

    def _page(self) -> None:
        page = b"<!DOCTYPE html><title>Please log in</title>"
        self._answer(page, len(page), "text/html")

    def _cut(self) -> None:
        self._answer(self.picture[: len(self.picture) // 2], len(self.picture))

    def _silentcut(self) -> None:
        self._answer(self.picture[: len(self.picture) // 2])

    def _slow(self) -> None:
        self.hang.wait(10)

    def _file(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.hang.is_set():
            self.wfile.write(self.picture)

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Patience: ")
        while not self.hang.wait(0.05):
            self.wfile.write(b"x")

    def _missing(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        pass


class _Listening(ThreadingHTTPServer):
    def handle_error(self, *arguments: Any) -> None:
        """A client that has had enough is what some of these tests are about."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.5)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    Server.requests.clear()
    Server.hang.clear()
    running = _Listening(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    Server.hang.set()
    running.shutdown()
    thread.join()
    running.server_close()
