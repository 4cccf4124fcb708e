"""Scores bets against the runs that were made after them, and keeps the record of their calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_cli.report.intervals import proportion_interval
from moe_cli.report.load import read_rows
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.bet_forecast import runs_by_digest, runs_of
from moe_cli.report.scaling.bets import FOLDER, Bet, read_bets
from moe_cli.runs.folder import COMPLETED
from moe_cli.runs.lookup import find_sweep, list_runs


@dataclass(frozen=True)
class Outcome:
    """The result of a bet.

    Attributes:
        seeds: the seeds of the bet with a complete run that was made after it.
        measured: their mean loss; None until all are there.
        inside: whether it lies in the interval.
        baseline_measured: the mean loss of the dense model with these seeds; None until all are there.
        won: whether the configuration has the lower mean loss.
    """

    bet: Bet
    seeds: tuple[int, ...]
    measured: float | None
    inside: bool | None
    baseline_measured: float | None
    won: bool | None

    @property
    def right(self) -> bool | None:
        """Returns whether the winner was predicted: with a probability above one half for it."""
        return None if self.won is None or self.bet.wins is None else (self.bet.wins > 0.5) == self.won


@dataclass(frozen=True)
class Calibration:
    """The record over all scored bets.

    Attributes:
        bets, scored: the number of bets, and of those with an outcome.
        inside: the number of outcomes in their 80 % interval.
        coverage: their fraction, and its 95 % interval `coverage_low` to `coverage_high`; None without an outcome.
        mean_width: the mean width of the intervals of scored bets, relative to the predicted loss.
        winners, right: the number of bets whose winner is known, and of those that predicted it.
        brier: the mean squared difference of the probability and the outcome, 1 or 0 (Brier 1950); a probability of
            one half scores 0.25.
    """

    bets: int
    scored: int
    inside: int
    coverage: float | None
    coverage_low: float | None
    coverage_high: float | None
    mean_width: float | None
    winners: int
    right: int
    brier: float | None


def bet_folders(outputs: Path, sweeps: Sequence[str]) -> list[Path]:
    """Returns the folders of these sweeps, or of all sweeps with bets. Raises RunNotFound if a sweep does not exist."""
    if not sweeps:
        return sorted(path.parent for path in outputs.glob(f"*/{FOLDER}") if path.is_dir())
    return list(dict.fromkeys(find_sweep(outputs, sweep) for sweep in sweeps))


def score_bets(outputs: Path, sweeps: Sequence[str] = ()) -> list[Outcome]:
    """Returns the outcome of each bet of these sweeps, or of all sweeps, in the order of their times."""
    bets = read_bets(bet_folders(outputs, sweeps))
    known = runs_by_digest([row for row in read_rows(list_runs(outputs)) if row.status == COMPLETED]) if bets else {}
    return [score(bet, known) for bet in bets]


def score(bet: Bet, known: Mapping[str, Sequence[RunRow]]) -> Outcome:
    """Returns the outcome of a bet.

    Args:
        known: complete runs by their digests, see `runs_by_digest`. Runs of other data or seeds, and runs of the
            configuration that are older than the bet, do not count: the interval is for the seeds of the bet.
    """
    own = {
        seed: loss
        for seed, (loss, created) in _losses(bet, bet.configuration, known).items()
        if seed in bet.seeds and created is not None and created >= bet.placed
    }
    seeds = tuple(sorted(own))
    if len(seeds) < len(bet.seeds):
        return Outcome(bet, seeds, None, None, None, None)
    measured = math.fsum(own.values()) / len(own)
    inside = bet.low <= measured <= bet.high
    base = {} if bet.baseline is None else _losses(bet, bet.baseline, known)
    shared = [seed for seed in seeds if seed in base]
    if len(shared) < len(bet.seeds):
        return Outcome(bet, seeds, measured, inside, None, None)
    baseline = math.fsum(base[seed][0] for seed in shared) / len(shared)
    won = math.fsum(own[seed] - base[seed][0] for seed in shared) < 0
    return Outcome(bet, seeds, measured, inside, baseline, won)


def _losses(
    bet: Bet, configuration: Mapping[str, Any], known: Mapping[str, Sequence[RunRow]]
) -> dict[int, tuple[float, float | None]]:
    """Returns the loss of each seed and the time at which its run was created; the newest run of a seed counts."""
    found: dict[int, tuple[float, float | None]] = {}
    for row in sorted(runs_of(known, configuration), key=lambda row: row.created or 0):
        loss = row.number(bet.metric)
        if row.seed is not None and loss is not None and row.corpus_sha256 == bet.corpus_sha256:
            found[row.seed] = loss, row.created
    return found


def calibrate(outcomes: Sequence[Outcome]) -> Calibration:
    """Computes the record over all bets that have an outcome."""
    scored = [outcome for outcome in outcomes if outcome.measured is not None]
    inside = sum(outcome.inside is True for outcome in scored)
    low, high = proportion_interval(inside, len(scored)) if scored else (None, None)
    winners = [
        (outcome.bet.wins, outcome.won, outcome.right)
        for outcome in scored
        if outcome.won is not None and outcome.bet.wins is not None
    ]
    return Calibration(
        bets=len(outcomes),
        scored=len(scored),
        inside=inside,
        coverage=inside / len(scored) if scored else None,
        coverage_low=low,
        coverage_high=high,
        mean_width=math.fsum(outcome.bet.width for outcome in scored) / len(scored) if scored else None,
        winners=len(winners),
        right=sum(right is True for _, _, right in winners),
        brier=math.fsum((wins - won) ** 2 for wins, won, _ in winners) / len(winners) if winners else None,
    )


def bets_record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns bets, outcomes and calibration as one JSON object, without the full configurations."""
    left_out = ("configuration", "baseline")
    return {
        "bets": [
            {
                **{key: value for key, value in asdict(outcome.bet).items() if key not in left_out},
                "measured_seeds": list(outcome.seeds),
                "measured": outcome.measured,
                "inside": outcome.inside,
                "baseline_measured": outcome.baseline_measured,
                "won": outcome.won,
                "right": outcome.right,
            }
            for outcome in outcomes
        ],
        "calibration": asdict(calibrate(outcomes)),
    }
