"""Pool of runs on a Slurm cluster: each run is a job of an array, whose shell script starts the run's worker.

The scripts are plain files for `sbatch`, which a user can read. No library is needed. A sweep that ends cancels its
jobs; one that is killed leaves them running. A job loads no serialised code, and its worker receives Slurm's signals. A
job that has to leave its node saves and is queued again, by Slurm or, if Slurm does not requeue, by the end of its
script. The outputs folder must be on a file system that all nodes share, and Python at the same path on all nodes.

`slurm.json` in a run's folder names its job, so that a later sweep finds the job and does not submit it again.
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
from moe_cli.plugins import FILES_VARIABLE
from moe_cli.runs.folder import Run

JOB_FILE = "slurm.json"
# The interval between queries of all jobs. It grows by a factor while nothing changes.
MIN_POLL_SECONDS, MAX_POLL_SECONDS, POLL_GROWTH = 2.0, 30.0, 1.5
# The time that Slurm may not answer, as while it restarts, before the sweep stops with an error.
NO_ANSWER_TIMEOUT = 600.0
COMMAND_SECONDS = 60.0
# The most jobs of an array by Slurm's default settings.
MAX_JOBS = 1000
# A run is stopped if Slurm ends more of its jobs in a row than this, each before a training step.
MAX_LOSSES = 3
# Exit codes of a job whose node does not see the run, and of a shell whose worker was ended by SIGTERM.
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
# Final states without a fault of the run, which continues in another job.
RESUBMITTED_STATES = frozenset({"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED"})
# States of a job without a node.
WAITING_STATES = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})
# Reasons of waiting that do not resolve by themselves.
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
{plugins}
{python} -m moe_cli.execution.worker "$run" {outputs} &
worker=$!
# Slurm signals this shell alone or all its processes: the worker must receive the signal at least once.
trap 'kill -TERM $worker 2>/dev/null' TERM USR1 USR2
while kill -0 $worker 2>/dev/null; do
    wait $worker
    code=$?
done
# The worker was asked to save and stop. If Slurm does not requeue the job itself, its state is still RUNNING.
case $code in {stopped} | {terminated})
    if [ {requeue} = yes ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID" && exec sleep 60
    fi ;;
esac
exit $code
"""


@dataclass(frozen=True)
class State:
    """The state of a job: its name, the reason of waiting, and the script's exit code, negative for a signal."""

    name: str
    reason: str = ""
    code: int = 0


def command(*arguments: str) -> str:
    """Runs one of Slurm's commands and returns its output. Raises MoeError with its message."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise MoeError(
            f"executor=slurm needs Slurm's commands, and this machine has no {arguments[0]}.\n"
            "Sweep from a login node of the cluster, or use --executor local."
        ) from None
    except subprocess.TimeoutExpired:
        raise MoeError(f"{arguments[0]} has not answered for {COMMAND_SECONDS:.0f} seconds: is Slurm down?") from None
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise MoeError("\n".join(errors[-2:]) or f"{arguments[0]} failed with code {done.returncode}.")
    return done.stdout


def query_states() -> dict[str, State]:
    """Returns the states of this user's jobs by job number, including jobs that ended in the last minutes."""
    text = command(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={getpass.getuser()}",
        "--Format=JobArrayID:|,State:|,exit_code:|,Reason:|",
    )
    states = {}
    for line in text.splitlines():
        number, name, status, reason, *_ = (word.strip() for word in line.split("|"))
        states[number] = State(name, reason, os.waitstatus_to_exitcode(int(status)) if status.isdigit() else 0)
    return states


def sbatch_command(executor: SlurmExecutor, name: str, number: int) -> list[str]:
    """Returns the command that submits an array of `number` jobs, without its script."""
    throttle = f"%{executor.array_parallelism}" if executor.array_parallelism else ""
    options = {
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
    arguments = [f"--{key}={value}" for key, value in options.items() if value is not None]
    return ["sbatch", "--parsable", "--requeue" if executor.requeue else "--no-requeue", *arguments]


def format_script(executor: SlurmExecutor, runs: Path, outputs: Path) -> str:
    """Returns the shell script of an array's jobs: line N of the file `runs` is the folder of job N's run."""
    return SCRIPT.format(
        list=shlex.quote(str(runs)),
        python=shlex.quote(sys.executable),
        outputs=shlex.quote(str(outputs)),
        unseen=EXIT_RUN_NOT_VISIBLE,
        stopped=EXIT_INTERRUPTED,
        terminated=TERMINATED,
        setup="\n".join(executor.setup) or ":",
        plugins=f"export {FILES_VARIABLE}={shlex.quote(files)}" if (files := os.environ.get(FILES_VARIABLE)) else ":",
        requeue="yes" if executor.requeue else "no",
    )


class SlurmJob:
    """A run in a job that is queued, running or still to be submitted."""

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
        """Requests the kill once. The job counts as running until Slurm reports its end."""
        if self.code is None and not self.killed:
            self.ending, self.killed, self.code = True, True, -signal.SIGKILL if self.number is None else None
            self.pool.to_kill.append(self)


class SlurmPool:
    """Pool of runs as jobs of a Slurm cluster. It finds the jobs that earlier sweeps have submitted.

    Args:
        workers: the number of submitted runs at a time; None means all; Slurm then executes
            `executor.array_parallelism` at a time.

    Raises:
        MoeError: Slurm is not available.
    """

    def __init__(self, executor: SlurmExecutor, outputs: Path, workers: int | None) -> None:
        self.executor = executor
        self.outputs = outputs
        self._max_jobs = workers or MAX_JOBS
        self.to_stop: list[SlurmJob] = []
        self.to_kill: list[SlurmJob] = []
        self._jobs: list[SlurmJob] = []
        self._unsent: list[SlurmJob] = []
        self._losses: Counter[Path] = Counter()
        self._known = query_states()
        self._polled, self._interval, self._answered = time.monotonic(), MIN_POLL_SECONDS, time.monotonic()

    @property
    def workers(self) -> int:
        """Returns the maximum number of parallel runs by the settings of this sweep."""
        return min(self._max_jobs, self.executor.array_parallelism or self._max_jobs)

    def room(self) -> int:
        self._jobs = [job for job in self._jobs if job.code is None]
        return self._max_jobs - len(self._jobs)

    def start(self, run: Run) -> SlurmJob:
        """Prepares a job, which `refresh` submits together with the others that were started before it."""
        number = (read_json(run.path / JOB_FILE) or {}).get("job")
        state = self._known.get(str(number))
        job = SlurmJob(self, run, str(number) if state and state.name not in TERMINAL_STATES else None)
        self._jobs.append(job)
        if job.number is None:
            self._unsent.append(job)
        return job

    def queued(self, number: str | None) -> bool:
        """Returns whether a job waits for a node, also before its state is first queried."""
        state = self._known.get(number) if number else None
        return state is None or state.name in WAITING_STATES

    def refresh(self) -> None:
        """Submits and cancels jobs as requested, and queries their states if the interval has passed."""
        self._submit()
        self._cancel()
        now = time.monotonic()
        if now - self._polled < self._interval:
            return
        self._polled = now
        try:
            known = query_states()
        except MoeError:
            if now - self._answered > NO_ANSWER_TIMEOUT:
                raise
            return
        longer = min(MAX_POLL_SECONDS, POLL_GROWTH * self._interval)
        self._interval = MIN_POLL_SECONDS if known != self._known else longer
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
            self._interval = MIN_POLL_SECONDS

    def _submit(self) -> None:
        """Submits the started jobs as one array, without those that were stopped meanwhile."""
        jobs, self._unsent = [job for job in self._unsent if not job.ending], []
        if not jobs:
            return
        folder = make_folder(self.outputs / ".slurm")
        name = f"{jobs[0].run.sweep}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        runs, file = folder / f"{name}.runs", folder / f"{name}.sh"
        write_text(runs, "".join(f"{job.run.path}\n" for job in jobs))
        write_text(file, format_script(self.executor, runs, self.outputs))
        arguments = sbatch_command(self.executor, f"moe-{jobs[0].run.sweep}", len(jobs))
        array = command(*arguments, str(file)).strip().split(";")[0]
        for number, job in enumerate(jobs, start=1):
            job.number = f"{array}_{number}"
            write_json(job.run.path / JOB_FILE, {"job": job.number, "script": str(file)})
        self._polled, self._interval = time.monotonic(), MIN_POLL_SECONDS

    def _outcome(self, job: SlurmJob, state: State | None) -> int | None:
        """Returns the exit code of a job that has ended, else None. A job that Slurm does not know has ended."""
        if state is not None and state.name not in TERMINAL_STATES:
            if state.name == "PENDING" and state.reason in UNSCHEDULABLE_REASONS and not job.ending:
                raise MoeError(
                    f"Slurm will not start {job.run.id}: {state.reason} (job {job.number}).\n"
                    "Change the settings executor.*; the same command continues."
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
                "Runs on Slurm need outputs, data and Python at the same paths on all nodes. "
                "Give a shared folder: --outputs DIR"
            )
        if state is not None and state.name == "OUT_OF_MEMORY":
            return -signal.SIGKILL
        if state is None or state.name in RESUBMITTED_STATES or state.code in (0, EXIT_INTERRUPTED, TERMINATED):
            return self._resubmission_code(job)
        return state.code if state.code < 128 else 128 - state.code

    def _resubmission_code(self, job: SlurmJob) -> int:
        """Returns EXIT_BUSY for a run whose job was ended from outside, so that it gets another job.

        After MAX_LOSSES jobs without a training step it returns EXIT_INTERRUPTED.
        """
        progressed = job.run.status().get("step") != job.step
        self._losses[job.run.path] = 0 if progressed else self._losses[job.run.path] + 1
        return EXIT_BUSY if self._losses[job.run.path] <= MAX_LOSSES else EXIT_INTERRUPTED

    def close(self) -> None:
        """Cancels all jobs. If this process is killed instead, its jobs go on."""
        self._unsent.clear()
        for job in self._jobs:
            job.kill()
        self._cancel()
