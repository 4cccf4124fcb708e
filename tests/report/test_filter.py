"""Conditions select the runs of a row, or whole rows, and captions speak of the selection."""

from pathlib import Path

import pytest

from moe_cli.errors import ConfigError
from moe_cli.runs.folder import PENDING
from moe_cli.runs.tags import set_tags
from tests.report.folders import complete, stopped, sweep_of_three_seeds
from tests.report.render.test_tables import headings, lines, table, view


def test_a_filter_on_runs_comes_before_seeds_are_folded(tmp_path: Path) -> None:
    """A row is of the runs asked for and no others; dense runs that are not asked for still are its baseline."""
    sweep_of_three_seeds(tmp_path)
    tagged = complete(tmp_path, 1.5, expert=16, k=2, seed=7)
    set_tags(tagged, ["good", "mine"])
    whole = view(tmp_path, condition="expert == 16").rows[0]
    assert [0, 1, 2, 7] == whole["seeds"]
    for condition in ("'good' in tags", "'good' in tags and val_bpb < 1.6", "seed == 7", f"run == '{tagged.id}'"):
        (row,) = view(tmp_path, condition=condition).rows
        assert ([7], 1.5, None) == (row["seeds"], row["val_bpb"], row["val_bpb_interval"]), condition
    (row,) = view(tmp_path, condition="expert == 16 and seed == 0").rows
    assert pytest.approx(1.71 / 1.83 - 1) == row["vs_baseline"]


@pytest.mark.parametrize(
    ("heading", "key"),
    [
        ("bits/byte < 1.75", "val_bpb < 1.75"),
        ("`val loss` > 1.2 and MaxVio > 0", "val_loss > 1.2 and max_violation > 0"),
        ("FLOP/token > 1 and router != 'bits/byte'", "flops_per_token > 1 and router != 'bits/byte'"),
    ],
)
def test_a_filter_takes_headings_of_several_words(tmp_path: Path, heading: str, key: str) -> None:
    """A heading of the table means its column, but not inside quotes."""
    sweep_of_three_seeds(tmp_path)
    expected = [row["expert"] for row in view(tmp_path, condition=key).rows]
    assert expected == [row["expert"] for row in view(tmp_path, condition=heading).rows]
    assert len(expected) in range(1, 4)


def test_a_filter_on_settings_changes_no_verdict(tmp_path: Path) -> None:
    """The comparisons of rows that are not shown are allowed for, and the caption says so."""
    sweep_of_three_seeds(tmp_path)
    shown = {row["expert"]: (row["verdict"], row["more_seeds"]) for row in view(tmp_path).rows}
    (row,) = view(tmp_path, condition="expert == 16").rows
    assert shown[16] == (row["verdict"], row["more_seeds"])
    text = "\n".join(lines(tmp_path, condition="expert == 16"))
    assert "1 configuration compared: 1 better; verdicts allow for 3 comparisons (Holm)" in text


def test_an_interval_without_zero_can_be_inconclusive(tmp_path: Path) -> None:
    """It is for one comparison, the verdict for all: where the two part the caption says so, and nowhere else."""
    for expert, bits in (
        (1, (2.0, 2.0, 2.0)),
        (2, (1.90, 1.95, 1.98)),
        (4, (2.0, 2.1, 1.9)),
        (8, (2.1, 2.0, 1.9)),
        (16, (1.9, 2.0, 2.1)),
    ):
        for seed, value in enumerate(bits):
            complete(tmp_path, value, expert=expert, seed=seed)
    rows = {row["expert"]: row for row in view(tmp_path).rows}
    assert ("inconclusive", False) == (
        rows[2]["verdict"],
        abs(rows[2]["vs_baseline"]) > rows[2]["vs_baseline_interval"],
    )
    for seed, value in enumerate((1.90, 1.92, 1.94)):
        complete(tmp_path, value, expert=32, seed=seed)
    row = next(row for row in view(tmp_path).rows if row["expert"] == 32)
    assert ("inconclusive", True) == (row["verdict"], abs(row["vs_baseline"]) > row["vs_baseline_interval"])
    sentence = "one can exclude 0 where the verdict is 'inconclusive'"
    assert sentence in " ".join(lines(tmp_path, 400))
    assert sentence not in " ".join(lines(tmp_path, 400, condition="expert < 32"))


def test_captions_speak_of_the_rows_asked_for(tmp_path: Path) -> None:
    """Runs that were run again, and runs without results, count only where their settings are asked for."""
    complete(tmp_path, 1.9, expert=8)
    complete(tmp_path, 1.8, expert=8)
    complete(tmp_path, 1.7, expert=4)
    stopped(tmp_path, PENDING, expert=8, seed=1)
    for condition, counted in (
        ("expert > 1", 1),
        ("expert == 8", 1),
        ("expert == 4", 0),
        ("expert == 4 and seed == 0", 0),
        ("val_bpb < 1.85", 1),
    ):
        text = "\n".join(lines(tmp_path, condition=condition))
        assert counted == text.count("1 run not counted"), condition
        assert counted == text.count("1 pending"), condition


def test_a_condition_on_runs_and_rows_at_once_is_refused(tmp_path: Path) -> None:
    """A condition on runs and rows at once is refused, except where every run is a row."""
    sweep_of_three_seeds(tmp_path)
    condition = "seed == 0 or vs_baseline < -0.05"
    with pytest.raises(ConfigError, match=r"runs \(seed\) and rows \(vs_baseline\) at once.*\nJoin the two by 'and'"):
        view(tmp_path, condition=condition)
    assert 6 == len(view(tmp_path, condition=condition, by_run=True).rows)


def test_the_seeds_of_a_difference_are_said_where_they_are_fewer(tmp_path: Path) -> None:
    """Where dense has not all seeds of a row, a column says how many it has; else there is none."""
    sweep_of_three_seeds(tmp_path)
    assert "shared seeds" not in headings(tmp_path, 200)
    complete(tmp_path, 1.74, "sparsity", expert=16, k=2, seed=7)
    assert ["3 of 4", "3 of 3", "3 of 3", "-"] == [
        row[:place].split("  ")[-1].strip()
        for row in table(tmp_path, 200)[1:]
        for place in [table(tmp_path, 200)[0].index("shared seeds") + len("shared seeds")]
    ]
