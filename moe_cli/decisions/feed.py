"""Feed of a decision: runs what the controller wants, and gives it the outcomes that run folders hold.

The controller is a pure function of the outcomes so far, so that the folders are the only state. A process that starts
in the midst of a decision repeats all steps from the first, reads the outcome of each run that has ended, and so finds
what is wanted now. Several processes find the same; the locks of the run folders divide the runs among them.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moe_cli.decisions.controller import next_step
from moe_cli.decisions.plan import DecisionPlan
from moe_cli.decisions.terms import Candidate, DecisionLimit, Outcome, RunRequest, Step
from moe_cli.files.reading import number_in
from moe_cli.runs.folder import FAILED, Run, open_or_create_run
from moe_cli.sweeps.scheduler import ListFeed

Results = dict[RunRequest, Outcome]
ReadOutcome = Callable[[Run], Outcome | None]


def read_outcome(run: Run) -> Outcome | None:
    """Returns the outcome of a run that has completed or failed, else None.

    The loss is in bits per byte, or in nats per token or other target if the bytes are unknown. The seconds are those
    of the whole run, evaluations included; after a resumption at least those of its training.
    """
    status, summary = run.status(), run.summary()
    started, ended = number_in(status.get("started")), number_in(status.get("heartbeat"))
    seconds = max(0.0, ended - started) if started is not None and ended is not None else 0.0
    if summary is not None:
        loss = number_in(summary.get("val_bpb"))
        loss = number_in(summary.get("val_loss")) if loss is None else loss
        seconds = max(seconds, number_in(summary.get("seconds")) or 0.0)
        return Outcome(loss, seconds, "" if loss is not None else "summary.json has no validation loss")
    if status.get("status") != FAILED:
        return None
    reason = str(status.get("reason") or "see traceback.txt").strip().splitlines()
    return Outcome(None, seconds, reason[0] if reason else "see traceback.txt")


def read_success(run: Run) -> Outcome | None:
    """Returns the outcome of a run that has completed, else None: a run that failed may run again."""
    found = read_outcome(run)
    return found if found is not None and (found.loss is not None or run.summary() is not None) else None


def replay(
    plan: DecisionPlan,
    candidates: Sequence[Candidate],
    limit: DecisionLimit,
    outputs: Path,
    outcome: ReadOutcome = read_outcome,
    results: Results | None = None,
) -> Step:
    """Returns the step that follows from the outcomes in the run folders. Adds those outcomes to `results`."""
    results = {} if results is None else results
    while True:
        step = next_step(candidates, plan.rules, results, limit)
        found = {request: outcome(run_of(plan, request, outputs)) for request in step.wanted}
        new = {request: result for request, result in found.items() if result is not None}
        if step.decision is not None or not new:
            return step
        results.update(new)


def run_of(plan: DecisionPlan, request: RunRequest, outputs: Path) -> Run:
    """Returns the run folder of a request, which may not exist yet."""
    return Run(outputs / plan.name / plan.config(request).run_id)


class DecisionFeed(ListFeed):
    """Gives the runs that the controller wants.

    Args:
        candidates: the candidates with their expected seconds.
        limit: the limits of the command, with the number of parallel runs.
        retry_failed: whether a run that failed before this process started runs again.
    """

    def __init__(
        self,
        plan: DecisionPlan,
        candidates: Sequence[Candidate],
        outputs: Path,
        limit: DecisionLimit,
        retry_failed: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.candidates = candidates
        self.outputs = outputs
        self.limit = limit
        self.retry_failed = retry_failed
        self.results: Results = {}
        self.requests: dict[Path, RunRequest] = {}
        self._ended: set[Run] = set()
        self.step = self._advance()

    @property
    def labels(self) -> Mapping[Path, str]:
        return {path: self.plan.label(request) for path, request in self.requests.items()}

    def ended(self, run: Run) -> None:
        super().ended(run)
        self._ended.add(run)
        self.step = self._advance()

    def _advance(self) -> Step:
        """Returns the next step, and queues its runs that are not queued or running yet."""
        # Another process may run a failed run again, so that its failure is no final outcome here.
        self.results = {request: result for request, result in self.results.items() if result.loss is not None}
        step = replay(self.plan, self.candidates, self.limit, self.outputs, self._outcome, self.results)
        wanted = {run_of(self.plan, request, self.outputs): request for request in step.wanted}
        self._waiting = deque(run for run in self._waiting if run in wanted)
        known = {*self._waiting, *self._busy, *self._active}
        for run, request in wanted.items():
            if run not in known:
                open_or_create_run(self.outputs, self.plan.name, self.plan.config(request))
                self.requests[run.path] = request
                self._waiting.append(run)
        return step

    def _outcome(self, run: Run) -> Outcome | None:
        """Returns the outcome of a run that has ended and does not run again in this process."""
        runs_again = run in self._busy or (self.retry_failed and run not in self._ended)
        return read_success(run) if runs_again else read_outcome(run)
