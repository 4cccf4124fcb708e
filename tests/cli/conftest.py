"""A text to learn from and settings that train in an instant."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from tests.runner import CliRunner

TINY = (
    "model.d_model=16",
    "model.d_ff=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.context_length=16",
    "train.steps=6",
    "train.batch_size=4",
    "train.log_every=2",
    "train.threads=1",
)
# A run evaluates and saves at its end alone: by default it does after each of six steps, which takes half of its time.
ONCE = "train.eval_every=1000"
Moe = Callable[..., Result]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few kilobytes of words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = random.Random(0).choices(["expert", "router", "token", "gate", "load", "the", "of"], k=600)
    path.write_text(" ".join(words))
    return path


@pytest.fixture
def settings(text: Path) -> list[str]:
    return ["data=text", f"data.path={text}", *TINY, ONCE]


@pytest.fixture
def moe(tmp_path: Path, shared_fork_server: None, monkeypatch: pytest.MonkeyPatch) -> Moe:
    """Runs a `moe` command in this process, with its own outputs folder."""
    monkeypatch.setenv("MOE_OUTPUTS", str(tmp_path / "outputs"))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
