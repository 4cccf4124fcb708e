"""Runs as jobs of Slurm: what is sent, what is asked, and what becomes of a job; and for real, on two nodes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.executors import SlurmExecutor
from moe_cli.errors import MoeError
from moe_cli.execution.worker import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.files.reading import read_json
from moe_cli.runs.folder import Run
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps.executors import slurm as slurm_pool
from moe_cli.sweeps.executors.local import LocalPool
from moe_cli.sweeps.executors.slurm import SlurmPool, format_script, sbatch_command
from moe_cli.sweeps.scheduler import Job, ListFeed, Progress, run_all
from tests.sweeps.clusters import HAS_SLURM, NO_SLURM, make_runs, slurm_daemons, wait_until
from tests.training.test_resume import assert_equal_runs

needs_slurm = pytest.mark.skipif(not HAS_SLURM, reason=NO_SLURM)


class FakeSlurm:
    """Slurm's commands: remembers what was called; `jobs` is what squeue tells."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, int, str]] = {}
        self.calls: list[tuple[str, ...]] = []
        self.now = 0.0

    def command(self, *words: str) -> str:
        self.calls.append(words)
        if words[0] == "sbatch":
            last = next(word for word in words if word.startswith("--array=1-")).removeprefix("--array=1-")
            array = 10 * len(self.named("sbatch"))
            self.jobs |= {f"{array}_{i + 1}": ("PENDING", 0, "Priority") for i in range(int(last.split("%")[0]))}
            return f"{array};cluster\n"
        if words[0] == "squeue":
            return "".join(f"{number} |{name} |{code} |{why} |\n" for number, (name, code, why) in self.jobs.items())
        return ""

    def named(self, name: str) -> list[tuple[str, ...]]:
        return [words for words in self.calls if words[0] == name]

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm()
    monkeypatch.setattr(slurm_pool, "command", fake.command)
    monkeypatch.setattr(slurm_pool.time, "monotonic", fake.monotonic)
    return fake


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return make_runs(tmp_path / "outputs", "seed=0", "seed=1", "seed=2")


def start_all(pool: SlurmPool, runs: list[Run], slurm: FakeSlurm) -> list[Job]:
    """The runs as jobs that Slurm knows."""
    jobs: list[Job] = [pool.start(run) for run in runs]
    look(jobs, slurm)
    return jobs


def look(jobs: list[Job], slurm: FakeSlurm) -> list[int | None]:
    slurm.now += 100.0
    return [job.poll() for job in jobs]


def test_runs_are_sent_as_one_array(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """Runs that start together are one sbatch array with a limit on parallel jobs; each run's folder names its job."""
    pool = SlurmPool(SlurmExecutor(array_parallelism=2, gres="gpu:1", time="90"), tmp_path / "outputs", None)
    assert 2 == pool.workers
    start_all(pool, runs, slurm)
    ((*words, file),) = slurm.named("sbatch")
    assert {"--array=1-3%2", "--gres=gpu:1", "--time=90", "--cpus-per-task=1", "--requeue", "--signal=B:USR1@60"} < {
        *words
    }
    assert not any(word.startswith(("--partition", "--mem", "--account", "--gpus")) for word in words)
    listed = Path(file).with_suffix(".runs").read_text().splitlines()
    assert [str(run.path) for run in runs] == listed
    assert ["10_1", "10_2", "10_3"] == [(read_json(run.path / "slurm.json") or {})["job"] for run in runs]


def test_slurm_is_asked_seldom_and_about_all_at_once(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """In a minute of five looks a second at three jobs: squeue after 2 s, 3 s, 4.5 s, ..., and never per job."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)
    jobs = [pool.start(run) for run in runs]
    asked = []
    for tick in range(300):
        slurm.now = 0.2 * tick
        before = len(slurm.named("squeue"))
        for job in jobs:
            job.poll()
        asked += [slurm.now] * (len(slurm.named("squeue")) - before)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses == sorted(pauses)
    assert 4 <= len(asked) <= 8


@pytest.mark.parametrize(
    ("state", "exit_code", "outcome"),
    [
        ("PENDING", 0, None),
        ("RUNNING", 0, None),
        ("COMPLETING", 0, None),
        ("REQUEUED", 0, None),
        ("SUSPENDED", 0, None),
        ("FAILED", 1 << 8, 1),
        ("FAILED", 4 << 8, EXIT_BUSY),
        ("FAILED", 137 << 8, -9),
        ("FAILED", 9, -9),
        ("OUT_OF_MEMORY", 0, -9),
        ("CANCELLED", 130 << 8, EXIT_INTERRUPTED),
        ("TIMEOUT", 0, EXIT_BUSY),
        ("PREEMPTED", 0, EXIT_BUSY),
        ("NODE_FAIL", 0, EXIT_BUSY),
        ("FAILED", 130 << 8, EXIT_BUSY),
        ("FAILED", 143 << 8, EXIT_BUSY),
        (None, 0, EXIT_BUSY),
    ],
)
def test_what_becomes_of_a_job(
    slurm: FakeSlurm, runs: list[Run], tmp_path: Path, state: str | None, exit_code: int, outcome: int | None
) -> None:
    """Codes are the worker's; what others ended is to be sent again; a job that Slurm has forgotten is over."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)
    jobs = start_all(pool, runs[:1], slurm)
    slurm.jobs = {"10_1": (state, exit_code, "None")} if state else {}
    assert [outcome] == look(jobs, slurm)
    assert (outcome is None) == (runs[0].path / "slurm.json").exists()
    assert (outcome is not None) == (pool.room() == slurm_pool.MAX_JOBS)


def test_a_complete_run_is_done_however_its_job_ended(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """The outcome stands in the run's folder."""
    jobs = start_all(SlurmPool(SlurmExecutor(), tmp_path / "outputs", None), runs[:1], slurm)
    Recorder(runs[0]).complete({"val_bpb": 1.0})
    slurm.jobs = {"10_1": ("CANCELLED", 15, "None")}
    assert [EXIT_OK] == look(jobs, slurm)


def test_a_run_that_never_gets_a_step_further_is_given_up(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """Its job is sent again a few times only, and again as often once it has got on."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)

    def next_outcome() -> int | None:
        jobs = start_all(pool, runs[:1], slurm)
        slurm.jobs = dict.fromkeys(slurm.jobs, ("TIMEOUT", 0, "None"))
        return look(jobs, slurm)[0]

    assert [EXIT_BUSY, EXIT_BUSY, EXIT_BUSY, EXIT_INTERRUPTED] == [next_outcome() for _ in range(4)]
    jobs = start_all(pool, runs[:1], slurm)
    Recorder(runs[0]).status("interrupted", step=7)
    slurm.jobs = {}
    assert [EXIT_BUSY] == look(jobs, slurm)
    assert [EXIT_BUSY, EXIT_BUSY, EXIT_BUSY, EXIT_INTERRUPTED] == [next_outcome() for _ in range(4)]


def test_jobs_of_an_earlier_sweep_are_found(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """Queued ones are taken over, those that are over are sent again, and what is new is sent."""
    start_all(SlurmPool(SlurmExecutor(), tmp_path / "outputs", None), runs[:2], slurm)
    slurm.jobs["10_2"] = ("CANCELLED", 0, "None")
    jobs = start_all(SlurmPool(SlurmExecutor(), tmp_path / "outputs", None), runs, slurm)
    assert ["10_1", "20_1", "20_2"] == [(read_json(run.path / "slurm.json") or {})["job"] for run in runs]
    assert [None] * 3 == look(jobs, slurm)


def test_jobs_are_cancelled_in_one_call(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """Those to be stopped together, those to be killed with SIGKILL first; one that was not sent yet never is."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)
    jobs = start_all(pool, runs[:2], slurm)
    late = pool.start(runs[2])
    for job in (*jobs, late):
        job.stop()
    look(jobs, slurm)
    assert [("scancel", "10_1", "10_2")] == slurm.named("scancel")
    assert 1 == len(slurm.named("sbatch"))
    assert EXIT_INTERRUPTED == late.poll()
    slurm.calls.clear()
    pool.close()
    kills = [("scancel", "--signal=KILL", "--full", "10_1", "10_2"), ("scancel", "10_1", "10_2")]
    assert kills == slurm.named("scancel")


def test_a_killed_job_has_ended_when_slurm_says_so(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """Until then its worker may still hold the run; it is killed once however often that is asked."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)
    jobs = start_all(pool, runs[:1], slurm)
    late = pool.start(runs[1])
    slurm.jobs = {"10_1": ("RUNNING", 0, "None")}
    for _ in range(3):
        for job in (*jobs, late):
            job.kill()
        assert [None] == look(jobs, slurm)
    assert 2 == len(slurm.named("scancel"))
    assert -signal.SIGKILL == late.poll()
    slurm.jobs = {"10_1": ("CANCELLED", 9, "None")}
    assert [-signal.SIGKILL] == look(jobs, slurm)


def test_time_in_the_queue_is_separate(slurm: FakeSlurm, runs: list[Run], tmp_path: Path) -> None:
    """A job is queued until Slurm has given it a node, and again when it has lost it."""
    pool = SlurmPool(SlurmExecutor(), tmp_path / "outputs", None)
    job = pool.start(runs[0])
    seen = [job.queued()]
    for state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "RUNNING", "CANCELLED"):
        look([job], slurm)
        slurm.jobs = {"10_1": (state, 0, "None")}
        look([job], slurm)
        seen.append(job.queued())
    assert [True, True, False, False, True, False, False] == seen


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (("PENDING", 0, "PartitionConfig"), "Slurm will not start .*: PartitionConfig"),
        (("FAILED", 66 << 8, "None"), "a node does not see .*\n.*Give a shared folder: --outputs DIR"),
    ],
)
def test_what_can_never_run_ends_the_sweep(
    slurm: FakeSlurm, runs: list[Run], tmp_path: Path, state: tuple[str, int, str], said: str
) -> None:
    """A job that waits for what there is not, and outputs that nodes do not see, are errors."""
    jobs = start_all(SlurmPool(SlurmExecutor(), tmp_path / "outputs", None), runs[:1], slurm)
    slurm.jobs = {"10_1": state}
    with pytest.raises(MoeError, match=said):
        look(jobs, slurm)


def test_slurm_may_be_away_for_a_while(
    slurm: FakeSlurm, runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that does not answer ends nothing for ten minutes; then its own words are the error."""
    jobs = start_all(SlurmPool(SlurmExecutor(), tmp_path / "outputs", None), runs, slurm)

    def refuse(*words: str) -> str:
        raise MoeError("Unable to contact slurm controller")

    monkeypatch.setattr(slurm_pool, "command", refuse)
    for _ in range(5):
        assert [None] * 3 == look(jobs, slurm)
    slurm.now += 600.0
    with pytest.raises(MoeError, match="Unable to contact"):
        look(jobs, slurm)


def test_no_slurm_here_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which command is missing and what else could be done."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoeError, match=r"this machine has no squeue.\nSweep from a login node"):
        SlurmPool(SlurmExecutor(), tmp_path, None)


def test_a_job_is_a_shell_script(tmp_path: Path) -> None:
    """It is valid for sh with paths of any kind, holds the setup lines, and ends without a run that it can see."""
    odd = tmp_path / "it's $HOME; here"
    odd.mkdir()
    runs = odd / "a.runs"
    runs.write_text(f"{odd}/nothing\n")
    text = format_script(SlurmExecutor(setup=("module load x", "export A=1")), runs, odd)
    assert "\nmodule load x\nexport A=1\n" in text
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    done = subprocess.run(["sh"], input=text, text=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"}, check=False)
    assert slurm_pool.EXIT_RUN_NOT_VISIBLE == done.returncode
    assert "--no-requeue" in sbatch_command(SlurmExecutor(requeue=False), "moe", 1)


@pytest.fixture
def daemons() -> Iterator[Path]:
    with slurm_daemons() as folder:
        yield folder


def slurm_says(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def requeued() -> list[str]:
    """Jobs that have been requeued and wait: two minutes, if Slurm is left alone."""
    known = slurm_pool.query_states().items()
    return [number for number, state in known if (state.name, state.reason) == ("PENDING", "BeginTime")]


def start_now(numbers: list[str]) -> None:
    for number in numbers:
        slurm_says("scontrol", "update", f"jobid={number}", "StartTime=now")


@pytest.mark.slow
@needs_slurm
def test_a_preempted_job_goes_on_exactly(daemons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a higher partition take both nodes: what ran is requeued, resumed, and ends to the bit as if undisturbed."""
    monkeypatch.setattr(slurm_pool, "MAX_POLL_SECONDS", 2.0)
    settings = [f"train.steps=300 train.checkpoint_every=10 seed={seed}" for seed in range(2)]
    runs = make_runs(tmp_path / "outputs", *settings)
    taken: dict[str, int] = {}

    def preempt(progress: Progress) -> None:
        if not taken and all(run.checkpoints() for run in runs):
            slurm_says("sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
            taken.update({run.id: 0 for run in runs})
        waiting = requeued()
        jobs = {run: (read_json(run.path / "slurm.json") or {}).get("job") for run in runs}
        taken.update({run.id: run.status()["step"] for run in runs if jobs[run] in waiting})
        start_now(waiting)

    progress = run_all(
        ListFeed(runs), SlurmPool(SlurmExecutor(cpus=1, partition="low"), tmp_path / "outputs", None), preempt
    )
    assert (2, []) == (len(progress.finished), progress.failed)
    assert all(0 < step < 300 for step in taken.values())
    undisturbed = make_runs(tmp_path / "undisturbed", *settings)
    run_all(ListFeed(undisturbed), LocalPool(tmp_path / "undisturbed", 2))
    for run, other in zip(runs, undisturbed, strict=True):
        assert_equal_runs(run, other)


@pytest.mark.slow
@needs_slurm
def test_jobs_outlive_the_sweep_and_queue_themselves_again(daemons: Path, tmp_path: Path) -> None:
    """`moe sweep` killed with SIGKILL leaves its jobs; a job signalled to save queues itself again; the same command
    sends no run twice and completes all of them."""
    text = tmp_path / "words.txt"
    make_runs(tmp_path / "unused")
    words = [
        sys.executable,
        "-m",
        "moe_cli",
        "sweep",
        "expert=1,4,8",
        "k=1",
        "data=text",
        f"data.path={text}",
        "--executor",
        "slurm",
        "executor.cpus=1",
        "--outputs",
        str(tmp_path / "outputs"),
        *slurm_words(),
    ]
    sweep = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    folder = tmp_path / "outputs" / "sweep"
    wait_until(lambda: len(list(folder.glob("*/slurm.json"))) == 3 and any(folder.glob("*/checkpoints/step_*")))
    sweep.kill()
    sweep.wait()
    run = Run(next(folder.glob("*/checkpoints/step_*")).parents[1])
    job = json.loads((run.path / "slurm.json").read_text())["job"]
    slurm_says("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: job in requeued())
    assert "interrupted" == run.status()["status"]
    start_now([job])
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert "3 of 3 runs complete" in done.stdout
    assert 1 == len(list((tmp_path / "outputs" / ".slurm").glob("*.sh")))


def slurm_words() -> list[Any]:
    from tests.cli.conftest import TINY

    return [*TINY, "train.steps=400", "train.checkpoint_every=10"]


@pytest.mark.slow
@needs_slurm
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("executor.partition=nope", "invalid partition specified: nope"),
        ("executor.gres=gpu:1", "Invalid generic resource"),
        ("executor.constraint=fast", "Invalid feature"),
        ("executor.cpus=3", "PartitionConfig|not available|CPU count"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words(daemons: Path, tmp_path: Path, word: str, said: str) -> None:
    """Exit code 2, at most three lines, no traceback."""
    make_runs(tmp_path / "unused")
    words = [
        sys.executable,
        "-m",
        "moe_cli",
        "sweep",
        "expert=1,4",
        "k=1",
        "data=text",
        f"data.path={tmp_path / 'words.txt'}",
        "--executor=slurm",
        word,
        "--outputs",
        str(tmp_path / "outputs"),
        *slurm_words(),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode
    assert len(done.stderr.strip().splitlines()) <= 3
    assert re.search(said, done.stderr), done.stderr
