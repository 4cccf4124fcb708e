"""A model of the hub is fetched from a stand-in for it on this machine: JSON, tokenizer and safetensors alone."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import ConfigError
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.hub import find_model, is_hub_name
from moe_cli.runs.folder import Run
from tests.exchange.random_models import our_settings, random_run
from tests.runner import CliRunner

constants = pytest.importorskip("huggingface_hub.constants")
SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/small-model"


class Hub:
    """A server that answers as the hub does, for one model. `files` are its contents, `fetched` the names asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.fetched = files, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith(f"/api/models/{NAME}"):
                    siblings = [{"rfilename": name} for name in hub.files]
                    self._answer(json.dumps({"id": NAME, "sha": SHA, "siblings": siblings}).encode(), "")
                    return
                _, found, name = self.path.partition(f"/{NAME}/resolve/{SHA}/")
                if not found or name not in hub.files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if found else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                hub.fetched.append(name)
                self._answer(hub.files[name], hashlib.sha256(hub.files[name]).hexdigest())

            do_HEAD = do_GET

            def _answer(self, content: bytes, etag: str) -> None:
                self.send_response(200)
                self.send_header("X-Repo-Commit", SHA)
                self.send_header("ETag", f'"{etag}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("exported")
    run, _ = random_run(folder / "out", our_settings("qwen3_moe", 0), 0)
    export_run(run, folder / "out", folder / "model", shard_bytes=20_000)
    return {file.name: file.read_bytes() for file in (folder / "model").iterdir()}


@pytest.fixture
def hub(contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    code = {"modeling_own.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "tokenizer.model": b"model"}
    hub = Hub({**contents, **code})
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def test_a_name_of_the_hub_is_imported_and_no_code_is_fetched(hub: Hub, tmp_path: Path, text_file: Path) -> None:
    """Only JSON, the tokenizer and the shards of the index are fetched; a second import fetches no weights again."""
    words = ["import", NAME, "data=text", f"data.path={text_file}", "--no-eval", "--outputs", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert 0 == done.exit_code, done.output
    (path,) = (tmp_path / "out/imported").glob("gpt-*")
    assert Run(path).meta()["imported"]["folder"].endswith(f"somebody--small-model-{SHA[:12]}")
    shards = {name for name in hub.files if name.endswith(".safetensors")}
    assert len(shards) > 1
    expected = {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json"} | shards
    assert expected == set(hub.fetched)
    assert not list((tmp_path / "out").rglob("*.py"))
    hub.fetched.clear()
    assert "was imported before" in CliRunner().invoke(app, words).stderr


def test_a_local_folder_comes_first(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert Path(NAME) == find_model(NAME, tmp_path / "out")
    assert [] == hub.fetched


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.json": b'{"model_type": "bloom"}'}, "model_type=bloom"),
        ({"config.json": b'{"model_type": "llama", "auto_map": {}}'}, "auto_map, which names code"),
        ({"model.safetensors.index.json": None}, "has no model.safetensors. Only safetensors are read"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "only safetensors files of"),
        ({"config.json": None}, "has no config.json"),
    ],
)
def test_a_model_that_cannot_be_imported_costs_no_weights(
    hub: Hub, tmp_path: Path, changes: dict[str, bytes | None], message: str
) -> None:
    hub.files = {name: content for name, content in {**hub.files, **changes}.items() if content is not None}
    with pytest.raises(ConfigError, match=message):
        find_model(NAME, tmp_path / "out")
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


@pytest.mark.parametrize("problem", ["offline", "no network", "unknown"])
def test_without_the_model_three_lines_say_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    name = "somebody/else" if problem == "unknown" else NAME
    if problem == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif problem == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    done = CliRunner().invoke(app, ["import", name, "--outputs", str(tmp_path / "out")])
    assert 2 == done.exit_code
    first, second, third = done.stderr.strip().splitlines()
    assert f"there is no folder {name}, and the hub gives no model of that name" in first
    assert f"download it by hand: hf download {name} --local-dir FOLDER" in second
    assert "Then: moe import FOLDER" == third.strip()


def test_without_the_library_three_lines_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"moe-cli\[hf\]") as raised:
        find_model(NAME, tmp_path)
    assert 3 == len(str(raised.value).splitlines())


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "a/..", "~/a", "a b/c", "./a"])
def test_other_names_are_folders(name: str) -> None:
    assert not is_hub_name(name)
