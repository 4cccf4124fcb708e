"""One configuration in the report: the means over its runs, its comparison with the baseline, and its columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from moe_cli.report.equal_time import EqualTime
from moe_cli.report.price import SPEEDUP_RATIOS, Price
from moe_cli.report.run_row import (
    IDENTITY,
    RESULTS,
    SETTINGS,
    Cell,
    Record,
    Results,
    RunRow,
    Settings,
)
from moe_cli.runs.folder import DONE

# The price tag: each ratio, and the limits of its interval.
SPEEDUP_KEYS = tuple(name + limit for name in SPEEDUP_RATIOS for limit in ("", "_low", "_high"))
MAIN_RESULTS = RESULTS[: RESULTS.index("dead_experts") + 1]
_COMPARISON = (
    "val_loss_interval",
    "val_bpb_interval",
    "vs_baseline",
    "vs_baseline_interval",
    "shared_seeds",
    "verdict",
    "more_seeds",
    "equal_time",
    "equal_time_interval",
    "equal_time_seeds",
)
# The keys of every object of the JSON export, and the first columns of the CSV export.
JSON_KEYS = ("run", "runs", "status", *SETTINGS, "seeds", *MAIN_RESULTS, *_COMPARISON, *SPEEDUP_KEYS, "pareto")
_OWN = frozenset((*IDENTITY, *_COMPARISON, "seed", "seeds", "paths", "baseline", "baseline_path", "pareto"))


@dataclass(frozen=True)
class Configuration(Record):
    """The runs of one configuration.

    Attributes:
        runs: in order of seed; several only if all are complete.
        settings: those of the first run; the others have the same but for the seed.
        execution, results, others: means over complete runs; text where all runs have the same.
        val_loss_interval, val_bpb_interval: half-widths of the 95 % intervals of the means; None for one seed.
        vs_baseline, vs_baseline_interval: the relative difference to the baseline, paired by seed; negative is better.
            The interval has the error rate of the look, see looks.py.
        shared_seeds: the seeds it rests on.
        baseline, baseline_path: the run of the baseline that has the first of these seeds.
        verdict: better, worse or inconclusive, with Holm's correction; None where nothing is tested.
        more_seeds: the additional seeds that would decide, where the verdict is inconclusive.
        at_equal_time: the comparison with the baseline at equal training time; None without a common seed.
        price: the compute multiplier and the relative speed against the baseline; None without a common seed.
        pareto: whether no comparable configuration dominates it; None without one that is comparable.
        num_replaced: complete runs of it that do not count, because their seed was run again.
    """

    runs: tuple[RunRow, ...]
    settings: Settings
    execution: Settings
    results: Results
    others: Settings
    val_loss_interval: float | None = None
    val_bpb_interval: float | None = None
    vs_baseline: float | None = None
    vs_baseline_interval: float | None = None
    shared_seeds: int | None = None
    baseline: str | None = None
    baseline_path: str | None = None
    verdict: str | None = None
    more_seeds: int | None = None
    at_equal_time: EqualTime | None = None
    price: Price | None = None
    pareto: bool | None = None
    num_replaced: int = field(default=0, compare=False)

    @property
    def run(self) -> str:
        return self.runs[0].run

    @property
    def sweep(self) -> str:
        return self.runs[0].sweep

    @property
    def path(self) -> str:
        return self.runs[0].path

    @property
    def status(self) -> str:
        return self.runs[0].status

    @property
    def reason(self) -> str | None:
        return self.runs[0].reason

    @property
    def created(self) -> float | None:
        return self.runs[0].created

    @property
    def is_complete(self) -> bool:
        return self.status in DONE

    @cached_property
    def paths(self) -> list[str]:
        return [run.path for run in self.runs]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs if run.seed is not None]

    @property
    def seed(self) -> int | None:
        return self.runs[0].seed if len(self.runs) == 1 else None

    @property
    def tags(self) -> list[str]:
        return list(dict.fromkeys(tag for run in self.runs for tag in run.tags))

    @cached_property
    def losses(self) -> dict[int, float]:
        """Returns the primary loss of each seed."""
        return losses_by_seed(self.runs)

    @property
    def equal_time(self) -> float | None:
        return self.at_equal_time.difference if self.at_equal_time else None

    @property
    def equal_time_interval(self) -> float | None:
        return self.at_equal_time.interval if self.at_equal_time else None

    @property
    def equal_time_seeds(self) -> int | None:
        return self.at_equal_time.seeds if self.at_equal_time else None

    @property
    def is_own_baseline(self) -> bool:
        """Returns whether this is its own baseline.

        Runs are compared by folder, because several folders may have one id.
        """
        return self.baseline_path in self.paths

    @property
    def is_undefined(self) -> bool:
        """Returns whether it has a baseline with a loss of 0, so that a relative difference is undefined."""
        return self.baseline_path is not None and self.vs_baseline is None

    def get(self, name: str) -> Cell:
        if name == "runs":
            return [run.run for run in self.runs]
        if name in SPEEDUP_KEYS:
            return None if self.price is None else _price_value(self.price, name)
        if name in _OWN:
            value: Cell = getattr(self, name)
            return value
        return super().get(name)


def _price_value(price: Price, name: str) -> float | None:
    """Returns a value of `SPEEDUP_KEYS`."""
    key = next(key for key in SPEEDUP_RATIOS if name.startswith(key))
    ratio = price.ratio(key)
    return ratio.low if name.endswith("_low") else ratio.high if name.endswith("_high") else ratio.value


def group_comparable(rows: Sequence[Record]) -> dict[tuple[object, ...], list[int]]:
    """Returns the places of rows that may be ranked together, the lowest loss first; without rows that have no loss."""
    scored = sorted((loss, place) for place, row in enumerate(rows) if (loss := row.primary_loss) is not None)
    groups: dict[tuple[object, ...], list[int]] = {}
    for _, place in scored:
        groups.setdefault(rows[place].comparison_key, []).append(place)
    return groups


def best_rows(rows: Sequence[Configuration]) -> list[Configuration]:
    """Returns the configuration of the lowest loss in every comparable group of at least two."""
    return [rows[group[0]] for group in group_comparable(rows).values() if len(group) > 1]


def losses_by_seed(runs: Iterable[RunRow]) -> dict[int, float]:
    """Returns the primary loss of each run that has one, by seed."""
    return {run.seed: loss for run in runs if run.seed is not None and (loss := run.primary_loss) is not None}
