"""The registry of metrics, and the note that trainings of equal size differ in FLOPs."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.metrics import BY_CURVE_KEY, LAYER_METRICS, METRICS, TRAINING, layer_key, unequal_flops
from moe_cli.report.load import rows_below
from moe_cli.report.render.captions import footer_lines
from moe_cli.report.table import ReportQuery, build_table
from tests.report.folders import complete
from tests.tiny import finish, tiny_config, words

ROOT = Path(__file__).parents[1]

NOTE = "equal active parameters are not equal FLOPs: a training token costs "


@pytest.mark.parametrize(
    ("trainings", "said"),
    [
        ([], None),
        ([(1e6, 1e9, 4e6)], None),
        ([(1e6, 1e9, 4e6), (1.01e6, 1e9, 4.05e6)], None),
        ([(1e6, 1e9, 4e6), (1.01e6, 1e9, 8.8e6)], "4.00M to 8.80M (2.2x)"),
        ([(1e6, 1e9, 8.8e6), (1.01e6, None, 4e6)], None),  # one has a budget of time
        ([(1e6, None, 8.8e6), (1e6, None, 4e6)], "4.00M to 8.80M (2.2x)"),
        ([(1e6, 1e9, 4e6), (2e6, 1e9, 8e6)], None),  # of unequal size, as in a sweep over sizes
        ([(1e6, 1e9, 4e6), (1e6, 1e9, 5e6), (2e6, 1e9, 8e6), (2e6, 1e9, 16e6)], "8.00M to 16.0M (2x)"),
        ([(1e6, 1e9, 4e6), (1e6, 5e8, 8e6)], None),  # fewer tokens for more FLOPs each, as at equal FLOPs
        ([(None, 1e9, 4e6), (1e6, None, None)], None),
    ],
)
def test_equal_sizes_of_unequal_flops_are_said(
    trainings: list[tuple[float | None, float | None, float | None]], said: str | None
) -> None:
    """The widest range among trainings of equal active parameters and tokens."""
    note = unequal_flops(trainings, can_match=True)
    assert (note is None) == (said is None)
    assert said is None or f"{NOTE}{said}, optimizer included. For equal FLOPs: match=flops" == note


@pytest.mark.parametrize(
    ("settings", "advised"), [({"expert": 4}, True), ({"expert": 4, "match": "flops"}, False), ({"expert": 1}, False)]
)
def test_match_flops_is_advised_where_it_is_a_way(tmp_path: Path, settings: dict[str, Any], advised: bool) -> None:
    """Not for dense models of two optimizers, and not where it is set already."""
    for optim, flops in (("adamw", 6e6), ("muon", 9e6)):
        complete(tmp_path, 1.8, optim=optim, results={"flops_per_token": flops, "active_params": 1e6}, **settings)
    text = " ".join(line.plain.strip() for line in footer_lines(build_table(rows_below(tmp_path), ReportQuery()), 100))
    assert f"{NOTE}6.00M to 9.00M (1.5x)" in text
    assert advised == ("For equal FLOPs: match=flops" in text)


def test_reports_say_how_much_equal_sizes_differ(tmp_path: Path) -> None:
    """Below the table of runs with their own FLOPs."""
    complete(tmp_path, 1.8, expert=1)
    complete(tmp_path, 1.7, expert=8, results={"flops_per_token": 9e6})
    text = " ".join(line.plain.strip() for line in footer_lines(build_table(rows_below(tmp_path), ReportQuery()), 100))
    assert f"{NOTE}6.00M to 9.00M (1.5x)" in text


def test_every_key_of_metrics_jsonl_is_in_the_registry(tmp_path: Path) -> None:
    """A training writes no measure that tables, charts and the page would not know."""
    (tmp_path / "words.txt").write_text(words(4000))
    run = finish(tiny_config(tmp_path / "words.txt"), tmp_path / "outputs")
    keys = {key for record in run.metrics() for key, value in record.items() if not isinstance(value, bool)}
    layered = {layer_key(layer, name) for layer in range(8) for name in LAYER_METRICS}
    assert set() == keys - set(BY_CURVE_KEY) - layered


def test_keys_and_headings_are_unique() -> None:
    """A name or a heading means one column."""
    columns = [metric for metric in METRICS if metric.kind != TRAINING]
    for names in ([metric.key for metric in METRICS], [metric.label for metric in columns]):
        assert len(set(names)) == len(names)
