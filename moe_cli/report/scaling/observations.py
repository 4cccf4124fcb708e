"""Observations for a scaling law: sizes, experts, tokens and loss, as arrays with one value per run.

M runs, C configurations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import HELD_OUT
from moe_cli.config.ranges import format_setting
from moe_cli.config.training import BUDGET_KEYS
from moe_cli.errors import ConfigError
from moe_cli.formatting import count
from moe_cli.metrics import eval_windows
from moe_cli.report.run_row import (
    RunRow,
    Settings,
    column_names,
    mean_setting,
    setting_applies,
    settings_of,
    varying_settings,
)
from moe_cli.runs.folder import COMPLETED

Array = NDArray[Any]


@dataclass(frozen=True)
class Points:
    """One value per run, each of shape [M].

    Attributes:
        params: all parameters, N.
        active: active parameters per token, N_act.
        expansion: E / K, experts over chosen experts: E itself where K = 1, and 1 when dense.
        density: 1 - S = K / E; 1 when dense.
        granularity: G = d_ff / d_expert (arXiv:2402.07871, eq. 6); 1 when dense.
        tokens: D, the training tokens.
        flops: of the whole training, model and optimizer.
        loss: nats per token over the validation split; NaN where it is to be predicted.
        cluster: the configuration, 0 to C - 1: runs that differ in the seed alone share one.
        speed: tokens per second in training; NaN where unknown.
        seed: of the run; a seed shifts the losses of all configurations together. -1 where unknown.
    """

    params: Array
    active: Array
    expansion: Array
    density: Array
    granularity: Array
    tokens: Array
    flops: Array
    loss: Array
    cluster: Array
    speed: Array
    seed: Array

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def num_configurations(self) -> int:
        return len(np.unique(self.cluster))

    def take(self, indices: Array) -> "Points":
        """Returns the points of a mask or of indices."""
        return Points(**{entry.name: getattr(self, entry.name)[indices] for entry in fields(self)})

    def mean_over_seeds(self) -> "Points":
        """Returns one point per configuration; its loss is the geometric mean over seeds."""
        clusters, places = np.unique(self.cluster, return_index=True)
        means = [np.exp(np.log(self.loss[self.cluster == cluster]).mean()) for cluster in clusters]
        first_points = self.take(places)
        return Points(**{**vars(first_points), "loss": np.array(means)})


@dataclass(frozen=True)
class LabelledObservations:
    """Points, a label of settings for each, and the number of runs that were left out."""

    points: Points
    labels: tuple[str, ...]
    left_out: int


def make_points(runs: Sequence[RunRow]) -> LabelledObservations:
    """Returns the complete runs, with each configuration's seeds together.

    Raises:
        ConfigError: no run is complete, or the runs used different data, so that no single law holds for their losses.
    """
    usable = [run for run in runs if run.status == COMPLETED and _is_usable(run)]
    if not usable:
        raise ConfigError(f"no complete run among {len(runs)} to fit a law to. Make some: moe sweep scaling")
    if len({run.corpus_sha256 for run in usable}) > 1:
        raise ConfigError(
            "the runs learned from different data, so no one law holds for their losses.\n"
            "Give the runs of one corpus: moe scaling SWEEP, or --where 'corpus == \"NAME\"'"
        )
    kinds = ("data.tokenizer", "data.bpe_vocab", *HELD_OUT)
    if len({(*(run.settings.get(name) for name in kinds), eval_windows(run.settings)) for run in usable}) > 1:
        raise ConfigError(
            "the runs differ in tokenizer, validation split or evaluation context, and a law is of nats per "
            "token: no one law holds for them.\n"
            "Give runs of one kind, such as: --where 'data.tokenizer == \"bytes\"'"
        )
    settings = settings_of(column_names(runs))
    places: dict[tuple[Any, ...], int] = {}
    clusters = [places.setdefault(tuple(run.settings.get(name) for name in settings), len(places)) for run in usable]
    names = varying_settings([run.settings for run in usable], settings)
    labels = tuple(_label(run, names) for run in usable)
    return LabelledObservations(_arrays(usable, clusters), labels, len(runs) - len(usable))


def _is_usable(run: RunRow) -> bool:
    found = run.results
    sizes = (found.params, found.active_params, found.flops_per_token, found.tokens, found.val_loss, run.expert)
    return all(size is not None and size > 0 for size in sizes)


def _label(run: RunRow, names: list[str]) -> str:
    """Returns a label with the variables of the law and other differing settings.

    Example: expert=16 k=2, 1.05M active, 2.46M tokens.
    """
    seen = ("expert", "k", *BUDGET_KEYS, "train.batch_size")
    who = f"expert={run.expert}" + (f" k={run.get('k')}" if not run.is_dense and run.mean_k else "")
    others = [
        f"{name.rpartition('.')[2]}={format_setting(value)}"
        for name in names
        if name not in seen
        and not name.startswith("model.")
        and setting_applies(name, run.settings)
        and (value := run.settings.get(name)) is not None
    ]
    sizes = [f"{count(run.results.active_params or 0)} active", f"{count(run.results.tokens or 0)} tokens"]
    return ", ".join([" ".join([who, *others]), *sizes])


def _arrays(runs: Sequence[RunRow], clusters: list[int]) -> Points:
    def column(value: Callable[[RunRow], float | None]) -> Array:
        return np.array([math.nan if (found := value(run)) is None else float(found) for run in runs])

    return Points(
        column(lambda run: run.results.params),
        column(lambda run: run.results.active_params),
        column(lambda run: expansion(run.settings)),
        column(lambda run: 1 / expansion(run.settings)),
        column(lambda run: granularity(run.settings)),
        column(lambda run: run.results.tokens),
        column(lambda run: run.results.train_flops),
        column(lambda run: run.results.val_loss),
        np.array(clusters),
        column(lambda run: run.results.tokens_per_second or None),
        column(lambda run: -1 if run.seed is None else run.seed),
    )


def expansion(settings: Settings) -> float:
    """Returns E / K, with the mean of K over layers; 1 when dense, or if a router has no fixed K."""
    expert, k = settings.get("expert"), mean_setting(settings, "k")
    assert isinstance(expert, int)
    return max(1.0, expert / k) if expert > 1 and k and k > 0 else float(expert)


def granularity(settings: Settings) -> float:
    """Returns d_ff / d_expert, with the mean of unequal widths; 1 when dense."""
    wide, narrow = settings.get("model.d_ff"), mean_setting(settings, "model.d_expert")
    if settings.get("expert") == 1 or not isinstance(wide, int | float) or narrow is None:
        return 1.0
    return float(wide) / float(narrow) if narrow > 0 else 1.0
