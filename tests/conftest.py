"""Shared fixtures: checked shapes, one thread, no deadlines on a shared machine, a short text, one finished run."""

import gc
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests.shape_checks import install_shape_checks

CHECKED = ("moe", "models", "tasks", "training")
# The shapes in signatures are checked at run time, where there are tensors.
install_shape_checks([f"moe_cli.{package}" for package in CHECKED])
MEMORY = "/dev/shm"
torch.set_num_threads(1)
# Some machines forbid Python to keep compiled modules: then each of hundreds of processes would compile the whole package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Workers of pytest-xdist are given a width, which a test that writes to no terminal has not.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
# As in the command: threads that wait for a share of a small matrix take twenty times the time of its product.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Every file of a run is written through to the disk, which need not be a real one here. Others than Linux have no such folder,
# and containers a small one.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
settings.register_profile("quick", deadline=None, max_examples=25, database=None)
settings.load_profile("quick")

# Imports of moe_cli stand inside the fixtures: at the top they would come before the run-time type checks.


@pytest.fixture(autouse=True)
def checked_shapes(request: pytest.FixtureRequest) -> None:
    """The checks double the time of a step: those tests do without that are of what happens around a training."""
    jaxtyping.config.update("jaxtyping_disable", request.path.parent.name not in CHECKED)


@pytest.fixture(autouse=True)
def own_plugin_files() -> Iterator[None]:
    """A command with --plugin tells the processes that it starts of the file: not those of later tests."""
    yield
    os.environ.pop("MOE_PLUGINS", None)


@pytest.fixture
def unchecked_shapes(checked_shapes: None) -> None:
    """For long trainings; and for what is compiled, as the checks are Python that torch.compile cannot follow."""
    jaxtyping.config.update("jaxtyping_disable", True)


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, because tests wait for processes; four at most, as each imports torch."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_collection() -> None:
    """Collecting makes objects that stay until the end: the collector need not look through them each time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Thousands of tests and large libraries stay too."""
    gc.collect()
    gc.freeze()
    gc.enable()


LONGEST = ("test_two_processes_", "test_four_processes_", "test_page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest tests first, so that no worker waits for them at the end; then those that import the same peers."""
    items.sort(key=lambda item: (not item.name.startswith(LONGEST), item.get_closest_marker("peers") is None))


@pytest.fixture(scope="session")
def fork_servers() -> Iterator[Any]:
    from tests.fork_servers import ForkServers

    fork_servers = ForkServers()
    yield fork_servers
    fork_servers.end()


@pytest.fixture
def shared_fork_server(fork_servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets sweeps reuse the fork server of earlier tests; not for tests of the fork server itself."""
    monkeypatch.setattr("moe_cli.sweeps.executors.local.ForkServer", fork_servers)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 characters of made-up words in one file."""
    from tests.tiny import words

    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(words(6000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A completed run in an outputs folder of its own. Not to be changed: copy it."""
    from tests.tiny import finish, tiny_config

    train = {"steps": 6, "checkpoint_every": 2, "eval_every": 3, "log_every": 2}
    return finish(tiny_config(text_file, train=train), tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="session")
def few_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes four words in random order, so that a hidden word can often be guessed."""
    path = tmp_path_factory.mktemp("text") / "few.txt"
    path.write_text(" ".join(random.Random(0).choices(["expert", "router", "gate", "of"], k=1500)))
    return path
