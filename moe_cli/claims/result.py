"""The result of a claim: the verdict with its figures, and what would settle it; from the runs that exist."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_cli import __version__
from moe_cli.claims.measurements import RunMeasurements
from moe_cli.claims.plan import ClaimPlan
from moe_cli.claims.power import Power, analyse
from moe_cli.claims.predicates import Predicate
from moe_cli.claims.records import CANNOT_TELL, Judgement, Part, Published, Source, Statistic
from moe_cli.claims.verdict import judge
from moe_cli.formatting import plural
from moe_cli.report.run_row import RunRow
from moe_cli.runs.folder import COMPLETED, FAILED

# Advised after a verdict, where the claim has it.
ADVISED_PRESET = "workstation"
OUTSIDE = "A seed has a loss outside those of the dense model's budgets: change baseline_budgets in the claim's file."
SIZES_OF_LAPTOP = "Sizes and budgets in these lines are those without a preset."


@dataclass(frozen=True)
class RunCounts:
    """The cost of a claim: complete, failed and planned runs, and the sum of their training seconds."""

    complete: int
    failed: int
    planned: int
    seconds: float


@dataclass(frozen=True)
class FigureResult:
    """A measured figure: mean and 95 % interval over seeds, and the limits of the region in which the claim sees it.

    With the unit `%` the numbers are shares. None means not measured, or no limit.
    """

    label: str
    unit: str
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    claimed_above: float | None
    claimed_below: float | None


@dataclass(frozen=True)
class PartResult:
    """One predicate: its verdict, figures, the published effect, its power, and the further seeds that would decide."""

    kind: str
    label: str
    verdict: str
    figures: tuple[FigureResult, ...]
    published_effect: float | None
    power: Power
    more_seeds: int | None


@dataclass(frozen=True)
class ClaimResult:
    """The result of a claim.

    Attributes:
        command: the command that makes it.
        folder: the folder of the runs under outputs/.
        error_rate: that of two-sided intervals at this look; it is smaller after the first.
        date: the day of the newest complete run, as 2026-11-30; None without one.
        settle: what would decide the claim, or try it further, as sentences and commands.
    """

    claim: str
    sentence: str
    source: Source
    published: Published
    differences: tuple[str, ...]
    verdict: str
    parts: tuple[PartResult, ...]
    seeds: tuple[int, ...]
    look: int
    error_rate: float
    budget: RunCounts
    command: str
    folder: str
    date: str | None
    version: str
    settle: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_result(plan: ClaimPlan, outputs: Path) -> ClaimResult:
    """Returns the result of a claim from the runs that exist.

    While a planned run is not complete, the verdict is `cannot tell here`: an early look would be one look more, and
    the seeds without a failed run are a selection.
    """
    rows, rate = plan.rows(outputs), plan.error_rate(outputs)
    measured = RunMeasurements(rows)
    claim, budget = plan.claim, _budget(rows)
    findings = [predicate.find(measured) for predicate in claim.predicates]
    judgement = judge(claim.predicates, findings, rate, plan.next_error_rate(outputs))
    powers = analyse(claim.predicates, measured, len(plan.seeds), rate)
    is_open = budget.complete < budget.planned
    verdict = CANNOT_TELL if is_open else judgement.verdict
    created = [row.created for row in rows if row.status == COMPLETED and row.created]
    return ClaimResult(
        claim.name,
        claim.sentence,
        claim.source,
        claim.published,
        (*claim.differences, *([SIZES_OF_LAPTOP] if _has_preset(plan) and claim.differences else [])),
        verdict,
        tuple(_part(part, power, is_open) for part, power in zip(judgement.parts, powers, strict=True)),
        plan.seeds,
        plan.look(outputs),
        rate,
        budget,
        plan.command,
        plan.sweep.name,
        time.strftime("%Y-%m-%d", time.gmtime(max(created))) if created else None,
        __version__,
        tuple(_settle(plan, verdict, judgement, budget)),
    )


def _budget(rows: Sequence[RunRow]) -> RunCounts:
    complete = [row for row in rows if row.status == COMPLETED]
    failed = sum(row.status == FAILED for row in rows)
    return RunCounts(len(complete), failed, len(rows), math.fsum(row.results.seconds or 0.0 for row in complete))


def _part(part: Part, power: Power, is_open: bool) -> PartResult:
    return PartResult(
        kind_of(part.predicate),
        part.predicate.label,
        CANNOT_TELL if is_open else part.verdict,
        tuple(map(_figure, part.finding.tests)),
        part.predicate.effect,
        power,
        None if is_open else part.more_seeds,
    )


def kind_of(predicate: Predicate) -> str:
    """Returns the name of a predicate in files: same_argmin."""
    name = type(predicate).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _figure(test: Statistic) -> FigureResult:
    sample, region = test.sample, test.region
    if sample is None:
        return FigureResult(test.label, test.unit, None, None, None, 0, region.low, region.high)
    half = sample.half_width()
    low, high = (None, None) if half is None else (sample.mean - half, sample.mean + half)
    return FigureResult(test.label, test.unit, sample.mean, low, high, sample.seeds, region.low, region.high)


def _has_preset(plan: ClaimPlan) -> bool:
    return any(word.startswith("preset=") for word in plan.overrides)


def _settle(plan: ClaimPlan, verdict: str, judgement: Judgement, budget: RunCounts) -> list[str]:
    """Returns what would decide the claim, or try it further, as sentences and commands."""
    command = plan.command
    if open_runs := budget.planned - budget.complete - budget.failed:
        return [f"{plural(open_runs, 'run')} of {budget.planned} not ended. The same command continues:", command]
    if budget.failed:
        return [
            f"{plural(budget.failed, 'run')} failed, and the seeds that are left are a selection. To retry:",
            f"{command} --retry-failed",
            "If they fail again, change a setting of all runs, such as optim.lr, under another --name. The reasons:",
            f"moe runs ls {plan.sweep.name}",
        ]
    found = []
    if verdict == CANNOT_TELL:
        open_parts = [part for part in judgement.parts if part.verdict == CANNOT_TELL]
        if missing := [part for part in open_parts if not part.finding.num_seeds]:
            found.append(f"There are no values for: {missing[0].predicate.label}.")
            found += [OUTSIDE] if missing[0].predicate.is_speedup_ratio else []
        elif more := _more_seeds(open_parts):
            total = len(plan.seeds) + more
            found.append(f"About {total} seeds, if the measured means are true:")
            found.append(plan.command_with(["--seeds", str(total)]))
        else:
            found.append("No number of seeds below a thousand: the measured mean is too near to the limit.")
    if ADVISED_PRESET in plan.claim.presets and not _has_preset(plan):
        found += ["A setting nearer to the published one:", plan.command_with([f"preset={ADVISED_PRESET}"])]
    return found


def _more_seeds(open_parts: Sequence[Part]) -> int | None:
    """Returns the further seeds that decide the claim, if the measured means are true; None if none do.

    One part that is contradicted decides it. Otherwise all parts must hold.
    """
    contradicting = [part.more_seeds for part in open_parts if part.more_seeds and part.finding.is_outside]
    if contradicting:
        return min(contradicting)
    needed = [part.more_seeds for part in open_parts if part.more_seeds is not None]
    return max(needed) if len(needed) == len(open_parts) else None
