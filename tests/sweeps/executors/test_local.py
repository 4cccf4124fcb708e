"""This machine shared out: cores, memory and GPUs; and forked processes that give what processes of their own give."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.balances import LossFreeBalance, SwitchBalance
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.optim import AdamWConfig
from moe_cli.config.routers import NoisyTopKConfig, SigmoidConfig, SwitchConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.data.load import load_data
from moe_cli.execution import data, memory
from moe_cli.execution.estimate import RunEstimate, estimate_runs
from moe_cli.execution.memory import PROCESS_BYTES, memory_bytes
from moe_cli.runs.folder import Run, create_run
from moe_cli.sweeps.executors import fork_server, local
from moe_cli.sweeps.executors.fork_server import ForkedRun, ForkServer
from moe_cli.sweeps.executors.local import LocalPool, Slot, default_workers
from moe_cli.sweeps.scheduler import ListFeed, Progress, run_all
from tests.tiny import tiny_config
from tests.training.test_resume import assert_equal_runs

GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, ten gigabytes, no GPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(local, "available_memory_bytes", lambda: 10 * GB)
    monkeypatch.setattr(local, "visible_gpus", lambda: ())


def planned(
    path: Path, outputs: Path, gigabytes: float, threads: int = 1, procs: int = 1, device: str = "auto"
) -> RunEstimate:
    """A plan whose weights take so much memory."""
    train = {"threads": threads, "device": device, "batch_size": 36}
    config = tiny_config(path, train=train, launch=LaunchConfig(num_processes=procs))
    (plan,) = estimate_runs([config], outputs, 1e9)
    return replace(plan, cost=replace(plan.cost, state_bytes=int(gigabytes * GB), activation_bytes=0))


@pytest.mark.usefixtures("machine")
def test_as_many_runs_as_the_machine_bears(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are cores for their threads, or GPUs; fewer when the largest is large or of several processes."""

    def plan(gigabytes: float, **how: Any) -> RunEstimate:
        return planned(text_file, tmp_path, gigabytes, **how)

    monkeypatch.setattr(memory, "PROCESS_BYTES", 0)
    assert 8 == default_workers([plan(0.1)])
    assert 4 == default_workers([plan(0.1), plan(0.1, threads=2)])
    assert 3 == default_workers([plan(0.1), plan(3)])
    assert 1 == default_workers([plan(50)])
    assert 4 == default_workers([plan(0.1, procs=2)])
    assert 1 == default_workers([plan(0.1, procs=9)])
    monkeypatch.setattr(local, "visible_gpus", lambda: ("0", "1"))
    assert (2, 8) == (default_workers([plan(0.1)]), default_workers([plan(0.1, device="cpu")]))


class Idle:
    """A job that goes on."""

    pid = None
    environment: dict[str, str]

    def __init__(self, run: Run, outputs: Path, environment: dict[str, str]) -> None:
        self.run, self.environment, self.killed = run, environment, False

    def poll(self) -> int | None:
        return None

    def kill(self) -> None:
        self.killed = True


class IdleForkServer:
    """A parent of forks that does nothing."""

    gone = ready = False

    def __init__(self, outputs: Path, environment: dict[str, str]) -> None: ...

    def start(self, run: Run, outputs: Path) -> Idle:
        return Idle(run, outputs, {"forked": "yes"})

    def close(self) -> None: ...


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, machine: None) -> None:
    """Nothing is really started."""
    monkeypatch.setattr(local, "Process", Idle)
    monkeypatch.setattr(local, "ForkServer", IdleForkServer)


def make(outputs: Path, text: Path, *configs: dict[str, object]) -> list[Run]:
    return [create_run(outputs, "sweep", tiny_config(text, **each)) for each in configs]


@pytest.mark.usefixtures("idle")
def test_gpus_are_handed_out_to_the_runs_that_use_them(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the one with the least to do, several for several processes, none where it asks for none or a certain one."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ("4", "5", "GPU-7"))
    pool = LocalPool(tmp_path, 9)
    devices = ("auto", "cpu", "cuda", "cuda:1", "auto", "auto")
    runs = make(tmp_path, text_file, *({"train": {"device": device}} for device in devices))
    runs += make(tmp_path, text_file, {"train": {"device": "auto"}, "launch": {"num_processes": 2}})
    given = [pool.start(run).environment.get("CUDA_VISIBLE_DEVICES") for run in runs]
    assert ["4", None, "5", None, "GPU-7", "4", "5,GPU-7"] == given
    pool._slots.pop(0)  # the first one ends
    assert "4" == pool.start(runs[0]).environment["CUDA_VISIBLE_DEVICES"]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("changes", "gpus", "warm", "expected"),
    [
        ({}, (), True, True),
        ({}, ("0",), True, True),
        ({"train": {"device": "auto"}}, (), True, True),
        ({"train": {"device": "auto"}}, ("0",), True, False),
        ({"train": {"device": "cuda:0"}}, ("0",), True, False),
        ({"train": {"compile": True}}, (), True, False),
        ({"launch": {"num_processes": 2}}, (), True, False),
        ({}, (), False, False),
    ],
)
def test_which_runs_are_forked(
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    gpus: tuple[str, ...],
    warm: bool,
    expected: bool,
) -> None:
    """Those on a CPU that neither compile nor start processes; the others begin from nothing."""
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    pool = LocalPool(tmp_path, 1, warm)
    (run,) = make(tmp_path, text_file, changes)
    assert expected == ("forked" in pool.start(run).environment)


@pytest.mark.usefixtures("idle")
def test_the_pool_decides_on_compilation_with_the_vocabulary_of_the_worker(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The characters of the text are fewer than 256 bytes."""
    sizes: list[int] = []
    monkeypatch.setattr(local, "should_compile", lambda config, vocab_size, device: bool(sizes.append(vocab_size)))
    (run,) = make(tmp_path, text_file, {"data": {"tokenizer": "chars"}})
    LocalPool(tmp_path, 1).start(run)
    assert [len(set(text_file.read_text()))] == sizes


@pytest.mark.usefixtures("idle")
def test_a_run_fits_when_there_is_memory_for_all(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected memory of running runs, less the memory that they already hold, counts as taken."""
    first, second = make(tmp_path, text_file, {}, {"seed": 1})
    config = first.config()
    need = memory_bytes(estimate_cost(config, data.vocab_size_reader(tmp_path)(config)))
    assert PROCESS_BYTES < need < PROCESS_BYTES + 10**7
    pool = LocalPool(tmp_path, 2)
    monkeypatch.setattr(local, "available_memory_bytes", lambda: 2 * need - 1)
    assert pool.fits(first)
    pool.start(first)
    assert not pool.fits(second)
    monkeypatch.setattr(Idle, "pid", 1)
    monkeypatch.setattr(local, "resident_bytes", lambda pid: need // 2)
    assert pool.fits(second)
    monkeypatch.setattr(local, "available_memory_bytes", lambda: None)
    assert pool.fits(second)


@pytest.mark.usefixtures("idle")
def test_a_pool_loads_the_data_of_many_runs_once(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that learn from the same data share what their expected memory is computed from."""
    runs, loads = make(tmp_path, text_file, *({"seed": seed} for seed in range(3))), []
    monkeypatch.setattr(data, "load_data", lambda *given: loads.append(given) or load_data(*given))
    pool = LocalPool(tmp_path, 2)
    assert all(map(pool.fits, runs))
    assert 1 == len(loads)


@pytest.mark.usefixtures("idle")
def test_on_a_gpu_a_run_takes_main_memory_for_its_weights_alone(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are made; gradients, moments and activations lie on the GPU."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ("0", "1"))
    on_cpu, on_gpu = make(tmp_path, text_file, {}, {"train": {"device": "cuda"}})
    params = estimate_cost(on_gpu.config(), 256).num_params
    monkeypatch.setattr(local, "available_memory_bytes", lambda: int(PROCESS_BYTES) + 4 * params)
    pool = LocalPool(tmp_path, 2)
    assert (False, True) == (pool.fits(on_cpu), pool.fits(on_gpu))
    assert 1 == default_workers([planned(text_file, tmp_path, 50, device="cpu")])
    monkeypatch.setattr(local, "available_memory_bytes", lambda: 2 * int(PROCESS_BYTES) + 8 * params)
    assert 2 == default_workers([planned(text_file, tmp_path, 50, device="cuda")])


def test_what_a_place_still_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never less than nothing: a run may hold more than was expected."""
    monkeypatch.setattr(local, "resident_bytes", lambda pid: 70)
    job = Idle(Run(tmp_path), tmp_path, {})
    job.pid = 1
    assert (30, 0) == (Slot(job, 100, ()).memory_still_needed(), Slot(job, 50, ()).memory_still_needed())


CASES: list[dict[str, object]] = [
    {"seed": 3, "optim": AdamWConfig(lr=0.01)},
    {"router": SwitchConfig(jitter=0.1), "k": 1, "balance": SwitchBalance()},
    {"router": NoisyTopKConfig(), "capacity": 1.0},
    {"router": SigmoidConfig(), "balance": LossFreeBalance(), "seed": 1},
    {"train": {"threads": 2}},
    {"train": {"threads": None}},
]


def run_cases(outputs: Path, text: Path, warm: bool) -> list[Run]:
    runs = make(outputs, text, *CASES)
    progress = run_all(ListFeed(runs), LocalPool(outputs, 2, warm))
    assert set(runs) == set(progress.finished), [run.status() for run in runs]
    return runs


@pytest.mark.slow
def test_forked_runs_are_as_runs_from_nothing(tmp_path: Path, text_file: Path) -> None:
    """Routers with and without noise, seeds, numbers of threads: weights, records and results alike to the last bit."""
    cold = run_cases(tmp_path / "cold", text_file, warm=False)
    forked = run_cases(tmp_path / "warm", text_file, warm=True)
    for one, other in zip(cold, forked, strict=True):
        assert_equal_runs(one, other)
        assert one.meta()["threads"] == other.meta()["threads"]
        assert one.meta()["argv"][0] == other.meta()["argv"][0]


@pytest.mark.slow
def test_the_parent_of_forks_has_one_thread(tmp_path: Path, text_file: Path) -> None:
    """The parent of forks has one thread, so that no fork copies a held lock; runs print to their log."""
    (run,) = make(tmp_path, text_file, {"train": {"steps": 10**6}})
    pool, threads = LocalPool(tmp_path, 1), []

    def look(progress: Progress) -> None:
        assert pool._warm, "it did not start"
        if pool._server is not None and run in progress.running and run.metrics():
            threads.append(len(os.listdir(f"/proc/{pool._server.process.pid}/task")))
            os.kill(run.status()["pid"], signal.SIGUSR1)

    progress = run_all(ListFeed([run]), pool, look)
    assert [1] == sorted(set(threads))
    assert ([run], f"stopped from outside; {run.kept()}") == (
        progress.failed,
        run.status()["reason"].split(" (log")[0],
    )
    assert (run.path / "log.txt").exists()


@pytest.mark.slow
def test_when_the_parent_of_forks_dies_another_takes_its_place(tmp_path: Path, text_file: Path) -> None:
    """Its run saves, stops and is carried on from there by the next: it is neither lost nor failed."""
    (run,) = make(tmp_path, text_file, {"train": {"steps": 100, "checkpoint_every": 1}})
    pool, killed = LocalPool(tmp_path, 1), list[ForkServer]()

    def kill_once(progress: Progress) -> None:
        assert pool._warm or killed, "it did not start"
        if pool._server is not None and run in progress.running and run.metrics() and not killed:
            killed.append(pool._server)
            pool._server.process.kill()

    progress = run_all(ListFeed([run]), pool, kill_once)
    assert ([run], [], 1) == (progress.finished, progress.failed, len(killed))
    assert 2 == run.status()["starts"]
    assert list(range(1, 101)) == [each["step"] for each in run.metrics() if "train/loss" in each]


@pytest.mark.slow
def test_without_a_parent_for_forks_runs_start_from_nothing(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot start at all, a run gets a process of its own."""
    runs = make(tmp_path, text_file, {})
    monkeypatch.setattr(fork_server, "WORKER", "moe_cli.no_such_module")
    pool = LocalPool(tmp_path, 1)
    progress = run_all(ListFeed(runs), pool)
    assert (set(runs), False) == (set(progress.finished), pool._warm)


@pytest.mark.slow
def test_a_pool_at_its_end_waits_without_spinning(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one of two runs has ended and nothing more is to start, waiting sleeps: the end of the one is not heard again."""
    pool = LocalPool(tmp_path, 2, warm=False)
    short = create_run(tmp_path, "sweep", tiny_config(text_file, train={"steps": 1}))
    job = pool.start(short)
    while job.poll() is None:
        pool.wait(1.0)
    waits: list[list[Any]] = []
    monkeypatch.setattr(local.select, "select", lambda ends, *rest: waits.append(list(ends)))
    pool.wait(1.0)
    assert [[]] == waits
    pool.close()


def test_a_pool_with_a_run_at_work_can_be_closed_twice(text_file: Path, tmp_path: Path) -> None:
    """A second Ctrl-C kills what runs and closes the pool; the sweep closes it again at its end."""
    pool = LocalPool(tmp_path, 1)
    job = pool.start(create_run(tmp_path, "sweep", tiny_config(text_file)))
    assert isinstance(job, ForkedRun)
    pool.close()
    pool.close()
    assert job.server.process.returncode is not None
