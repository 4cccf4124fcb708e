"""Predicts a configuration that was not run, and the winner against its dense model, from the runs of a sweep.

A scaling law is used if these runs support one. Otherwise each configuration has a curve over its training tokens, and
only the budget can be extrapolated.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from moe_cli.config.identity import digest_of
from moe_cli.config.ranges import format_setting
from moe_cli.config.training import BUDGET_KEYS
from moe_cli.errors import ConfigError
from moe_cli.formatting import count, plural, sanitise
from moe_cli.report.baseline import baseline_overrides
from moe_cli.report.load import flat_settings, read_rows
from moe_cli.report.run_row import (
    MODEL_TASK_DATA,
    RunRow,
    Settings,
    Value,
    setting_applies,
    setting_follows,
    settings_of,
)
from moe_cli.report.scaling.bets import (
    BET_CONFIDENCE,
    FLOPS,
    TOKENS,
    Bet,
    check_new,
    digest_with_seed,
)
from moe_cli.report.scaling.budget_curves import MIN_BUDGETS, Curve, Losses, SeedMeans, predict_losses, seed_means
from moe_cli.report.scaling.fit import (
    COLUMN_DESCRIPTION,
    SAME_VALUE_RATIO,
    SEED,
    Fit,
    NotIdentifiable,
    count_distinct,
    fit,
)
from moe_cli.report.scaling.observations import Array, make_points
from moe_cli.report.scaling.predictions import draw_log_loss
from moe_cli.report.scaling.settings import Configured, configure, configure_like, parse_words, sizes_of
from moe_cli.runs.folder import COMPLETED, Run
from moe_cli.runs.lookup import find_sweep, list_runs

Key = tuple[tuple[str, Value], ...]
Cell = tuple[Key, float]
# The settings that a scaling law has terms for. The budget is one too.
SIZES = ("expert", "k", "model.num_layers", "model.d_model", "model.d_ff", "model.d_expert")
# The FLOPs of a bet relative to the most expensive run that it rests on.
MIN_FACTOR, MAX_FACTOR = 1.1, 16.0


@dataclass(frozen=True)
class Forecast:
    """Draws of the mean loss over the seeds of a bet, in the unit of its metric.

    Attributes:
        losses, baseline: [N]; the baseline is None without a dense model.
        runs: the runs that it rests on.
        factor: the FLOPs relative to the most expensive of the runs that it extrapolates.
    """

    losses: Array
    baseline: Array | None
    runs: tuple[RunRow, ...]
    factor: float
    method: str


def make_bets(outputs: Path, sweep: str, texts: Sequence[str], version: str) -> tuple[Path, list[Bet]]:
    """Returns the folder of a sweep, and a bet on each of the configurations, not yet written.

    Args:
        version: of the program, for the record.

    Raises:
        RunNotFound: no sweep has this name.
        ConfigError: a configuration was run already, has a bet, is not like the runs of the sweep, or cannot be
            predicted from them.
    """
    folder = find_sweep(outputs, sweep)
    rows = read_rows(list_runs(folder))
    forecaster = _Forecaster(folder.name, rows, version)
    known = runs_by_digest(read_rows(list_runs(outputs)))
    bets = [_make_bet(folder, forecaster, known, " ".join(text.split())) for text in texts]
    for digest in (digests := [bet.digest for bet in bets]):
        if digests.count(digest) > 1:
            same = [f"'{bet.settings}'" for bet in bets if bet.digest == digest]
            raise ConfigError(f"--bet {' and '.join(same)} are one configuration: give it once.")
    return folder, bets


def runs_by_digest(rows: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """Returns the runs by the digests of their configurations."""
    found: dict[str, list[RunRow]] = {}
    for row in rows:
        run = Run(Path(row.path))
        digest = run.digest_in_id or digest_of(run.config_dict())
        if digest:
            found.setdefault(digest, []).append(row)
    return found


def runs_of(known: Mapping[str, Sequence[RunRow]], configuration: Mapping[str, object]) -> list[RunRow]:
    """Returns the runs of a configuration with any seed."""
    seeds = {row.seed for rows in known.values() for row in rows if row.seed is not None}
    digests = {seed: digest_with_seed(configuration, seed) for seed in seeds}
    return [row for seed, digest in digests.items() for row in known.get(digest or "", ()) if row.seed == seed]


def _make_bet(folder: Path, forecaster: "_Forecaster", known: Mapping[str, Sequence[RunRow]], text: str) -> Bet:
    option = f"--bet '{sanitise(text)}'"
    arguments = parse_words(text, "--bet")
    if any(word.partition("=")[0] == "seed" for word in arguments):
        raise ConfigError(f"{option}: the seeds of a bet are those of the sweep. Leave out seed=")
    wanted = configure_like(arguments, forecaster.like(arguments), option)
    settings = flat_settings(wanted.config.to_dict())
    forecaster.check_settings(settings, wanted, option)
    if existing := runs_of(known, wanted.config.to_dict()):
        run = existing[0]
        raise ConfigError(
            f"{option}: a bet is placed before its run exists, and there is one ({run.status}): {run.sweep}/{run.run}"
        )
    dense = None if wanted.config.dense else _dense(settings, wanted, option)
    found = forecaster.forecast(settings, wanted, dense, option)
    if not MIN_FACTOR <= found.factor <= MAX_FACTOR:
        raise ConfigError(
            f"{option} takes {found.factor:.3g} times the FLOPs of the largest run that the prediction rests on. "
            f"A bet is on {MIN_FACTOR:g} to {MAX_FACTOR:g} times: change its budget, such as train.tokens"
        )
    seeds = forecaster.seeds
    low, loss, high = (float(np.quantile(found.losses, place)) for place in _QUANTILES)
    if low <= 0:
        raise ConfigError(f"{option}: the runs are too few or too noisy, since a loss of 0 is not excluded. --seeds 3")
    configuration = {**wanted.config.to_dict(), "seed": seeds[0]}
    digest = digest_of(configuration)
    assert digest is not None
    check_new(folder, digest)
    has_dense = dense is not None and found.baseline is not None
    return Bet(
        digest=digest,
        sweep=folder.name,
        placed=time.time(),
        version=forecaster.version,
        settings=text,
        metric=forecaster.metric,
        seeds=seeds,
        loss=loss,
        low=low,
        high=high,
        baseline_loss=None if found.baseline is None else float(np.median(found.baseline)),
        wins=None if found.baseline is None else _share(found.losses < found.baseline),
        equal=TOKENS if dense is None or dense.tokens == wanted.tokens else FLOPS,
        flops=wanted.flops,
        compute_factor=found.factor,
        method=found.method,
        runs=tuple(row.run for row in found.runs),
        corpus_sha256=found.runs[0].corpus_sha256,
        commands=tuple(
            _command(configured.arguments, seeds, folder.name)
            for configured in (wanted, *([dense] if dense is not None and has_dense else []))
        ),
        configuration=configuration,
        baseline={**dense.config.to_dict(), "seed": seeds[0]} if dense is not None and has_dense else None,
    )


_QUANTILES = ((1 - BET_CONFIDENCE) / 2, 0.5, (1 + BET_CONFIDENCE) / 2)


def _share(wins: Array) -> float:
    """Returns the probability of a winner from draws, never 0 or 1."""
    return float((wins.sum() + 1) / (len(wins) + 2))


def _command(arguments: Sequence[str], seeds: Sequence[int], sweep: str) -> str:
    """Returns the command that trains a configuration with these seeds; several seeds are one sweep."""
    if len(seeds) == 1:
        return f"moe train {shlex.join([*arguments, f'seed={seeds[0]}'])}"
    return f"moe sweep {shlex.join([*arguments, 'seed=' + ','.join(map(str, seeds))])} --name {shlex.quote(sweep)}-bets"


def _dense(settings: Settings, wanted: Configured, option: str) -> Configured:
    """Returns the dense model of a configuration, with its budget: of tokens or steps, or of FLOPs."""
    overrides = baseline_overrides(settings)
    arguments = [f"{key}={format_setting(value)}" for key, value in overrides.items()]
    return configure(arguments, wanted.vocab_size, option)


class _Forecaster:
    """The complete runs of a sweep, and what can be predicted from them.

    Attributes:
        metric: of the losses; val_bpb where all runs have it.
        version: of the program.
    """

    def __init__(self, sweep: str, rows: Sequence[RunRow], version: str) -> None:
        self._sweep, self.version = sweep, version
        make_points(rows)  # raises if the runs have different data or none is complete
        self._rows = [row for row in rows if row.status == COMPLETED and row.seed is not None and _is_priced(row)]
        if not self._rows:
            raise ConfigError(f"no run of {sweep} has a loss, tokens and FLOPs to predict from.")
        self.metric = "val_loss" if any(row.results.val_bpb is None for row in self._rows) else "val_bpb"
        self._fits: dict[tuple[str, ...], Fit | NotIdentifiable] = {}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Returns the seeds that every configuration has, or else all of them."""
        found: dict[Cell, set[int]] = {}
        for row in self._rows:
            found.setdefault(_cell(row), set()).add(row.seed or 0)
        return tuple(sorted(set.intersection(*found.values()) or set.union(*found.values())))

    def like(self, arguments: Sequence[str]) -> list[RunRow]:
        """Returns the runs that have these settings, as far as there are some."""
        found = self._rows
        for word in arguments:
            name, _, value = word.partition("=")
            if name not in BUDGET_KEYS:
                fitting = [row for row in found if format_setting(row.settings.get(name)) == value]
                found = fitting or found
        sparse = [row for row in found if not row.is_dense]
        return found if "expert=1" in arguments else sparse or found

    def check_settings(self, settings: Settings, wanted: Configured, option: str) -> None:
        """Raises ConfigError for settings that no run has and along which nothing can be predicted."""
        for name in settings_of(settings):
            if name in BUDGET_KEYS or not setting_applies(name, settings) or setting_follows(name, settings):
                continue
            values = [row.settings.get(name) for row in self._rows if setting_applies(name, row.settings)]
            distinct = list(dict.fromkeys(values))
            if settings[name] in distinct or (name in SIZES and len(distinct) > 1):
                continue
            there = ", ".join(format_setting(value) for value in distinct[:6]) or "none"
            head = f"{option}: {name}={format_setting(settings[name])}, and the runs of {self._sweep} have {there}."
            if name in MODEL_TASK_DATA or name.partition(".")[0] in ("data", "task"):
                raise ConfigError(f"{head}\nA bet is on the data, the task and the model family of its sweep.")
            raise ConfigError(f"{head}\nA bet extrapolates only settings that its sweep varies, of sizes and budgets.")
        _check_column("tokens", np.array([row.results.tokens for row in self._rows]), wanted.tokens, option)

    def forecast(self, settings: Settings, wanted: Configured, dense: Configured | None, option: str) -> Forecast:
        """Predicts a configuration and its dense model. Raises ConfigError if the runs support no prediction."""
        rows = [row for row in self._rows if not _differing(row.settings, settings, (*SIZES, *BUDGET_KEYS))]
        law = self._law(rows)
        if isinstance(law, Fit):
            return self._by_law(law, rows, wanted, dense, option)
        return self._by_curves(law, settings, wanted, dense, option)

    def _law(self, rows: Sequence[RunRow]) -> Fit | NotIdentifiable:
        """Returns the law that the solver accepts for these runs, or why there is none."""
        key = tuple(row.path for row in rows)
        if key not in self._fits:
            try:
                self._fits[key] = fit(make_points(rows).points) if rows else NotIdentifiable("no runs.")
            except NotIdentifiable as error:
                self._fits[key] = error
        return self._fits[key]

    def _by_law(
        self, law: Fit, rows: Sequence[RunRow], wanted: Configured, dense: Configured | None, option: str
    ) -> Forecast:
        scale = np.exp(np.mean([np.log(self._loss(row) / (row.results.val_loss or 1)) for row in rows]))
        distance, rng = law.seeds.distance(np.array(self.seeds)), np.random.default_rng(SEED)

        def draw(configured: Configured) -> Array:
            point = sizes_of(configured)
            for column in COLUMN_DESCRIPTION:
                _check_column(column, getattr(law.points, column), float(getattr(point, column)[0]), option)
            # A shift of the seeds is common to both, and 0 for the seeds of the fit.
            drawn: Array = scale * np.exp(draw_log_loss(law, point, law.mean_noise, distance, rng))
            return drawn

        has_dense = dense is not None and any(row.is_dense for row in rows) and "expansion" not in law.law.constant
        method = (
            f"scaling law {law.law.name} ({law.law.source}) of {plural(len(rows), 'run')} of "
            f"{plural(law.points.num_configurations, 'configuration')}; wild bootstrap with the noise of a mean over "
            f"{plural(len(self.seeds), 'seed')}"
        )
        return Forecast(
            draw(wanted),
            draw(dense) if dense is not None and has_dense else None,
            tuple(rows),
            wanted.flops / max(row.results.train_flops or 0 for row in rows),
            method,
        )

    def _by_curves(
        self, refusal: Exception, settings: Settings, wanted: Configured, dense: Configured | None, option: str
    ) -> Forecast:
        own = self._family(settings)
        if own is None:
            nearest = min((_differing(rows[0].settings, settings, BUDGET_KEYS) for rows in self._families), key=len)
            raise ConfigError(
                f"{option}: the runs of {self._sweep} support no scaling law, so only their budget can be "
                f"extrapolated, and none has this {' and '.join(nearest[:3])}.\n{str(refusal).splitlines()[-1]}"
            )
        try:
            noise, curves = self._curves()
            wanted_curves, tokens = [own], [float(wanted.tokens)]
            other = None if dense is None else self._family(flat_settings(dense.config.to_dict()))
            if dense is not None and other is not None and len(curves[other].tokens) >= MIN_BUDGETS:
                wanted_curves, tokens = [own, other], [float(wanted.tokens), float(dense.tokens)]
            drawn = predict_losses(curves, wanted_curves, tokens, len(self.seeds), noise)
        except NotIdentifiable as error:
            raise ConfigError(f"{option}: {error}") from None
        known = curves[own].tokens
        reason = str(refusal).splitlines()
        method = (
            f"curve of loss over training tokens of this configuration, f + A D^-b, by {len(known)} budgets of "
            f"{count(min(known))} to {count(max(known))} tokens; b and the noise of a run by all "
            f"{plural(len(self._rows), 'run')}, mean over {plural(len(self.seeds), 'seed')}. No scaling law: "
            f"{reason[min(1, len(reason) - 1)]}"
        )
        factor = wanted.flops / max(row.results.train_flops or 0 for row in self._families[own])
        return Forecast(drawn[0], drawn[1] if len(drawn) > 1 else None, tuple(self._rows), factor, method)

    def _curves(self) -> tuple[SeedMeans, list[Curve]]:
        """Returns the means over seeds, and the curve of each family of runs. Raises NotIdentifiable without noise."""
        cells = sorted({_cell(row) for row in self._rows}, key=lambda cell: cell[1])
        places = {cell: place for place, cell in enumerate(cells)}
        noise = seed_means(
            Losses(
                np.array([places[_cell(row)] for row in self._rows]),
                np.array([row.seed for row in self._rows]),
                np.array([self._loss(row) for row in self._rows]),
            )
        )
        curves = []
        for rows in self._families:
            own = sorted({places[_cell(row)] for row in rows})
            tokens = np.array([cells[place][1] for place in own])
            curves.append(Curve(tokens, noise.means[own], noise.counts[own]))
        return noise, curves

    @cached_property
    def _families(self) -> list[list[RunRow]]:
        """Returns the runs that differ in budget and seed alone, by configuration."""
        found: dict[Key, list[RunRow]] = {}
        for row in self._rows:
            found.setdefault(_key(row.settings), []).append(row)
        return list(found.values())

    def _family(self, settings: Settings) -> int | None:
        """Returns the index of the runs of a configuration with other budgets; None without any."""
        for index, rows in enumerate(self._families):
            if not _differing(rows[0].settings, settings, BUDGET_KEYS):
                return index
        return None

    def _loss(self, row: RunRow) -> float:
        loss = row.number(self.metric)
        assert loss is not None
        return loss


def _is_priced(row: RunRow) -> bool:
    found = row.results
    return all(value is not None and value > 0 for value in (found.val_loss, found.tokens, found.flops_per_token))


def _cell(row: RunRow) -> Cell:
    """Returns the configuration and the training tokens of a run."""
    return _key(row.settings), row.results.tokens or 0.0


def _key(settings: Settings) -> Key:
    """Returns the settings that a configuration shares with its runs of other budgets."""
    names = [name for name in settings_of(settings) if name not in BUDGET_KEYS and setting_applies(name, settings)]
    return tuple((name, settings.get(name)) for name in sorted(names))


def _differing(run: Settings, settings: Settings, free: Sequence[str]) -> list[str]:
    """Returns the settings that apply to both and differ, without those in `free`.

    Settings that follow from free ones may differ too.
    """
    names = [
        name
        for name in settings_of(settings)
        if name not in free
        and setting_applies(name, run)
        and setting_applies(name, settings)
        and run.get(name) != settings.get(name)
    ]
    if free == BUDGET_KEYS:
        return names
    return [name for name in names if not (setting_follows(name, run) and setting_follows(name, settings))]


def _check_column(column: str, values: Array, value: float, option: str) -> None:
    """Raises ConfigError if a size lies outside the runs, and they do not vary it."""
    low, high = values.min() / SAME_VALUE_RATIO, values.max() * SAME_VALUE_RATIO
    if count_distinct(values) < 2 and not low <= value <= high:
        name = COLUMN_DESCRIPTION[column]
        raise ConfigError(
            f"{option}: the runs have one of {name}, {values.max():.4g}, and this is {value:.4g}. "
            "A bet extrapolates only what its sweep varies."
        )
