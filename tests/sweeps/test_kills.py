"""Whatever is killed, and whenever: the same command ends with every point done once, and the results are the same."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from moe_cli.runs.folder import Run
from moe_cli.runs.locks import is_locked
from moe_cli.runs.lookup import list_runs_by_age
from tests.training.test_resume import assert_equal_runs

GRID = ("expert=1,4", "k=1", "seed=0,1")
SMALL = (
    "model.d_model=16",
    "model.d_ff=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.context_length=16",
    "train.batch_size=4",
    "train.threads=1",
    "train.checkpoint_every=10",
    "train.eval_every=1000",
)
STEPS = "train.steps=300"
POINTS = 4
Command = Callable[..., list[str]]


@pytest.fixture
def command(text_file: Path) -> Command:
    """`moe sweep` on a little text, in a process of its own; the first word is the outputs folder."""
    settings = ["data=text", f"data.path={text_file}", *SMALL]
    return lambda outputs, *words: [
        sys.executable,
        "-m",
        "moe_cli",
        "sweep",
        *settings,
        "-j",
        "2",
        "--outputs",
        str(outputs),
        *words,
    ]


def finish(words: list[str]) -> str:
    """Runs a command to its end, which must be a good one; gives what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def processes_of(outputs: Path) -> list[int]:
    """The living processes that work on an outputs folder: the sweep itself, the parent of its runs, and those."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if int(folder.name) != os.getpid() and str(outputs).encode() in command and b"moe_cli" in command:
                found.append(int(folder.name))
    return found


def assert_nothing_runs(outputs: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(outputs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [] == processes_of(outputs)


def kill_one(outputs: Path, draw: random.Random) -> None:
    """SIGKILL for a process of the sweep that is not the sweep: a run, or the parent of the runs."""
    pids = [pid for pid in processes_of(outputs) if os.getsid(pid) != os.getsid(0)]
    if pids:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)


def starts(outputs: Path) -> int:
    """How many times runs have been started in all."""
    return sum(run.status().get("starts") or 0 for run in list_runs_by_age(outputs))


@pytest.fixture
def undisturbed(command: Command, tmp_path: Path) -> list[Run]:
    finish(command(tmp_path / "calm", *GRID, STEPS))
    return list_runs_by_age(tmp_path / "calm")


@pytest.mark.slow
def test_a_sweep_killed_at_random_is_as_one_undisturbed(
    command: Command, tmp_path: Path, undisturbed: list[Run]
) -> None:
    """Five sweeps killed with SIGKILL, workers too: in the end every planned point is done once, bit for bit the same."""
    draw, outputs = random.Random(0), tmp_path / "kills"
    words = command(outputs, *GRID, STEPS, "--retries", "50")
    for number in range(5):
        before = starts(outputs)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        if number % 4 == 0:  # at any moment, before there is a run too
            time.sleep(draw.uniform(0.0, 5.0))
        else:
            while process.poll() is None and starts(outputs) == before:
                time.sleep(0.02)
            time.sleep(draw.uniform(0.0, 0.6))
        if number % 2:
            kill_one(outputs, draw)
            time.sleep(draw.uniform(0.0, 0.6))
        process.kill()
        process.wait()
    finish(words)
    runs = {run.id: run for run in list_runs_by_age(outputs)}
    assert sorted(run.id for run in undisturbed) == sorted(runs)
    assert POINTS == len(runs)
    for run in undisturbed:
        assert_equal_runs(run, runs[run.id])
    assert starts(outputs) >= POINTS + 2
    assert_nothing_runs(outputs, 10)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["train.compile=off", "launch.num_processes=2"])
def test_a_killed_sweep_leaves_nothing_running(command: Command, tmp_path: Path, setting: str) -> None:
    """When the sweep itself is killed its workers save and stop: none is left, and each has a checkpoint."""
    process = subprocess.Popen(command(tmp_path, "expert=1,4", "k=1", "train.steps=1000000", setting))
    wait_for_steps(tmp_path, 2)
    process.kill()
    process.wait()
    assert_nothing_runs(tmp_path, 40)
    assert 2 == sum(bool(run.checkpoints()) for run in list_runs_by_age(tmp_path))
    assert [] == [run for run in list_runs_by_age(tmp_path) if is_locked(run.path)]


def wait_for_steps(outputs: Path, count: int) -> None:
    """Waits until `count` runs have trained a little."""
    deadline = time.monotonic() + 600
    while sum(any("train/loss" in record for record in run.metrics()) for run in list_runs_by_age(outputs)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_terminals_share_the_work(command: Command, tmp_path: Path) -> None:
    """The same sweep twice at a time: both end well, and every point was started once."""
    words = command(tmp_path, "expert=1,4", "k=1", "seed=0,1,2", "train.steps=100")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [0, 0] == [process.returncode for process in both], printed
    assert [1] * 6 == [run.status()["starts"] for run in list_runs_by_age(tmp_path)]
    assert ["completed"] * 6 == [run.status()["status"] for run in list_runs_by_age(tmp_path)]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(command: Command, tmp_path: Path, terminal: tuple[int, int], times: int) -> None:
    """Once: what runs is saved, exit code 130. Twice: at once. Either way nothing is left, and the command goes on."""
    ours, theirs = terminal
    words = command(tmp_path, "expert=1,4", "k=1", "train.steps=1000000")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, it would be there too
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    printed = b""
    os.set_blocking(ours, False)
    wait_for_steps(tmp_path, 2)
    for number in range(times):
        os.kill(process.pid, signal.SIGINT)
        if number + 1 < times:
            time.sleep(0.02)
    deadline = time.monotonic() + 600
    while process.poll() is None:
        assert time.monotonic() < deadline, printed.decode()
        with suppress(BlockingIOError):
            printed += os.read(ours, 65_536)
        time.sleep(0.01)
    with suppress(BlockingIOError):
        printed += os.read(ours, 65_536)
    assert 130 == process.returncode, printed.decode()
    assert b"The same command continues" in printed
    assert_nothing_runs(tmp_path, 5)
    assert {"interrupted"} == {run.status()["status"] for run in list_runs_by_age(tmp_path)}
    if times == 1:
        assert all(run.checkpoints() for run in list_runs_by_age(tmp_path))


@pytest.mark.slow
def test_a_full_disk(command: Command, tmp_path: Path) -> None:
    """It is said in two lines, what is saved stays whole, and once there is room the same command goes on and finishes."""
    words = command(tmp_path, "expert=1,4", "k=1", "train.steps=40")
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", *words]
    stopped = subprocess.run(limited, capture_output=True, text=True, timeout=200, check=False)
    assert 1 == stopped.returncode, stopped.stdout + stopped.stderr
    lines = stopped.stderr.splitlines()
    assert 2 == len(lines), stopped.stderr
    assert "could not write: the disk is full" in lines[0]
    assert "the same command goes on" in lines[1]
    assert "failed" not in {run.status()["status"] for run in list_runs_by_age(tmp_path)}
    assert "2 of 2 runs complete" in finish(words)
