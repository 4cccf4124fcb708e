"""Columns by name and by heading: whatever a table shows can be asked for."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_cli.errors import ConfigError
from moe_cli.report.columns import curve_column
from moe_cli.report.load import rows_below
from moe_cli.report.render.tables import csv_text, json_text, report_lines
from moe_cli.report.table import ReportQuery, build_table
from tests.report.folders import complete, sweep_of_three_seeds
from tests.report.render.test_tables import headings, view


@given(
    st.lists(
        st.sampled_from(
            [
                {"expert": 8, "k": 2},
                {"expert": 8, "k": 1, "capacity": 1.25},
                {"expert": 4, "optim__lr": 0.5},
                {"expert": 4, "balance__weight": 0.1},
                {"expert": 1},
                {"expert": 1, "optim__lr": 0.5},
                {"expert": 8, "model": "bert"},
                {"expert": 4, "model__d_ff": 64, "model__num_layers": 1, "train__batch_size": 3},
            ]
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=5, deadline=None)
def test_every_heading_is_a_name_for_columns(runs: list[dict[str, Any]], seeds: bool, by_run: bool) -> None:
    """Each heading that a table shows can be given to --columns and --sort, alone and with all others, and means that column."""
    with TemporaryDirectory() as folder:
        for words in runs:
            for seed in range(1 + seeds):
                run = complete(
                    Path(folder), 1.7 + seed, seed=seed, results={"capacity_val_loss": 1.2, "val_rmse": 1.0}, **words
                )
                records = [json.dumps({"step": step, "val/bpb": 8 / step}) for step in (1, 2, 4)]
                (run.path / "metrics.jsonl").write_text("\n".join(records))
        rows = rows_below(folder)
        shown = build_table(rows, ReportQuery(by_run=by_run))
        columns = [*shown.columns, *filter(None, [curve_column(shown.rows)])]
        for column in columns:
            sort = None if column.name == "curve" else column.heading
            asked = build_table(rows, ReportQuery(columns=(column.heading,), by_run=by_run, sort=sort))
            assert [(column.name, column.heading)] == [(each.name, each.heading) for each in asked.columns]
            assert sorted(map(column.write, shown.rows)) == sorted(map(asked.columns[0].write, asked.rows))
            assert column.name in json.loads(json_text(asked))[0]
        together = build_table(rows, ReportQuery(columns=tuple(column.heading for column in columns), by_run=by_run))
        assert [column.name for column in columns] == [each.name for each in together.columns]


def test_a_heading_of_the_table_is_a_column(tmp_path: Path) -> None:
    """--columns, --sort and --where take a heading, such as MaxVio or lr, for the name of its column."""
    sweep_of_three_seeds(tmp_path)
    assert ["MaxVio", "bits/byte", "lr"] == headings(tmp_path, columns=("MaxVio", "bits/byte", "lr"))
    assert ("max_violation", "optim.lr") == view(tmp_path, columns=("MaxVio", "lr", "max_violation")).names
    for heading, name in (
        ("MaxVio > 0.1 and lr > 0", "max_violation > 0.1 and optim.lr > 0"),
        ("dead == 0", "dead_experts == 0"),
    ):
        by_heading, by_name = (view(tmp_path, condition=condition).rows for condition in (heading, name))
        assert by_name == by_heading
    with pytest.raises(ConfigError, match="no column 'load' in 'load > 1'"):
        view(tmp_path, condition="load > 1")


def test_differences_to_a_declared_baseline_keep_their_heading(tmp_path: Path) -> None:
    """vs baseline, as the table of that sweep has it, is a name and the heading of what it names."""
    for balance in ("none", "switch"):
        complete(tmp_path, 1.7, "sweep", expert=8, balance=balance)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"baseline": {"balance": "none"}}))
    assert "vs baseline" in headings(tmp_path)
    assert (
        ["vs baseline"] == headings(tmp_path, columns=("vs baseline",)) == headings(tmp_path, columns=("vs_baseline",))
    )


def test_a_curve_can_be_asked_for(tmp_path: Path) -> None:
    """As a sparkline in a table, as numbers in csv; where only ASCII is written, in digits."""
    run = complete(tmp_path, 1.7, expert=8)
    (run.path / "metrics.jsonl").write_text('{"step": 1, "val/loss": 3.0}\n{"step": 2, "val/loss": 2.0}\n')
    asked = view(tmp_path, columns=("expert", "curve"))
    assert "█▁" in "\n".join(map(str, report_lines(asked, "t", 80, True)))
    text = "\n".join(map(str, report_lines(asked, "t", 80, False)))
    assert (True, False) == ("81" in text, "█" in text)
    assert "expert,curve\n8,3.0 2.0\n" == csv_text(asked)
