"""Standings of candidates and the noise of their runs, to plan and to choose: no claim rests on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_cli.decisions.terms import Interval
from moe_cli.report.intervals import t_quantile
from moe_cli.report.significance import Scores, paired


@dataclass(frozen=True)
class Noise:
    """The relative standard deviation of one run about the effects of its candidate and seed, with its degrees."""

    deviation: float
    df: int

    def standard_error(self, seeds: int) -> float:
        """Returns the standard error of a difference of two candidates over shared seeds."""
        return self.deviation * math.sqrt(2 / seeds)


def pooled_noise(groups: Sequence[Mapping[str, Scores]]) -> Noise | None:
    """Pools the noise of candidates over groups of runs with the same budget; None if no candidate has two seeds.

    The residuals of a two-way table, candidates x shared seeds, of log losses: (candidates - 1) (seeds - 1) degrees.
    The noise of candidates may differ.
    """
    squares, df = 0.0, 0
    for group in groups:
        shared = sorted(set.intersection(*(set(scores) for scores in group.values()))) if group else []
        if len(group) < 2 or len(shared) < 2:
            continue
        rows = [[math.log(scores[seed]) for seed in shared] for scores in group.values()]
        columns = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        centre = math.fsum(columns) / len(columns)
        for row in rows:
            mean = math.fsum(row) / len(row)
            squares += math.fsum((x - mean - column + centre) ** 2 for x, column in zip(row, columns, strict=True))
        df += (len(rows) - 1) * (len(shared) - 1)
    return Noise(math.sqrt(squares / df), df) if df else None


@dataclass(frozen=True)
class Standings:
    """Candidates in order of their mean loss over shared seeds, and how far each is behind the first."""

    order: tuple[str, ...]
    differences: Mapping[str, Interval]

    def is_behind(self, name: str, safety: float) -> bool:
        """Says whether a candidate is behind the leader by more than the interval and a safety."""
        low = self.differences[name].low if name in self.differences else None
        return low is not None and low > safety


def rank(scores: Mapping[str, Scores], noise: Noise | None, alpha: float) -> Standings:
    """Compares candidates with the leader over the seeds of each pair.

    The leader is the lowest of those with the most seeds. Intervals are one-sided at `alpha` over all comparisons.
    """
    most = max(len(seeds) for seeds in scores.values())
    complete = [name for name in scores if len(scores[name]) == most]
    leader = min(complete, key=lambda name: math.fsum(scores[name].values()))
    differences = {}
    for name in scores:
        sample = paired(scores[name], scores[leader]) if name != leader else None
        if sample is None:
            continue
        width = None
        if noise is not None:
            width = t_quantile(1 - alpha / (len(scores) - 1), noise.df) * noise.standard_error(sample.seeds)
        low, high = (None, None) if width is None else (sample.mean - width, sample.mean + width)
        differences[name] = Interval(sample.mean, low, high, sample.seeds)
    order = sorted(differences, key=lambda name: differences[name].mean)
    return Standings((leader, *order), differences)
