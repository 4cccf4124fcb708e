"""Long frames hold every number of the files as a row, and damaged lines stop nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moe_cli import load_curves, load_routing, load_runs
from moe_cli.errors import RunNotFound
from moe_cli.runs.folder import Run
from tests.report.folders import complete, configure

PER_STEP = configure().tokens_per_step


def write_lines(run: Run, name: str, *records: Any) -> None:
    (run.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def layer_record(step: int, layer: int, asked: list[Any], **more: Any) -> dict[str, Any]:
    return {"step": step, "layer": layer, "tokens_per_expert": asked, "kept_per_expert": asked, **more}


def test_a_real_runs_frames_are_its_files(finished: Run) -> None:
    """The frames of a trained run hold every number of metrics.jsonl, flags apart, and the loads of routing.jsonl."""
    written = {
        (record["step"], key): value
        for record in finished.metrics()
        for key, value in record.items()
        if key not in ("step", "tokens", "final")
    }
    curves = load_curves(finished)
    assert written == dict(zip(zip(curves["step"], curves["metric"], strict=True), curves["value"], strict=True))
    routing = load_routing(finished)
    loads = {
        (record["step"], bool(record.get("whole_split")), record["layer"], expert): asked
        for record in finished.routing()
        for expert, asked in enumerate(record["tokens_per_expert"])
    }
    keys = zip(routing["step"], routing["whole_split"], routing["layer"], routing["expert"], strict=True)
    assert loads == dict(zip(keys, routing["assignments"], strict=True))
    assert routing["saturation"].between(0, 1).sum() == (~routing["whole_split"]).sum() > 0


def test_tokens_are_known_at_evaluations_too(finished: Run) -> None:
    """A record without tokens, as evaluations are, has those of its step."""
    per_step = finished.config().tokens_per_step
    for frame in (load_curves(finished), load_routing(finished)):
        assert (frame["tokens"] == frame["step"] * per_step).all()


def test_loads_are_shares_of_their_layer(tmp_path: Path) -> None:
    """Loads sum to 1 in a layer, an unused layer has none, and each expert's row has the layer's measures."""
    run = complete(tmp_path, 1.7)
    final = layer_record(500, 0, [1, 3], whole_split=True, max_violation=0.5, saturation={"100": 0.25})
    write_lines(run, "routing.jsonl", layer_record(100, 0, [2, 2]), layer_record(100, 1, [0, 0]), final)
    frame = load_routing(run)
    assert frame["share"].tolist()[:2] + frame["share"].tolist()[4:] == [0.5, 0.5, 0.25, 0.75]
    assert frame["share"][2:4].isna().all()
    assert frame["expert"].tolist() == [0, 1] * 3
    assert frame["whole_split"].tolist() == [False] * 4 + [True] * 2
    assert frame["max_violation"].tolist()[4:] == [0.5, 0.5]
    assert frame["saturation"].tolist()[:2] == [0.25, 0.25]
    assert frame["saturation"][2:].isna().all()


def test_the_later_of_two_records_counts(tmp_path: Path) -> None:
    """One row per run, step and metric, and per evaluation, layer and expert."""
    run = complete(tmp_path, 1.7)
    write_lines(run, "metrics.jsonl", {"step": 1, "lr": 0.1}, {"step": 1, "lr": 0.2, "train/loss": 3.0})
    write_lines(run, "routing.jsonl", layer_record(1, 0, [1, 0]), layer_record(1, 0, [0, 1]))
    curves = load_curves(run)
    assert dict(zip(curves["metric"], curves["value"], strict=True)) == {"lr": 0.2, "train/loss": 3.0}
    assert load_routing(run)["share"].tolist() == [0.0, 1.0]


def test_hostile_lines_stop_nothing(tmp_path: Path) -> None:
    """Values that are no numbers, records without a step, and torn lines are left out; null becomes NaN."""
    run = complete(tmp_path, 1.7)
    lines = [
        {"step": 1, "a": None, "b": "x", "c": True, "d": [1]},
        {"a": 1},
        {"step": "2", "a": 1},
        [1],
        {"step": True, "a": 1},
        {"step": -1, "a": 1},
        {"step": 2**70, "a": 1},
        {"step": 2, "a": 10**400},
    ]
    write_lines(run, "metrics.jsonl", *lines)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "a": 2.0}\n{"step": 4, "a"')
    curves = load_curves(run)
    assert list(zip(curves["step"], curves["metric"], strict=True)) == [(1, "a"), (3, "a")]
    assert [math.isnan(value) for value in curves["value"]] == [True, False]
    records = [
        layer_record(1, 0, ["x", 1]),
        layer_record(1, 0, [-1, 2]),
        layer_record(1, 0, [None, 2]),
        layer_record(1, 0, []),
        layer_record(1, -1, [1]),
        {"step": 1, "layer": 0},
        layer_record(1, 1, [1, 1], saturation=[3], load_cv="x"),
    ]
    write_lines(run, "routing.jsonl", *records, {**layer_record(1, 2, [1, 1]), "kept_per_expert": [1]})
    routing = load_routing(run)
    assert routing["layer"].tolist() == [1, 1, 2, 2]
    assert routing["kept_assignments"].isna().tolist() == [False, False, True, True]
    assert routing["load_cv"].isna().all()
    (run.path / "config.json").write_text("[")
    assert load_curves(run)["tokens"].isna().all()


def test_a_selection_of_runs(tmp_path: Path) -> None:
    """A folder, a run, several of either, or the paths of a frame; each run once."""
    runs = [complete(tmp_path, 1.7, group, expert=4, seed=seed) for group in ("a", "b") for seed in range(2)]
    for run in runs:
        write_lines(run, "metrics.jsonl", {"step": 2, "train/loss": 1.0})
    assert len(load_curves(tmp_path)) == len(load_curves(str(tmp_path))) == len(load_curves(runs)) == 4
    assert load_curves(tmp_path / "a")["sweep"].tolist() == ["a", "a"]
    frame = load_runs(tmp_path)
    assert load_curves(frame[frame["seed"] == 1]["path"])["run"].tolist() == [runs[1].id, runs[3].id]
    assert len(load_curves([tmp_path, runs[0], tmp_path / "a"])) == 4
    assert load_curves(runs[0])["tokens"].tolist() == [2 * PER_STEP]


def test_the_frames_of_nothing(tmp_path: Path) -> None:
    """Without runs or records there are no rows, of the same columns and types; a folder that is not there is an error."""
    run = complete(tmp_path / "one", 1.7)
    write_lines(run, "metrics.jsonl", {"step": 2, "train/loss": 1.0})
    write_lines(run, "routing.jsonl", layer_record(1, 0, [1, 0]))
    (tmp_path / "none").mkdir()
    for load in (load_curves, load_routing):
        empty, full = load(tmp_path / "none"), load(run)
        assert (len(empty), empty.dtypes.to_dict()) == (0, full.dtypes.to_dict())
        assert set(empty.attrs["units"]) <= set(empty.columns)
        with pytest.raises(RunNotFound, match="no folder"):
            load(tmp_path / "typo")
