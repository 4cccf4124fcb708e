"""moe train launch.num_processes=N and torchrun: what is printed, and what happens when a process dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.launch import LaunchConfig
from moe_cli.distributed.launch import is_distributed, job_id, launch, local_world_size, num_restarts, rank
from moe_cli.errors import ConfigError, LostProcess, MoeError, TrainingError
from moe_cli.execution.machine import pick_device, pick_threads
from moe_cli.execution.run import run_one, with_launched_world_size
from moe_cli.execution.worker import main
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.lookup import list_runs_by_age
from tests.tiny import tiny_config
from tests.training.test_resume import assert_equal_runs

SMALL = (
    "model.d_model=16",
    "model.d_ff=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.context_length=16",
    "train.batch_size=4",
    "train.threads=1",
    "expert=4",
    "k=2",
    "match=none",
    "train.checkpoint_every=10",
    "train.eval_every=1000",
)
LAUNCHED = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def command(text_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`moe train` on a little text, in a process of its own."""
    settings = ["data=text", f"data.path={text_file}", *SMALL, "--outputs", str(tmp_path)]
    return lambda *words: [sys.executable, "-m", "moe_cli", "train", *settings, *words]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def wait_for_checkpoint(outputs: Path, process: subprocess.Popen[str]) -> Run:
    deadline = time.monotonic() + 600
    while not list(outputs.glob("runs/*/checkpoints/step_*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return list_runs_by_age(outputs)[0]


def worker(parent: int, number: int) -> int:
    """The process id of one of a launcher's processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        if f"RANK={number}".encode() in environment and f"\nPPid:\t{parent}\n" in status:
            return int(folder.name)
    raise AssertionError(f"no process {number} of {parent}")


def test_settings_of_a_launch_are_checked(text_file: Path) -> None:
    """Settings that cannot be divided among processes are refused before anything starts, with the numbers."""
    for changes, message in (
        ({"num_processes": 3}, "train.batch_size=4 cannot be .* launch.num_processes=3"),
        (
            {"num_processes": 4, "expert_parallel_size": 3},
            "launch.num_processes=4 cannot be divided into groups of launch.expert_parallel_size=3",
        ),
        ({"num_processes": 0}, "launch.num_processes=0"),
        ({"num_processes": 2, "max_restarts": -1}, "launch.max_restarts=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(text_file, launch=LaunchConfig(**changes))
    with pytest.raises(ConfigError, match=r"expert=6 cannot be .* launch.expert_parallel_size=4"):
        tiny_config(text_file, expert=6, launch=LaunchConfig(num_processes=4, expert_parallel_size=4))
    with pytest.raises(ConfigError, match=r"optim.skip_idle_experts=true .* Use launch.data_parallel=dp"):
        tiny_config(
            text_file, optim={"skip_idle_experts": True}, launch=LaunchConfig(num_processes=2, data_parallel="fsdp")
        )


def test_a_dense_model_has_no_experts_to_divide(text_file: Path) -> None:
    """launch.expert_parallel_size is ignored."""
    config = tiny_config(text_file, expert=1, k=1, launch=LaunchConfig(num_processes=2, expert_parallel_size=2))
    assert LaunchConfig(num_processes=2) == config.launch


def test_what_a_launcher_says(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank, share of the cores, GPU and number of processes come from torchrun's environment, where there is one."""
    for name in (*LAUNCHED, "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    config = tiny_config(text_file, train={"threads": None})
    assert (False, 0, 1, None, 0) == (is_distributed(), rank(), local_world_size(), job_id(), num_restarts())
    assert config is with_launched_world_size(config)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert (True, 3, 2) == (is_distributed(), rank(), local_world_size())
    assert 4 == with_launched_world_size(config).launch.num_processes
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    much = tiny_config(text_file, train={"threads": None, "batch_size": 2**20})
    assert 4 == pick_threads(much)
    assert job_id() is not None
    assert str(os.getppid()) in str(job_id())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some-job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ("some-job", 1) == (job_id(), num_restarts())


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is the GPU of the process's number on its machine; too few of them is a clear error."""
    chosen: list[int] = []
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch.device("cuda:1") == pick_device("auto") == pick_device("cuda")
    assert [1, 1] == chosen
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MoeError, match="2 processes on this machine and 1 GPUs"):
        pick_device("auto")


def script(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "script.py"
    file.write_text(f"import os, signal, sys, time\n{text}\n")
    return [str(file)]


def test_a_launch_that_ends_well_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each process knows who it is, and nothing is printed but what they print."""
    launch(
        script(tmp_path, f"open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(os.environ['MOE_LAUNCH'])"),
        LaunchConfig(num_processes=2),
    )
    assert ["1", "1"] == [(tmp_path / name).read_text() for name in "01"]
    assert ("", "") == capfd.readouterr()
    assert "MOE_LAUNCH" not in os.environ


def test_the_process_that_was_killed_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The others are stopped, and the message says which one it was and how it ended."""
    words = script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)")
    with pytest.raises(LostProcess, match=r"process 1 of 2 was killed \(SIGKILL\)"):
        launch(words, LaunchConfig(num_processes=2))
    assert ("", "") == capfd.readouterr()


def test_a_process_that_printed_its_error_is_not_reported_again(tmp_path: Path) -> None:
    """It has printed why it could not go on: the message is empty."""
    with pytest.raises(TrainingError) as caught:
        launch(script(tmp_path, "sys.exit(2)"), LaunchConfig(num_processes=2))
    assert "" == str(caught.value)
    assert not isinstance(caught.value, LostProcess)


@pytest.mark.slow
def test_a_launch_starts_again(tmp_path: Path) -> None:
    """With launch.max_restarts, where a launch without them ends as in the tests above."""
    text = "os.environ['TORCHELASTIC_RESTART_COUNT'] == '1' or os.kill(os.getpid(), signal.SIGKILL)"
    launch(script(tmp_path, text), LaunchConfig(num_processes=2, max_restarts=1))


def test_a_run_of_several_processes_is_launched(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run_one starts the processes of a run; the error of a lost process says how to go on."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, launch=LaunchConfig(num_processes=2)))
    asked: list[Any] = []
    monkeypatch.setattr(
        "moe_cli.execution.run.launch", lambda words, config: asked.append((words, config.num_processes))
    )
    run_one(run, tmp_path)
    assert [(["-m", "moe_cli.execution.worker", str(run.path), str(tmp_path)], 2)] == asked

    def lose(words: Any, config: Any) -> None:
        raise LostProcess("process 1 of 2 was killed (SIGKILL).")

    monkeypatch.setattr("moe_cli.execution.run.launch", lose)
    with pytest.raises(
        LostProcess,
        match=rf"\n.*moe train --resume {run.id}",
    ):
        run_one(run, tmp_path)
    assert 1 == main(str(run.path), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["moe", "torchrun"])
def test_two_processes_by_command(command: Any, tmp_path: Path, launcher: str) -> None:
    """Both ways give one run folder, one plan and one summary, and nothing on standard error but torchrun's own words."""
    words = command("train.steps=4")
    if launcher == "moe":
        words.append("launch.num_processes=2")
    else:
        words[1:2] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    process = start(words, OMP_NUM_THREADS="1")
    out, err = process.communicate(timeout=120)
    assert (0, "") == (process.returncode, err)
    assert [1, 1] == [out.count(text) for text in ("  run  ", "done in")]
    (run,) = list_runs_by_age(tmp_path)
    assert ("completed", 2) == (run.status()["status"], run.config().launch.num_processes)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_training(command: Any, tmp_path: Path, text_file: Path, killed: int) -> None:
    """The error names it and the last checkpoint is kept; resumed, the run ends as if undisturbed."""
    process = start(command("train.steps=150", "launch.num_processes=2"))
    run = wait_for_checkpoint(tmp_path, process)
    os.kill(worker(process.pid, killed), signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert 1 == process.returncode
    assert f"process {killed} of 2 was killed (SIGKILL)" in err
    assert err.endswith(f"moe train --resume {run.id}\n")
    assert "Traceback" not in err
    assert "interrupted" == run.status()["status"]
    if killed == 0:
        return
    resume = [sys.executable, "-m", "moe_cli", "train", "--resume", run.id, "--outputs", str(tmp_path)]
    assert 0 == subprocess.run(resume, check=False, capture_output=True).returncode
    undisturbed = start(command("train.steps=150", "launch.num_processes=2", "--outputs", str(tmp_path / "other")))
    undisturbed.communicate(timeout=120)
    assert_equal_runs(list_runs_by_age(tmp_path / "other")[0], run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["moe", "torchrun"])
def test_a_training_starts_again_by_itself(command: Any, tmp_path: Path, launcher: str) -> None:
    """With restarts, a killed process costs the steps since the last checkpoint, in the same run folder."""
    words = command("train.steps=150")
    if launcher == "moe":
        words += ["launch.num_processes=2", "launch.max_restarts=1"]
    else:
        words[1:2] = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=1", "--nproc-per-node=2", "-m"]
    process = start(words, OMP_NUM_THREADS="1")
    run = wait_for_checkpoint(tmp_path, process)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    process.communicate(timeout=120)
    assert 0 == process.returncode
    assert [run.id] == [each.id for each in list_runs_by_age(tmp_path)]
    assert 150 == (run.summary() or {})["steps"]
    steps = [line["step"] for line in run.metrics() if "train/loss" in line]
    assert sorted(set(steps)) == steps


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_launcher_saves_and_stops(command: Any, tmp_path: Path, number: int) -> None:
    """One message, exit code 130, nothing left running; resumed by one process the run is completed."""
    process = start(command("train.steps=2000", "launch.num_processes=2"))
    run = wait_for_checkpoint(tmp_path, process)
    workers = [worker(process.pid, rank) for rank in range(2)]
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert (130, "") == (process.returncode, err)
    assert out.endswith(f"moe train --resume {run.id}\n")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    status = run.status()
    assert "interrupted" == status["status"]
    assert f"step_{status['step']:08d}" == run.checkpoints()[0].name


@pytest.mark.slow
def test_processes_do_not_outlive_their_launcher(command: Any, tmp_path: Path) -> None:
    """kill -9 of `moe train`: the processes that train save and end, and the run can be resumed."""
    process = start(command("train.steps=20000", "launch.num_processes=2"))
    run = wait_for_checkpoint(tmp_path, process)
    workers = [worker(process.pid, rank) for rank in range(2)]
    process.kill()
    process.communicate(timeout=600)
    deadline = time.monotonic() + 600
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status = run.status()
    assert ("interrupted", f"stopped; {run.kept()}") == (status["status"], status["reason"])
    assert f"step_{status['step']:08d}" == run.checkpoints()[0].name
