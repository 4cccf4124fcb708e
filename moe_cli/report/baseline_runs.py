"""The runs that are the baseline of each configuration, and the settings that both share."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moe_cli.report.run_row import (
    DENSE,
    RunRow,
    Settings,
    Value,
    inapplicable_settings,
    is_baseline,
    setting_applies,
    setting_parents,
)
from moe_cli.report.tuning_record import tuned_settings
from moe_cli.runs.folder import DONE, IMPORTED

Key = tuple[Value, ...]
SeedRuns = Mapping[int | None, RunRow]


@dataclass(frozen=True)
class Baselines:
    """The baseline runs of differences.

    Attributes:
        runs: by the key that a configuration shares with its baseline, and by seed.
        shared: the settings that a configuration must share with its baseline.
        ambiguous: the first runs of configurations among which a baseline cannot be chosen.
    """

    runs: Mapping[Key, SeedRuns]
    shared: tuple[str, ...]
    ambiguous: tuple[RunRow, ...]

    def find(self, run: RunRow) -> SeedRuns | None:
        """Returns the runs of the baseline of a run's configuration; None where losses may not be ranked together."""
        found = self.runs.get(shared_key(run, self.shared))
        return found if found and next(iter(found.values())).comparison_key == run.comparison_key else None


def find_baselines(
    runs: Sequence[RunRow], extra_baselines: Iterable[RunRow], baseline: Settings, settings: Sequence[str]
) -> Baselines:
    """Returns the runs of the baseline.

    If configurations of `runs` and of `extra_baselines` match, those of `runs` are used. Within one configuration the
    seeds of `runs` take precedence over those of `extra_baselines`. If several configurations match, none is chosen and
    they are ambiguous. For a baseline of several experts, a dense model shares only settings that apply to dense
    models. A setting that the sweep tuned for each configuration need not be shared.
    """
    own, others = (
        [_drop_inapplicable(run) for run in group if is_baseline(run, baseline)] for group in (runs, extra_baselines)
    )
    preferred, candidates = group_seeds(own, settings), group_seeds(others, settings)
    for configuration, seeds in preferred.items():
        candidates[configuration] = candidates.get(configuration, {}) | seeds
    tuned = tuned_settings(run.path for run in runs)
    shared = [name for name in shared_with(baseline, settings) if name not in tuned]
    fitting: dict[Key, dict[Key, dict[int | None, RunRow]]] = {}
    for configuration, seeds in candidates.items():
        fitting.setdefault(_key(next(iter(seeds.values())), shared), {})[configuration] = seeds
    found: dict[Key, SeedRuns] = {}
    ambiguous: list[RunRow] = []
    for key, alternatives in fitting.items():
        selected = [alternative for alternative in alternatives if alternative in preferred] or list(alternatives)
        if len(selected) == 1:
            found[key] = alternatives[selected[0]]
        elif selected[0] in preferred:
            ambiguous += [next(iter(alternatives[alternative].values())) for alternative in selected]
    if "expert" in baseline:
        for_dense = [(shared_key(next(iter(seeds.values())), shared, DENSE), seeds) for seeds in found.values()]
        number = Counter(key for key, _ in for_dense)
        found = {**{key: seeds for key, seeds in for_dense if number[key] == 1}, **found}
    return Baselines(found, tuple(shared), tuple(ambiguous))


def group_seeds(
    runs: Iterable[RunRow], settings: Sequence[str], replaced: Counter[Key] | None = None
) -> dict[Key, dict[int | None, RunRow]]:
    """Groups complete runs by their shared key and by seed. The newer of two runs with one seed is kept.

    `replaced` counts the others.
    """
    groups: dict[Key, dict[int | None, RunRow]] = {}
    for run in sorted((run for run in runs if run.status in DONE), key=lambda run: run.created or 0):
        # Imported models of equal settings are different models.
        key = (*_key(run, settings), *([run.run] if run.status == IMPORTED else []))
        seeds = groups.setdefault(key, {})
        if replaced is not None and run.seed in seeds:
            replaced[key] += 1
        seeds[run.seed] = run
    return groups


def in_order_of_seed(seeds: SeedRuns) -> list[RunRow]:
    return sorted(seeds.values(), key=lambda run: (run.seed is None, run.seed))


def _key(run: RunRow, settings: Sequence[str]) -> Key:
    return (*map(run.settings.get, settings), run.corpus_sha256)


def shared_key(run: RunRow, settings: Sequence[str], model: Settings | None = None) -> Key:
    """Returns `_key` without the settings that have no effect in a model; None means that of the run."""
    own = run.settings
    applying = own if model is None else model
    return (*(own.get(name) if setting_applies(name, applying) else None for name in settings), run.corpus_sha256)


def _drop_inapplicable(run: RunRow) -> RunRow:
    """Returns the run without the settings that have no effect in it. Baselines may differ in these."""
    return replace(run, settings={**run.settings, **dict.fromkeys(inapplicable_settings(run.settings))})


def shared_with_dense(settings: Iterable[str]) -> list[str]:
    """Returns the settings that a model must share with a dense one to be compared with it."""
    return [name for name in settings if name != "expert" and setting_applies(name, DENSE)]


def shared_with(baseline: Settings, settings: Sequence[str]) -> list[str]:
    """Returns the settings to share with the baseline: all that the baseline neither names nor decides."""
    named = set(baseline) | ({"balance"} if "router" in baseline else set())  # not every router has a balance
    shared = shared_with_dense(settings) if baseline.get("expert") == 1 else list(settings)
    return [name for name in shared if not named & {name, name.partition(".")[0], *setting_parents(name)}]
