"""Run folders to a frame: what is there, what is null, and that damaged folders do not stop a report."""

import math
from pathlib import Path

import pandas as pd
import pytest

from moe_cli import load_runs
from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import write_sealed
from moe_cli.files.reading import forget_notes, noted
from moe_cli.metrics import LOSS, ROUTING, SIZE, SPEED, TEXT_REFERENCE, keys_of
from moe_cli.report.baseline import extra_baseline_runs
from moe_cli.report.frame import from_frame, python_lists
from moe_cli.report.load import UNITS, load_selection, rows_below
from moe_cli.report.run_row import RESULTS
from moe_cli.runs.folder import COMPLETED, FAILED, INTERRUPTED, PENDING, RUNNING, create_run
from tests.report.folders import complete, configure, set_status, stopped, sweep_of_three_seeds


def test_a_complete_run_has_its_results_and_settings(tmp_path: Path) -> None:
    """Every key of summary.json and every setting is a column with the value that is on disk."""
    run = complete(tmp_path, 1.75, expert=8, k=2, train__steps=300)
    row = load_runs(tmp_path).iloc[0]
    written = run.summary() or {}
    assert {key for key, value in written.items() if value is not None and row[key] != value} == set()
    assert {key for key, value in written.items() if value is None and pd.notna(row[key])} == set()
    config = configure(expert=8, k=2, train__steps=300)
    assert (row["model.d_model"], row["optim.name"]) == (config.model.d_model, config.optim.name)
    assert row["train.steps"] == 300
    assert (row["sweep"], row["path"]) == ("runs", str(run.path))


def test_group_names_stand_under_plain_keys(tmp_path: Path) -> None:
    """`router` and `balance` are names, and no second column says the same."""
    complete(tmp_path, 1.75, expert=8, k=1, router="switch", balance="z", router__jitter=0.03)
    frame = load_runs(tmp_path)
    assert frame["router"].tolist() == ["switch"]
    assert frame["balance"].tolist() == ["z"]
    assert {"router.name", "balance.name"} & set(frame.columns) == set()
    assert frame["router.jitter"].tolist() == [0.03]


@pytest.mark.parametrize("status", [PENDING, FAILED, INTERRUPTED, RUNNING])
def test_a_run_without_results_has_settings_only(tmp_path: Path, status: str) -> None:
    """Status, reason and plain keys are there; results are null. A running run without a process is interrupted."""
    stopped(tmp_path, status, reason="out of memory", expert=16, k=4, capacity=1.5, seed=3)
    row = load_runs(tmp_path).iloc[0]
    assert row["status"] == (INTERRUPTED if status == RUNNING else status)
    assert row["reason"] == "out of memory"
    settings = [row[key] for key in ("expert", "k", "capacity", "router", "balance", "seed")]
    assert settings == [16, 4, 1.5, "topk", "switch", 3]
    assert load_runs(tmp_path)[list(UNITS)].isna().all(axis=None)


def test_dtypes_do_not_depend_on_what_was_found(tmp_path: Path) -> None:
    """Counts are whole numbers with null, measures floats, names text: with all, some and no results."""
    stopped(tmp_path / "none", PENDING)
    complete(tmp_path / "all", 1.75)
    (tmp_path / "empty").mkdir()
    names = ["run", "status", "expert", "k", "capacity", "router", "seed", *UNITS]
    expected = load_runs(tmp_path / "all")[names].dtypes.to_dict()
    assert load_runs(tmp_path / "none")[names].dtypes.to_dict() == expected
    assert load_runs(tmp_path / "empty")[names].dtypes.to_dict() == expected


def test_units_come_with_the_frame(tmp_path: Path) -> None:
    """Every measure has a unit."""
    complete(tmp_path, 1.75)
    units = load_runs(tmp_path).attrs["units"]
    assert units["val_bpb"] == "bits per byte"
    assert units["val_loss"].startswith("nats per token")
    assert set(UNITS) <= set(units)


@pytest.mark.parametrize(
    ("file", "status", "way_on"),
    [("summary.json", INTERRUPTED, ". Make it again: moe train --resume {run}"), ("config.json", FAILED, "")],
)
def test_a_torn_file_costs_its_run_only(tmp_path: Path, file: str, status: str, way_on: str) -> None:
    """Half a file, as an interrupted copy leaves it, is named; without results a run can be taken up again."""
    torn = complete(tmp_path, 1.75, expert=8, seed=0)
    complete(tmp_path, 1.76, expert=8, seed=1)
    text = (torn.path / file).read_text()
    (torn.path / file).write_text(text[: len(text) // 2])
    frame = load_runs(tmp_path).set_index("run")
    assert frame.loc[torn.id, "status"] == status
    assert frame.loc[torn.id, "reason"] == f"{file} cannot be read" + way_on.format(run=torn.id)
    assert math.isnan(frame.loc[torn.id, "val_bpb"])
    assert sorted(frame["status"]) == sorted([COMPLETED, status])


def test_half_made_folders(tmp_path: Path) -> None:
    """A folder without config.json is no run; one without status.json is a pending run."""
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    run = create_run(tmp_path, "runs", configure())
    (run.path / "status.json").unlink()
    frame = load_runs(tmp_path)
    assert frame["run"].tolist() == [run.id]
    assert frame["status"].tolist() == [PENDING]


def test_values_of_the_wrong_type_are_null(tmp_path: Path) -> None:
    """A results file that someone edited does not stop the report."""
    results = {"val_loss": "low", "params": 1.5, "tokens": True, "extra": [1], "note": "x"}
    complete(tmp_path, 1.75, results=results)
    frame = load_runs(tmp_path)
    assert frame[["val_loss", "params", "tokens"]].isna().all(axis=None)
    assert frame["note"].tolist() == ["x"]
    assert "extra" not in frame


def test_a_dense_run_has_no_router(tmp_path: Path) -> None:
    """Router and balance are null, k is 1."""
    complete(tmp_path, 1.83, expert=1)
    row = load_runs(tmp_path).iloc[0]
    assert row["k"] == 1
    assert pd.isna(row["router"])
    assert pd.isna(row["balance"])


def test_no_such_folder(tmp_path: Path) -> None:
    """A typed path that does not exist is an error, an empty folder is an empty frame."""
    with pytest.raises(RunNotFound, match="no folder"):
        load_runs(tmp_path / "typo")
    assert len(load_runs(tmp_path)) == 0


def test_selection(tmp_path: Path) -> None:
    """Names of sweeps, ids, beginnings, patterns, folders and `latest`; a run named twice counts once."""
    sweep_of_three_seeds(tmp_path)
    run = complete(tmp_path, 1.7, "runs", expert=4, k=2)

    def found(*names: str) -> list[str]:
        return sorted(row.run for row in load_selection(tmp_path, names))

    assert len(found()) == 13
    assert len(found("sparsity")) == 12
    assert found("runs") == found(run.id) == found("gpt-4x2") == found("latest") == found("runs/gpt-4x2*") == [run.id]
    assert len(found("gpt-8x*")) == 6
    assert len(found("gpt-8x", "*8x1*", str(tmp_path / "sparsity"))) == 12
    assert found(str(run.path)) == [run.id]


def test_selection_of_nothing(tmp_path: Path) -> None:
    """A name that means nothing gets the nearest; an empty outputs folder says how to begin."""
    with pytest.raises(RunNotFound, match=rf"no runs in {tmp_path}"):
        load_selection(tmp_path)
    with pytest.raises(RunNotFound, match="Make one: moe train"):
        load_selection(tmp_path / "absent", ["sparsity"])
    sweep_of_three_seeds(tmp_path)
    with pytest.raises(RunNotFound, match=r"'sparsty'.*Did you mean 'sparsity'"):
        load_selection(tmp_path, ["sparsty"])


def test_baseline_runs_elsewhere(tmp_path: Path) -> None:
    """The complete dense runs that were not selected, and only those."""
    sweep_of_three_seeds(tmp_path)
    dense = complete(tmp_path, 1.8, "runs", expert=1, seed=9)
    complete(tmp_path, 1.8, "runs", expert=4, seed=9)
    stopped(tmp_path, FAILED, "boom", expert=1, seed=10)
    assert [row.run for row in extra_baseline_runs(tmp_path, load_selection(tmp_path, ["sparsity"]))] == [dense.id]
    assert len(extra_baseline_runs(tmp_path, load_selection(tmp_path))) == 0


def test_runs_are_in_order_of_creation(tmp_path: Path) -> None:
    """The oldest first, whatever the names."""
    for number, seed in enumerate((2, 0, 1)):
        set_status(complete(tmp_path, 1.7, seed=seed), COMPLETED, created=1000.0 + number)
    assert load_runs(tmp_path)["seed"].tolist() == [2, 0, 1]


def test_a_copied_folder_reads_the_same(tmp_path: Path) -> None:
    """Plain files are the truth: only the path knows where they lie."""
    complete(tmp_path / "a", 1.75, expert=8, k=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "runs").rename(tmp_path / "b" / "moved")
    row = load_runs(tmp_path / "b").iloc[0]
    assert (row["sweep"], row["val_bpb"]) == ("moved", 1.75)
    write_sealed(Path(row["path"]) / "summary.json", {})
    assert load_runs(tmp_path / "b")["val_bpb"].isna().all()


def test_plain_values_are_pythons_own() -> None:
    """`python_lists` turns missing values of every column into None and keeps whole numbers whole."""
    frame = pd.DataFrame(
        {"whole": pd.array([1, None], "Int64"), "number": [0.5, math.nan], "word": ["a", None], "list": [[1], None]}
    )
    frame.attrs["units"] = {"number": "bits"}
    expected = {"whole": [1, None], "number": [0.5, None], "word": ["a", None], "list": [[1], None]}
    assert expected == python_lists(frame)
    assert [int, float, str, list] == [type(values[0]) for values in python_lists(frame).values()]


def test_a_frame_gives_back_its_rows(tmp_path: Path) -> None:
    """`from_frame(load_runs(...))` gives the rows that the report reads from the folders."""
    sweep_of_three_seeds(tmp_path)
    stopped(tmp_path, FAILED, "out of memory", expert=64, k=2)
    rows = rows_below(tmp_path)
    found = from_frame(load_runs(tmp_path))
    for name in load_runs(tmp_path).columns:
        assert [row.get(name) for row in rows] == [row.get(name) for row in found], name


def test_results_are_metrics_of_the_registry() -> None:
    """The fields of `Results` are the keys of the metrics that a run has."""
    assert set(keys_of(SIZE, LOSS, SPEED, ROUTING, TEXT_REFERENCE)) == set(RESULTS)


def test_runs_of_other_seeds_share_no_value(tmp_path: Path) -> None:
    """Runs that differ in the seed alone are parsed once; each keeps its own seed, and an edited one is noted."""
    runs = [complete(tmp_path, 1.7 + seed, expert=8, k=2, seed=seed) for seed in (0, 7, 12)]
    assert [0, 7, 12] == [row.seed for row in rows_below(tmp_path)]
    path = runs[2].path / "config.json"
    path.write_text(path.read_text().replace('"seed": 12', '"seed": 13'))
    forget_notes()
    assert [0, 7, 13] == [row.seed for row in rows_below(tmp_path)]
    (note,) = noted()
    assert "config.json that was changed" in note
