"""The kit for metrics of the report: it names each planted fault."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from moe_cli.metrics import DERIVED, Metric
from moe_cli.plugins import Plugin
from moe_cli.testing import check_metric

COUNTER = count()


def plugin(build: Callable[..., Any], key: str = "kit_metric", label: str = "own", **facts: Any) -> Plugin:
    return Plugin(build=build, metric=Metric(key, label, "own metric", "nats", DERIVED, **facts))


def half(run: Any) -> float | None:
    loss = run.number("val_loss")
    return None if loss is None else loss / 2


def change(run: Any) -> None:
    run.settings["expert"] = 3


def test_a_sound_metric_passes() -> None:
    check_metric(plugin(half, direction=-1))


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (plugin(lambda run: run["val_loss"] / 2), "TypeError"),
        (plugin(lambda run: "much"), "neither a number nor None"),
        (plugin(iter([1, 2, 3, 4]).__next__), "fails for the run"),
        (plugin(lambda run: next(COUNTER)), "not the same twice"),
        (plugin(change), "it changes the run"),
        (plugin(half, key="val_loss"), "the program has a metric of this name"),
        (plugin(half, label=" "), "its label is empty"),
        (plugin(half, direction=2), "its direction is 2"),
        (plugin(half, format="words"), "its format is 'words'"),
        (Plugin(build=half, name="logger"), "no plug-in of a metric"),
    ],
)
def test_each_fault_is_named(metric: Plugin, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_metric(metric)
