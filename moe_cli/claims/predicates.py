"""The predicates of claims: each reduces the runs of a seed to one number, and says where its mean must lie.

    order         a metric is better, or higher, in one configuration than in another, by at least a margin
    equal         it differs by less than a margin: two one-sided tests
    bound         it is above or below a number
    trend         it falls or rises along a setting: slope per doubling of the setting
    explains      its variation over configurations follows log of one size rather than log of another
    same_argmin   the best value of a setting does not move under other conditions
    crossing      one configuration is better at the smallest value of a setting, the other at the largest

Relative differences are shares of the second value; a difference of logarithms for slopes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from moe_cli.claims.records import Demand, Finding, Measured, Region, Statistic
from moe_cli.config.expressions import Expression
from moe_cli.errors import ConfigError
from moe_cli.metrics import BY_KEY
from moe_cli.report.intervals import paired_differences
from moe_cli.report.price import SPEEDUP_RATIOS
from moe_cli.report.significance import PairedSample, Scores, sample_of

RELATIVE = "%"


@dataclass(frozen=True)
class Scale:
    """The scale of a predicate's numbers: the metric, whether differences are relative, and numbers in its unit.

    Attributes:
        margin: what a difference must exceed, or, for equality, stay below.
        noise: the expected standard deviation of the statistic over seeds.
        effect: the published effect; None without one.
    """

    metric: str
    is_relative: bool
    margin: float
    noise: float
    effect: float | None = None

    @property
    def unit(self) -> str:
        unit = BY_KEY[self.metric].unit
        return RELATIVE if self.is_relative else "nats" if unit.startswith("nats") else unit

    @property
    def sign(self) -> int:
        """Returns 1 if higher values of the metric are better, -1 if lower ones are."""
        return BY_KEY[self.metric].direction

    def beyond(self, is_higher: bool) -> Region:
        """Returns the region of differences that are higher, or lower, by at least the margin."""
        return Region(low=self.margin) if is_higher else Region(high=-self.margin)

    def differences(self, values: Scores, others: Scores) -> PairedSample | None:
        """Returns the differences of two configurations over shared seeds; None without any."""
        found = (
            paired_differences(values, others)
            if self.is_relative
            else [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
        )
        return sample_of(found) if found else None


@dataclass(frozen=True)
class Predicate(ABC):
    """A part of a claim that runs can decide; `label` says what is compared."""

    label: str
    scale: Scale

    @property
    def noise(self) -> float:
        """Returns the expected standard deviation of the statistic over seeds."""
        return self.scale.noise

    @property
    def unit(self) -> str:
        """Returns the unit of statistic, effect and noise, as in `Statistic`."""
        return self.scale.unit

    @property
    def effect(self) -> float | None:
        """Returns the published effect in the unit of the statistic; None without one."""
        return self.scale.effect

    @property
    def is_speedup_ratio(self) -> bool:
        """Returns whether the metric is a ratio to the dense model, which is not known outside its budgets."""
        return self.scale.metric in SPEEDUP_RATIOS

    @abstractmethod
    def find(self, measured: Measured) -> Finding: ...

    @abstractmethod
    def demand(self, measured: Measured) -> Demand: ...

    def _one(self, sample: PairedSample | None, region: Region) -> Finding:
        test = Statistic(self.label, self.unit, sample, region)
        return Finding((test,), region.p_inside(sample), region.p_outside(sample))

    def _demand(self, region: Region, effect: float | None) -> Demand:
        return Demand(None if effect is None else region.distance(effect), conjunctions=region.num_limits)


@dataclass(frozen=True)
class Order(Predicate):
    """The metric is higher, or lower, where one condition holds than where another does, by at least the margin.

    A negative margin says that the difference has the other sign by at most that.
    """

    first: Expression
    second: Expression
    is_higher: bool

    def find(self, measured: Measured) -> Finding:
        values, others = (measured.scores(self.scale.metric, where) for where in (self.first, self.second))
        return self._one(self.scale.differences(values, others), self.scale.beyond(self.is_higher))

    def demand(self, measured: Measured) -> Demand:
        return self._demand(self.scale.beyond(self.is_higher), self.effect)


@dataclass(frozen=True)
class Equal(Predicate):
    """The metric differs by less than the margin between two configurations."""

    first: Expression
    second: Expression

    @property
    def _region(self) -> Region:
        return Region(-self.scale.margin, self.scale.margin)

    def find(self, measured: Measured) -> Finding:
        values, others = (measured.scores(self.scale.metric, where) for where in (self.first, self.second))
        return self._one(self.scale.differences(values, others), self._region)

    def demand(self, measured: Measured) -> Demand:
        return self._demand(self._region, self.effect or 0.0)


@dataclass(frozen=True)
class Bound(Predicate):
    """The metric of one configuration is in a region; `at` is the fraction of the training at which it is read."""

    where: Expression
    region: Region
    at: float | None = None

    def find(self, measured: Measured) -> Finding:
        values = measured.scores(self.scale.metric, self.where, self.at)
        return self._one(_sample(values), self.region)

    def demand(self, measured: Measured) -> Demand:
        return self._demand(self.region, self.effect)


@dataclass(frozen=True)
class Trend(Predicate):
    """The metric falls or rises along a setting by at least the margin for each doubling, averaged over the range.

    The statistic of a seed is the least-squares slope over log2 of the setting; of the logarithm of the metric if
    differences are relative.
    """

    along: str
    where: Expression
    rises: bool

    @property
    def _region(self) -> Region:
        return self.scale.beyond(self.rises)

    def find(self, measured: Measured) -> Finding:
        series = measured.along(self.scale.metric, self.along, self.where)
        x = [math.log2(place) for place in series]
        transform: Callable[[float], float] = math.log if self.scale.is_relative else float
        slopes = {
            seed: slope(x, [transform(values[seed]) for values in series.values()])
            for seed in shared_seeds(series.values())
            if not self.scale.is_relative or all(values[seed] > 0 for values in series.values())
        }
        return self._one(_sample(slopes), self._region)

    def demand(self, measured: Measured) -> Demand:
        return self._demand(self._region, self.effect)


@dataclass(frozen=True)
class Explains(Predicate):
    """Over configurations, log of the size `by` explains more of the metric's variance than log of `rather_than`.

    The statistic of a seed is the difference of both R^2, each of a linear fit.
    """

    by: str
    rather_than: str
    where: Expression

    @property
    def unit(self) -> str:
        return "R^2"

    @property
    def _region(self) -> Region:
        return Region(low=self.scale.margin)

    def find(self, measured: Measured) -> Finding:
        table = measured.table((self.scale.metric, self.by, self.rather_than), self.where)
        differences = {}
        for seed in shared_seeds(scores for row in table for scores in row):
            y, sizes, others = ([row[place][seed] for row in table] for place in range(3))
            differences[seed] = r_squared(_logs(sizes), y) - r_squared(_logs(others), y)
        return self._one(_sample(differences), self._region)

    def demand(self, measured: Measured) -> Demand:
        return self._demand(self._region, self.effect)


@dataclass(frozen=True)
class Crossing(Predicate):
    """At the smallest value of a setting the configuration `first` is better by the margin, at the largest `last` is.

    It is contradicted if one of both differences has the other sign.
    """

    along: str
    first: Expression
    last: Expression

    def find(self, measured: Measured) -> Finding:
        firsts, lasts = (measured.along(self.scale.metric, self.along, where) for where in (self.first, self.last))
        places = shared_values(self.along, (firsts, lasts))
        tests = tuple(
            Statistic(
                f"{self.label}, {self.along}={place:g}",
                self.unit,
                self.scale.differences(firsts[place], lasts[place]),
                region,
            )
            for place, region in (
                (places[0], self.scale.beyond(self.scale.sign > 0)),
                (places[-1], self.scale.beyond(self.scale.sign < 0)),
            )
        )
        p_outside = min(test.region.p_outside(test.sample) for test in tests)
        return Finding(tests, max(test.region.p_inside(test.sample) for test in tests), min(1.0, 2 * p_outside))

    def demand(self, measured: Measured) -> Demand:
        return Demand(None if self.effect is None else self.effect - self.scale.margin, conjunctions=2)


@dataclass(frozen=True)
class SameArgmin(Predicate):
    """One value of a setting is within the margin of the best under every condition of `across`.

    The value is not known before, so the error rate is divided among the values: it holds if for one value all
    comparisons with the other values, under all conditions, show that it is not worse by the margin. It is contradicted
    if for each value some comparison shows that it is.
    """

    setting: str
    across: tuple[Expression, ...]

    def find(self, measured: Measured) -> Finding:
        levels = self._levels(measured)
        places = shared_values(self.setting, levels)
        region = Region(low=-self.scale.margin) if self.scale.sign > 0 else Region(high=self.scale.margin)
        found = []
        for place in places:
            samples = [
                (place, other, number, self.scale.differences(series[place], series[other]))
                for number, series in enumerate(levels)
                for other in places
                if other != place
            ]
            p_holds = max(region.p_inside(sample) for *_, sample in samples)
            p_contradicted = min(region.p_outside(sample) for *_, sample in samples)
            worst = max(samples, key=lambda entry: -self.scale.sign * entry[3].mean if entry[3] else math.inf)
            found.append((p_holds, min(1.0, len(samples) * p_contradicted), worst))
        p_holds, _, (place, other, number, sample) = min(found, key=lambda entry: entry[0])
        where = self.across[number].text
        label = f"{self.label}: {self.setting}={place:g} against {other:g}, {where}"
        test = Statistic(label, self.unit, sample, region)
        p_contradicted = max(entry[1] for entry in found)
        return Finding((test,), min(1.0, len(places) * p_holds), p_contradicted, len(places))

    def demand(self, measured: Measured) -> Demand:
        levels = self._levels(measured)
        places = shared_values(self.setting, levels)
        return Demand(self.scale.margin + (self.effect or 0.0), len(places), (len(places) - 1) * len(levels))

    def _levels(self, measured: Measured) -> list[Mapping[float, Scores]]:
        return [measured.along(self.scale.metric, self.setting, where) for where in self.across]


def shared_values(setting: str, series: Iterable[Mapping[float, Scores]]) -> list[float]:
    """Returns the values of a setting that all series have, in order. Raises ConfigError for fewer than two."""
    places = sorted(set.intersection(*(set(scores) for scores in series)))
    if len(places) < 2:
        raise ConfigError(f"the conditions share fewer than two values of {setting}: {places}.")
    return places


def shared_seeds(scores: Iterable[Scores]) -> list[int]:
    """Returns the seeds that all have, in order."""
    sets = [set(values) for values in scores]
    return sorted(set.intersection(*sets)) if sets else []


def _sample(values: Scores) -> PairedSample | None:
    return sample_of([values[seed] for seed in sorted(values)]) if values else None


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the least-squares slope of y over x."""
    middle = math.fsum(x) / len(x)
    return math.fsum((a - middle) * b for a, b in zip(x, y, strict=True)) / math.fsum((a - middle) ** 2 for a in x)


def r_squared(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the share of the variance of y that a linear fit over x explains; 0 where x or y does not vary."""
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    xx = math.fsum((a - x_mean) ** 2 for a in x)
    yy = math.fsum((b - y_mean) ** 2 for b in y)
    xy = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return xy * xy / (xx * yy) if xx and yy else 0.0
