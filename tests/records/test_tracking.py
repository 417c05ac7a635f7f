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
from pipeline.records.tracking import tracked_run, wandb_image

KEY = "k" * 40
MANIFEST = "wandb_manifest.json"


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """W&B reads the environment once in a process: every test gets its own reading."""
    wandb.teardown()
    yield
    wandb.teardown()


def inspected(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of the one offline run below a folder."""
    (run,) = folder.glob("wandb/offline-run-*")
    return records_of(run)


def records_of(run: Path) -> list[dict[str, Any]]:
    """Returns the records of an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in answer.stdout.splitlines() if line.strip()]


def of_kind(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Returns the first record of a kind."""
    return next(record[kind] for record in records if kind in record)


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the summary at the end, without what W&B adds of its own, which begins with _."""
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return {key: value for key, value in summary.items() if not key.startswith("_")}


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
    artifacts: ClassVar[dict[str, dict[str, Any]]] = {}
    """{id: the input of its creation, and whether it was committed and used}"""

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
        root = f"http://127.0.0.1:{self.server.server_port}/upload"  # type: ignore[attr-defined]
        if "rtifact" in query["query"]:
            return {"data": self._artifact(query, f"{root}/artifacts")}
        if "createRunFiles" in query["query"]:
            names = query["variables"]["files"]
            files = [{"name": name, "uploadUrl": f"{root}/{name}"} for name in names]
            answer = {"runID": "b", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": answer}}
        return {"data": {"viewer": {"id": "v", "entity": "entity", "flags": "{}"}}}

    def _artifact(self, query: dict[str, Any], root: str) -> dict[str, Any]:
        variables = query["variables"]
        given = variables.get("input", variables)
        if "createArtifact(" in query["query"]:
            name = f"artifact-{len(self.artifacts)}"
            self.artifacts[name] = given
            sequence = {"id": f"sequence-{name}", "latestArtifact": None}
            artifact = {"id": name, "state": "PENDING", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": artifact}}
        if "ArtifactManifest(" in query["query"]:
            name = given.get("artifactID") or given["artifactManifestID"]
            url = given["includeUpload"] and f"{root}/{name}/{MANIFEST}"
            file = {"id": f"file-{name}", "uploadUrl": url or None, "uploadHeaders": []}
            manifest = {"artifactManifest": {"id": name, "file": file}}
            return {"createArtifactManifest": manifest, "updateArtifactManifest": manifest}
        if "createArtifactFiles(" in query["query"]:
            files = [self._artifact_file(file, root) for file in given["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": files}}}
        if "commitArtifact(" in query["query"]:
            self.artifacts[given["artifactID"]]["committed"] = True
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        if "useArtifact(" in query["query"]:
            self.artifacts[given["artifactID"]]["used"] = True
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        return {"project": None}  # there is no artifact of that name

    @staticmethod
    def _artifact_file(file: dict[str, Any], root: str) -> dict[str, Any]:
        artifact = file["artifactID"]
        node = {
            "storagePath": f"wandb_artifacts/{artifact}/{file['name']}",
            "uploadUrl": f"{root}/{artifact}/{file['name']}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifact},
        }
        return {"node": node}

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
    for kept in (Server.history, Server.uploads, Server.run, Server.artifacts, Server.released):
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


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError("of the experiment"), "failed"),
        (UserError("of the experiment"), "failed"),
        (SystemExit(143), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_run_without_a_result_says_why(error: BaseException, end: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        log_a_run(Tracking(), tmp_path, during=fail)
    records = inspected(tmp_path)
    assert of_kind(records, "exit")["exit_code"] == 1
    assert summary_of(records) == {"end": end}


def test_summary_has_no_last_values_of_the_curves(tmp_path: Path) -> None:
    log_a_run(Tracking(), tmp_path)
    assert summary_of(inspected(tmp_path)) == {"saved_total": 0.25}


@pytest.mark.parametrize(
    ("tracking", "environment"),
    [
        ({"project": "a/b"}, {}),
        ({}, {"WANDB_PROJECT": "a/b"}),
        ({}, {"WANDB_TAGS": 65 * "t"}),
        ({}, {"WANDB_MODE": "sometimes"}),
        ({}, {"WANDB_INIT_TIMEOUT": "soon"}),
    ],
)
def test_settings_that_wandb_refuses_are_reported(
    tracking: dict[str, Any],
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match="W&B refuses what"):
        log_a_run(Tracking.model_construct(**tracking), tmp_path)


OPTIONS = {
    # variable: (key of the run's record, default, key of params.yaml)
    "WANDB_PROJECT": ("project", "style-transfer", "project"),
    "WANDB_ENTITY": ("entity", None, "entity"),
    "WANDB_RUN_GROUP": ("run_group", "fig4", "group"),
    "WANDB_TAGS": ("tags", None, "tags"),
    "WANDB_NAME": ("display_name", "subject", None),
    "WANDB_JOB_TYPE": ("job_type", "stylize", None),
    "WANDB_NOTES": ("notes", None, None),
}


def recorded(root: Path, key: str, **tracking: Any) -> Any:
    """Returns what the record of a run says, after a run with these options."""
    wandb.teardown()  # or W&B would not look at the environment again
    names = {"name": "subject", "job_type": "stylize", "group": "fig4"}
    with tracked_run(Tracking(**tracking), root=root, config={}, **names):
        pass
    return of_kind(inspected(root), "run").get(key)


@pytest.mark.parametrize("variable", OPTIONS)
def test_variable_wins_over_a_default_and_params_over_the_variable(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, default, option = OPTIONS[variable]
    assert recorded(tmp_path / "default", key) == default
    if variable != "WANDB_TAGS":  # W&B refuses an empty tag
        monkeypatch.setenv(variable, "")
        assert recorded(tmp_path / "empty variable", key) == default
    monkeypatch.setenv(variable, "mine")
    mine, params = (["mine"], ["params"]) if variable == "WANDB_TAGS" else ("mine", "params")
    assert recorded(tmp_path / "environment", key) == mine
    if option:
        assert recorded(tmp_path / "params", key, **{option: params}) == params
    if option == "tags":
        assert recorded(tmp_path / "empty", key, tags=[]) is None


def test_project_of_wandb_init_wins_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb init` writes wandb/settings."""
    monkeypatch.chdir(tmp_path)
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nproject = mine\n")
    assert recorded(tmp_path, "project") == "mine"


@pytest.mark.parametrize(("option", "wins"), [({}, 0.25), ({"init_timeout": 0.5}, 0.5)])
def test_timeout_is_the_params_then_the_environments(
    option: dict[str, float],
    wins: float,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "0.25")
    with tracked_run(
        Tracking(mode="offline", **option), root=tmp_path, name="a", job_type="b", config={}
    ) as run:
        assert run.settings.init_timeout == wins
        assert run.settings.finish_timeout == 15


@pytest.mark.parametrize("given", ["elsewhere", "{tmp_path}/elsewhere", "~/elsewhere"])
def test_wandb_dir_says_where_the_record_goes(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one begins at the repository, as a queued DVC experiment runs in a copy of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", given.format(tmp_path=tmp_path))
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    log_a_run(Tracking(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "elsewhere"}
    assert of_kind(inspected(tmp_path / "elsewhere"), "exit") == {"exit_code": 0}


def test_wandb_dir_that_cannot_be_made_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file"))
    log_a_run(Tracking(), tmp_path)
    assert "cannot be written (File exists): W&B's record goes to" in capsys.readouterr().out
    assert len(list(tmp_path.glob("wandb-*/wandb/offline-run-*"))) == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"WANDB_RUN_ID": "one"},
        {"WANDB_RUN_ID": "one", "WANDB_RESUME": "must"},
        {"WANDB_RESUME": "auto"},
        {"WANDB_FORK_FROM": "one?_step=1"},
        {"WANDB_RESUME_FROM": "one?_step=1"},
    ],
)
def test_runs_of_a_command_stay_apart(
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    for _ in range(2):
        log_a_run(Tracking(), tmp_path)
    runs = [of_kind(records_of(run), "run") for run in tmp_path.glob("wandb/offline-run-*")]
    assert len({run["run_id"] for run in runs} - {"one"}) == 2
    printed = capsys.readouterr().out
    assert all(f"{variable} is not used: each experiment is" in printed for variable in variables)


@pytest.mark.parametrize(("name", "is_offline"), [("dryrun", True), ("run", False)])
def test_other_names_of_modes_mean_the_same(
    name: str,
    is_offline: bool,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", name)
    log_a_run(Tracking(), tmp_path)
    assert any(tmp_path.glob("wandb/offline-run-*")) == is_offline


@pytest.mark.parametrize("folder", ["a b", "it's", 'in "quotes"', "$HOME; `ls` &", "straße"])
def test_command_that_uploads_a_run_can_be_pasted(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_a_run(Tracking(), tmp_path / folder)
    printed = capsys.readouterr().out.strip()
    command = printed.removeprefix("W&B, offline: to upload this run, ")
    said = subprocess.run(
        f"wandb() {{ printf '%s\\n' \"$@\"; }}; {command}",
        shell=True,
        text=True,
        capture_output=True,
        check=True,
    )
    (run,) = (tmp_path / folder).glob("wandb/offline-run-*")
    assert said.stdout.splitlines() == ["sync", str(run)]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_nothing_is_left_in_the_users_home(
    mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    log_a_run(Tracking(mode=mode), tmp_path)
    wandb.teardown()
    assert list(home.rglob("*")) == []
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"home", "wandb"} if mode == "offline" else {"home"})


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
