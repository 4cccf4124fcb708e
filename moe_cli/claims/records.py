"""Records of claims: a claim with its source, the values that predicates read, and what a predicate finds.

A predicate reduces the runs of each seed to one number, its statistic. The claim says in which region the mean of the
statistic over seeds lies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moe_cli.config.expressions import Expression
from moe_cli.report.intervals import t_cdf
from moe_cli.report.significance import PairedSample, Scores

if TYPE_CHECKING:
    from moe_cli.claims.predicates import Predicate

HOLDS, CONTRADICTED, CANNOT_TELL = "holds", "contradicted", "cannot tell here"


class Measured(Protocol):
    """The values of a metric in the runs of a claim, by seed; seeds without a value are absent."""

    def scores(self, metric: str, where: Expression, at: float | None = None) -> Scores:
        """Returns the values of the one configuration that meets the condition.

        Args:
            at: the fraction of the training at which the metric is read; None means its end.

        Raises:
            ConfigError: no configuration meets the condition, or several do.
        """

    def along(self, metric: str, setting: str, where: Expression) -> Mapping[float, Scores]:
        """Returns the values for each value of a setting, in ascending order, where the condition is met.

        Raises:
            ConfigError: the setting has fewer than two numbers, or several configurations share one of them.
        """

    def table(self, metrics: Sequence[str], where: Expression) -> Sequence[Sequence[Scores]]:
        """Returns the values of several metrics for each configuration that meets the condition."""


@dataclass(frozen=True)
class Region:
    """The interval in which a claim sees the mean of a statistic; None means no limit on that side."""

    low: float | None = None
    high: float | None = None

    @property
    def num_limits(self) -> int:
        return (self.low is not None) + (self.high is not None)

    def distance(self, value: float) -> float:
        """Returns how far a value is inside the region from its nearest limit; negative means outside."""
        rooms = [value - self.low] if self.low is not None else []
        rooms += [self.high - value] if self.high is not None else []
        return min(rooms)

    def p_inside(self, sample: PairedSample | None) -> float:
        """Returns the p-value of the test that the mean is outside; 1 without a spread.

        With two limits this is the larger p-value of the two one-sided tests (`equality_p_value`).
        """
        return max(self._p_values(sample, inside=True))

    def p_outside(self, sample: PairedSample | None) -> float:
        """Returns the p-value of the one-sided test that the mean is inside, at the limit that is nearer to fail."""
        return min(self._p_values(sample, inside=False))

    def _p_values(self, sample: PairedSample | None, inside: bool) -> list[float]:
        values = [_p_above(sample, self.low, inside)] if self.low is not None else []
        values += [_p_above(sample, self.high, not inside)] if self.high is not None else []
        return values


def _p_above(sample: PairedSample | None, limit: float, is_above: bool) -> float:
    """Returns the p-value of the one-sided t-test for a mean above the limit, or below it; 1 without a spread."""
    if sample is None or sample.deviation is None:
        return 1.0
    room = sample.mean - limit if is_above else limit - sample.mean
    if sample.deviation == 0:
        return 0.0 if room > 0 else 1.0
    return t_cdf(-room / sample.deviation * math.sqrt(sample.seeds), sample.seeds - 1)


@dataclass(frozen=True)
class Statistic:
    """A statistic over seeds, and the region in which the claim sees its mean.

    Attributes:
        label: the statistic in words.
        unit: `%` for relative differences (the values are shares), else the unit of the values, or empty.
        sample: its values over seeds; None without a seed that has all values.
    """

    label: str
    unit: str
    sample: PairedSample | None
    region: Region


@dataclass(frozen=True)
class Finding:
    """The finding of a predicate in runs.

    Attributes:
        tests: the statistics, to be printed.
        p_holds, p_contradicted: one-sided p-values, before any correction for several predicates.
        comparisons: the number of comparisons that `p_holds` is corrected for.
    """

    tests: tuple[Statistic, ...]
    p_holds: float
    p_contradicted: float
    comparisons: int = 1

    @property
    def deviation(self) -> float | None:
        """Returns the largest standard deviation of a statistic; None without one."""
        known = [test.sample.deviation for test in self.tests if test.sample and test.sample.deviation is not None]
        return max(known, default=None)

    @property
    def is_outside(self) -> bool:
        """Returns True if the mean of a statistic lies outside its region."""
        return any(test.sample is not None and test.region.distance(test.sample.mean) < 0 for test in self.tests)

    @property
    def num_seeds(self) -> int:
        """Returns the number of seeds of the statistic with the fewest."""
        return min(test.sample.seeds if test.sample else 0 for test in self.tests)


@dataclass(frozen=True)
class Demand:
    """The needs of a predicate that its power depends on.

    Attributes:
        distance: of the claimed effect from the nearest limit of its region; None if no effect is claimed.
        comparisons: the number of comparisons that the error rate is divided among.
        conjunctions: the number of tests that must all succeed.
    """

    distance: float | None
    comparisons: int = 1
    conjunctions: int = 1


@dataclass(frozen=True)
class Source:
    """Where a claim was published: `arxiv` is an arXiv id, `place` a table, figure or section."""

    title: str
    arxiv: str = ""
    url: str = ""
    place: str = ""


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure: a number, or text where it is a range or a rank."""

    name: str
    value: float | str


@dataclass(frozen=True)
class Published:
    """The published figures, and the setting in which they were measured."""

    setting: str
    figures: tuple[PublishedFigure, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Attributes:
        name: that of its file in conf/claim.
        sentence: the claim.
        differences: of the setting here from the published one, which may explain another result.
        predicates: parts that must all hold.
        seeds: the number of seeds of its sweep.
        presets: the names of the presets of its sweep.
    """

    name: str
    sentence: str
    source: Source
    published: Published
    differences: tuple[str, ...]
    predicates: "tuple[Predicate, ...]"
    seeds: int
    presets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A predicate after its runs: its finding and verdict, and the further seeds that would decide it.

    `more_seeds` is None where it is decided, or where no number of seeds would decide.
    """

    predicate: "Predicate"
    finding: Finding
    verdict: str
    more_seeds: int | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, with those on its parts."""

    verdict: str
    parts: tuple[Part, ...]
