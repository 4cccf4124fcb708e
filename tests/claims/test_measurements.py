"""Values of runs as predicates read them: by seed, along a setting, against the dense model, and during training."""

from pathlib import Path

import pytest

from moe_cli.claims.measurements import RunMeasurements
from moe_cli.config.expressions import parse_expression
from moe_cli.errors import ConfigError
from moe_cli.files.writing import write_json
from moe_cli.report.load import rows_below
from tests.report.folders import complete, stopped

ANY = parse_expression("true")


def test_scores_are_those_of_one_configuration(tmp_path: Path) -> None:
    """By seed; runs that are not complete have none; a condition that means several configurations is refused."""
    for seed in range(2):
        complete(tmp_path, 1.5 + seed, expert=8, k=2, seed=seed)
        complete(tmp_path, 2.5 + seed, expert=8, k=1, seed=seed)
    stopped(tmp_path, "failed", expert=8, k=2, seed=2)
    found = RunMeasurements(rows_below(tmp_path))
    assert {0: 1.5, 1: 2.5} == found.scores("val_bpb", parse_expression("expert == 8 and k == 2"))
    assert {0: 1.5, 1: 2.5} == found.scores("val_bpb", parse_expression('router == "topk" and k == 2'))
    for text, message in (
        ("expert == 8", "2 configurations meet the condition, and it must name one: expert == 8\nThey differ in: k"),
        ("expert == 4", "no configuration of the sweep meets the condition: expert == 4"),
    ):
        with pytest.raises(ConfigError) as error:
            found.scores("val_bpb", parse_expression(text))
        assert message == str(error.value)


def test_values_along_a_setting_ascend(tmp_path: Path) -> None:
    """A table has every configuration; both need enough of them."""
    for expert in (16, 2, 4):
        complete(tmp_path, 1 + expert / 100, expert=expert, k=1)
    found = RunMeasurements(rows_below(tmp_path))
    assert [(2, {0: 1.02}), (4, {0: 1.04}), (16, {0: 1.16})] == [*found.along("val_bpb", "expert", ANY).items()]
    assert {16e6, 2e6, 4e6} == {row[1][0] for row in found.table(("val_bpb", "params"), ANY)}
    with pytest.raises(ConfigError, match=r"k needs at least two values above 0 where true. There are: 1."):
        found.along("val_bpb", "k", ANY)
    with pytest.raises(ConfigError, match="at least three configurations where expert < 9: there are 2"):
        found.table(("val_bpb",), parse_expression("expert < 9"))


def test_prices_are_those_of_each_seed(tmp_path: Path) -> None:
    """The multiplier is read between the dense runs of that seed; the speedup is that times the ratio of speeds."""
    for seed, loss in enumerate((1.5, 1.6)):
        for steps, dense in ((500, 2.0), (1000, loss), (2000, 1.0)):
            complete(tmp_path, dense, expert=1, seed=seed, train__steps=steps)
        complete(tmp_path, loss, expert=8, seed=seed, results={"tokens_per_second": 12_000.0})
    found, where = RunMeasurements(rows_below(tmp_path)), parse_expression("expert == 8")
    assert {0: pytest.approx(2), 1: pytest.approx(2)} == found.scores("compute_multiplier", where)
    assert {0: pytest.approx(0.5), 1: pytest.approx(0.5)} == found.scores("relative_speed", where)
    assert {0: pytest.approx(1), 1: pytest.approx(1)} == found.scores("effective_speedup", where)


def test_a_price_beyond_the_budgets_of_the_dense_model_leaves_no_values(tmp_path: Path) -> None:
    """A seed that is behind the dense model at every budget has no multiplier; the other seeds would be a selection."""
    for seed, loss in enumerate((1.5, 1.5, 2.5)):
        for steps, dense in ((500, 2.0), (1000, 1.6), (2000, 1.0)):
            complete(tmp_path, dense, expert=1, seed=seed, train__steps=steps)
        complete(tmp_path, loss, expert=8, seed=seed, results={"tokens_per_second": 12_000.0})
    found, where = RunMeasurements(rows_below(tmp_path)), parse_expression("expert == 8")
    assert {} == found.scores("compute_multiplier", where) == found.scores("effective_speedup", where)
    assert {0, 1, 2} == set(found.scores("relative_speed", where))


def test_saturation_is_read_within_a_fraction_of_the_training(tmp_path: Path) -> None:
    """At the last evaluation that is not later, averaged over layers; without one there is no value."""
    run = complete(tmp_path, 1.5, expert=2, k=1)
    with (run.path / "routing.jsonl").open("w", encoding="utf-8") as file:
        for layer, values in enumerate(({"50": 0.4, "100": 0.9}, {"50": 0.6, "100": 1.0})):
            record = {
                "step": 500,
                "layer": layer,
                "whole_split": True,
                "tokens_per_expert": [1, 1],
                "saturation": values,
            }
            write_json(tmp_path / "record.json", record)
            file.write((tmp_path / "record.json").read_text(encoding="utf-8").replace("\n", " ") + "\n")
    found = RunMeasurements(rows_below(tmp_path))
    assert {0: 0.5} == found.scores("router_saturation", ANY, 0.1)
    # A step that reaches the fraction counts, since an evaluation follows a whole step: 49.5 of 500 is step 50.
    assert {0: 0.5} == found.scores("router_saturation", ANY, 0.099)
    assert {} == found.scores("router_saturation", ANY, 0.098)
    assert {0: 0.95} == found.scores("router_saturation", ANY, 0.9)
    assert {} == found.scores("router_saturation", ANY, 0.05)
