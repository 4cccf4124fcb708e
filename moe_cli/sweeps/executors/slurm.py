"""The pool of a Slurm cluster: runs as jobs of an array, each a shell script that starts the run's worker.

The scripts are plain files for `sbatch`, without a library in between. A user can read a job's file. A job continues
after the sweep that submitted it has ended. It loads no data that could execute code. Its worker receives Slurm's
signals directly. A job that must leave its node saves and is queued again: by Slurm, or by the last line of its script
where Slurm does not requeue. The outputs folder must be on a file system that all nodes see. This Python must be at the
same path on all of them.

`slurm.json` in the run's folder names the run's job, so that a later sweep finds the job and does not submit it again.
"""

import getpass
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_cli.config.executors import SlurmExecutor
from moe_cli.errors import MoeError
from moe_cli.execution.worker import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.files.reading import read_json
from moe_cli.files.writing import delete, make_folder, write_json, write_text
from moe_cli.runs.folder import Run

JOB_FILE = "slurm.json"
# All jobs are queried in one call. The interval grows by SLOWER while nothing changes.
MIN_SECONDS, MAX_SECONDS, SLOWER = 2.0, 30.0, 1.5
# So long Slurm may be out of reach, as it is while it is restarted.
NO_ANSWER_TIMEOUT = 600.0
COMMAND_SECONDS = 60.0
# As many jobs as an array may have on a cluster with Slurm's own settings.
MAX_JOBS = 1000
# After this many lost jobs without a step in between the run itself is taken to be the cause.
MAX_LOSSES = 3
# Exit codes of a job: it sees no run; a shell's word for a worker that SIGTERM has ended.
EXIT_RUN_NOT_VISIBLE, TERMINATED = 66, 143
TERMINAL_STATES = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "CANCELLED",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "REVOKED",
    }
)
# States that end a job without a fault of the run: it continues in another job.
PREEMPTED_STATES = frozenset({"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED"})
# It has no node yet, or none any more.
WAITING_STATES = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})
# Reasons for which a job waits that do not pass.
UNSCHEDULABLE_REASONS = frozenset(
    {
        "PartitionConfig",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "AccountNotAllowed",
        "QOSNotAllowed",
    }
)

SCRIPT = """\
#!/bin/sh
run=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {list})
[ -f "$run/config.json" ] && [ -x {python} ] || exit {unseen}
exec >>"$run/log.txt" 2>&1
{setup}
{python} -m moe_cli.execution.worker "$run" {outputs} &
worker=$!
# Slurm tells this shell alone what is to come, or everybody: the worker must hear it once at least.
trap 'kill -TERM $worker 2>/dev/null' TERM USR1 USR2
while kill -0 $worker 2>/dev/null; do
    wait $worker
    code=$?
done
# Asked to save and stop, by something that does not queue the job again itself: this job is still said to be running.
case $code in {stopped} | {terminated})
    if [ {requeue} = yes ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID" && exec sleep 60
    fi ;;
esac
exit $code
"""


@dataclass(frozen=True)
class State:
    """A job in Slurm: its state, why it waits, and how its script ended (negative: by a signal)."""

    name: str
    reason: str = ""
    code: int = 0


def command(*words: str) -> str:
    """Runs one of Slurm's commands and returns its output. Raises MoeError with its message."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise MoeError(
            f"executor=slurm needs Slurm's commands, and there is no {words[0]} here.\n"
            "Sweep from a login node of the cluster, or use --executor local."
        ) from None
    except subprocess.TimeoutExpired:
        raise MoeError(f"{words[0]} has not answered for {COMMAND_SECONDS:.0f} seconds: is Slurm down?") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise MoeError("\n".join(said[-2:]) or f"{words[0]} failed with code {done.returncode}.")
    return done.stdout


def states() -> dict[str, State]:
    """Returns all jobs of this user that Slurm remembers, including those that ended in the last minutes."""
    text = command(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={getpass.getuser()}",
        "--Format=JobArrayID:|,State:|,exit_code:|,Reason:|",
    )
    found = {}
    for line in text.splitlines():
        number, name, status, reason, *_ = (word.strip() for word in line.split("|"))
        found[number] = State(name, reason, os.waitstatus_to_exitcode(int(status)) if status.isdigit() else 0)
    return found


def submission(executor: SlurmExecutor, name: str, number: int) -> list[str]:
    """Returns the command that sends an array of `number` jobs, without its script."""
    throttle = f"%{executor.array_parallelism}" if executor.array_parallelism else ""
    wanted = {
        "partition": executor.partition,
        "account": executor.account,
        "qos": executor.qos,
        "mem": executor.mem,
        "constraint": executor.constraint,
        "gres": executor.gres,
        "gpus": executor.gpus,
        "time": executor.time,
        "cpus-per-task": executor.cpus,
        "signal": f"B:USR1@{executor.save_seconds}",
        "array": f"1-{number}{throttle}",
        "job-name": name,
        "output": "/dev/null",
        "nodes": 1,
        "ntasks": 1,
    }
    options = [f"--{key}={value}" for key, value in wanted.items() if value is not None]
    return ["sbatch", "--parsable", "--requeue" if executor.requeue else "--no-requeue", *options]


def script(executor: SlurmExecutor, runs: Path, outputs: Path) -> str:
    """Returns the shell script of an array's jobs: line N of the file `runs` is the folder of job N's run."""
    return SCRIPT.format(
        list=shlex.quote(str(runs)),
        python=shlex.quote(sys.executable),
        outputs=shlex.quote(str(outputs)),
        unseen=EXIT_RUN_NOT_VISIBLE,
        stopped=EXIT_INTERRUPTED,
        terminated=TERMINATED,
        setup="\n".join(executor.setup) or ":",
        requeue="yes" if executor.requeue else "no",
    )


class SlurmJob:
    """A run in a job that is queued, at work or about to be sent."""

    def __init__(self, pool: "SlurmPool", run: Run, number: str | None) -> None:
        self.pool, self.run, self.number = pool, run, number
        self.step = run.status().get("step")
        self.code: int | None = None
        self.ending = False
        self.killed = False

    def poll(self) -> int | None:
        self.pool.refresh()
        return self.code

    def queued(self) -> bool:
        return self.code is None and self.pool.queued(self.number)

    def stop(self) -> None:
        if self.code is None:
            self.ending, self.code = True, EXIT_INTERRUPTED if self.number is None else None
            self.pool.to_stop.append(self)

    def kill(self) -> None:
        """Requests the kill once. The job ends when Slurm reports it; until then its worker may still hold the run."""
        if self.code is None and not self.killed:
            self.ending, self.killed, self.code = True, True, -signal.SIGKILL if self.number is None else None
            self.pool.to_kill.append(self)


class SlurmPool:
    """Pool of runs as jobs of a Slurm cluster. Jobs that exist already are found again.

    Args:
        workers: the number of runs submitted at a time; None means all; Slurm then runs
            `executor.array_parallelism` at a time.

    Raises:
        MoeError: Slurm is not available.
    """

    def __init__(self, executor: SlurmExecutor, outputs: Path, workers: int | None) -> None:
        self.executor = executor
        self.outputs = outputs
        self._most = workers or MAX_JOBS
        self.to_stop: list[SlurmJob] = []
        self.to_kill: list[SlurmJob] = []
        self._jobs: list[SlurmJob] = []
        self._unsent: list[SlurmJob] = []
        self._losses: Counter[Path] = Counter()
        self._known = states()
        self._looked, self._pause, self._answered = time.monotonic(), MIN_SECONDS, time.monotonic()

    @property
    def workers(self) -> int:
        """Returns the maximum number of parallel runs, as limited by this sweep's settings."""
        return min(self._most, self.executor.array_parallelism or self._most)

    def room(self) -> int:
        self._jobs = [job for job in self._jobs if job.code is None]
        return self._most - len(self._jobs)

    def start(self, run: Run) -> SlurmJob:
        """Queues the job, to be submitted with all others that are started before the next query."""
        number = (read_json(run.path / JOB_FILE) or {}).get("job")
        state = self._known.get(str(number))
        job = SlurmJob(self, run, str(number) if state and state.name not in TERMINAL_STATES else None)
        self._jobs.append(job)
        if job.number is None:
            self._unsent.append(job)
        return job

    def queued(self, number: str | None) -> bool:
        """Returns whether a job waits for a node.

        A job whose state has not been queried since submission counts as waiting.
        """
        state = self._known.get(number) if number else None
        return state is None or state.name in WAITING_STATES

    def refresh(self) -> None:
        """Submits and cancels jobs as requested, and queries their states if the interval has passed."""
        self._send()
        self._cancel()
        now = time.monotonic()
        if now - self._looked < self._pause:
            return
        self._looked = now
        try:
            known = states()
        except MoeError:
            if now - self._answered > NO_ANSWER_TIMEOUT:
                raise
            return
        self._pause = MIN_SECONDS if known != self._known else min(MAX_SECONDS, SLOWER * self._pause)
        self._known, self._answered = known, now
        for job in self._jobs:
            if job.code is None and job.number is not None:
                job.code = self._outcome(job, known.get(job.number))

    def _cancel(self) -> None:
        """Cancels jobs in one call. Slurm sends SIGTERM, and SIGKILL after its KillWait."""
        killed = [job.number for job in self.to_kill if job.number]
        stopped = [job.number for job in self.to_stop if job.number and job.code is None]
        self.to_stop, self.to_kill = [], []
        if killed:
            with suppress(MoeError):  # queued jobs take no signal
                command("scancel", "--signal=KILL", "--full", *killed)
        if killed or stopped:
            command("scancel", *killed, *stopped)
            self._pause = MIN_SECONDS

    def _send(self) -> None:
        """Submits one array of all started jobs, without those that were stopped before."""
        jobs, self._unsent = [job for job in self._unsent if not job.ending], []
        if not jobs:
            return
        folder = make_folder(self.outputs / ".slurm")
        name = f"{jobs[0].run.group}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        runs, file = folder / f"{name}.runs", folder / f"{name}.sh"
        write_text(runs, "".join(f"{job.run.path}\n" for job in jobs))
        write_text(file, script(self.executor, runs, self.outputs))
        words = submission(self.executor, f"moe-{jobs[0].run.group}", len(jobs))
        array = command(*words, str(file)).strip().split(";")[0]
        for number, job in enumerate(jobs, start=1):
            job.number = f"{array}_{number}"
            write_json(job.run.path / JOB_FILE, {"job": job.number, "script": str(file)})
        self._looked, self._pause = time.monotonic(), MIN_SECONDS

    def _outcome(self, job: SlurmJob, state: State | None) -> int | None:
        """Returns the result of `Job.poll` for a job that is over, else None.

        A job that Slurm has forgotten is over.
        """
        if state is not None and state.name not in TERMINAL_STATES:
            if state.name == "PENDING" and state.reason in UNSCHEDULABLE_REASONS and not job.ending:
                raise MoeError(
                    f"Slurm will not start {job.run.id}: {state.reason} (job {job.number}).\n"
                    "Change what executor. asks for; the same command goes on from there."
                )
            return None
        delete(job.run.path / JOB_FILE, missing_ok=True)
        if job.run.summary() is not None:
            return EXIT_OK
        if job.ending or (state is not None and state.name == "CANCELLED"):
            return -signal.SIGKILL if job.killed else EXIT_INTERRUPTED
        if state is not None and state.code == EXIT_RUN_NOT_VISIBLE:
            raise MoeError(
                f"a node does not see {job.run.path}, or {sys.executable} (job {job.number}).\n"
                "Runs on Slurm need outputs, data and Python at the same paths on all nodes. Give a shared folder: --outputs DIR"
            )
        if state is not None and state.name == "OUT_OF_MEMORY":
            return -signal.SIGKILL
        if state is None or state.name in PREEMPTED_STATES or state.code in (0, EXIT_INTERRUPTED, TERMINATED):
            return self._again(job)
        return state.code if state.code < 128 else 128 - state.code

    def _again(self, job: SlurmJob) -> int:
        """Returns the exit code of a run whose job was ended from outside: another job, a few times without a step."""
        moved = job.run.status().get("step") != job.step
        self._losses[job.run.path] = 0 if moved else self._losses[job.run.path] + 1
        return EXIT_BUSY if self._losses[job.run.path] <= MAX_LOSSES else EXIT_INTERRUPTED

    def close(self) -> None:
        """Leaves no job behind. If this process is killed, they stay: that is how a sweep can be left alone."""
        self._unsent.clear()
        for job in self._jobs:
            job.kill()
        self._cancel()
