"""Event files, read with TensorBoard's own reader, hold what metrics.jsonl holds."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from moe_cli.execution.run import run_one
from moe_cli.runs.folder import INTERRUPTED, Run, create_run
from tests.loggers.runs import Points, begin, go_on, logged_config, points, tell
from tests.tiny import finish


def read(run: Run) -> EventAccumulator:
    accumulator = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(run: Run) -> Points:
    """The curves of the event files, without the results at the end."""
    found = read(run)
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if not tag.startswith("summary/")
    }


def rounded(curves: Points) -> Points:
    """To the 32 bits that an event holds."""
    return {key: [(step, float(np.float32(value))) for step, value in curve] for key, curve in curves.items()}


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = logged_config(text_file, "tensorboard", train={"eval_every": 2})
    run: Run = finish(config, tmp_path_factory.mktemp("outputs"))
    return run


def test_every_value_is_that_of_the_metrics_file(trained: Run) -> None:
    """The same names, steps and values, all of them and no others."""
    assert len(points(trained)) > 20
    assert rounded(points(trained)) == scalars(trained)


def test_the_results_are_there(trained: Run) -> None:
    """Every number of summary.json is a scalar at the last step."""
    summary = trained.summary() or {}
    found = read(trained)
    expected = {
        f"summary/{key}": [(6, float(np.float32(value)))]
        for key, value in summary.items()
        if isinstance(value, int | float)
    }
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("summary/")]
    assert expected == {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in tags}
    assert "summary/val_bpb" in tags


def test_settings_are_hyperparameters(trained: Run) -> None:
    """Numbers, words and switches by their dotted names, and that the run succeeded."""
    contents = read(trained).PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert trained.id == start.group_name
    assert (4, 2, "topk", 0.03, False) == tuple(
        values[key] for key in ("expert", "k", "router.name", "optim.lr", "optim.skip_idle_experts")
    )
    assert "capacity" not in values
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert api_pb2.STATUS_SUCCESS == end.status


def test_a_resumed_training_has_no_step_twice(text_file: Path, tmp_path: Path) -> None:
    """Broken off after step 5 with its checkpoint at 4, the curves afterwards are those of metrics.jsonl."""
    config = logged_config(text_file, "tensorboard", train={"eval_every": 2, "checkpoint_every": 4})
    run = create_run(tmp_path, "runs", config)

    def stop(view: Any) -> None:
        if view.state.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(run, tmp_path, stop)
    assert [1, 2, 3, 4, 5] == [step for step, _ in scalars(run)["train/loss"]]
    run_one(run, tmp_path)
    assert [1, 2, 3, 4, 5, 6] == [step for step, _ in scalars(run)["train/loss"]]
    assert rounded(points(run)) == scalars(run)


@pytest.mark.parametrize("step", [-1, 2, 5])
def test_what_was_recorded_after_the_checkpoint_is_dropped(text_file: Path, tmp_path: Path, step: int) -> None:
    """After a kill, when nothing was closed, other values at the same steps take the place of the first."""
    run, recorder = begin(logged_config(text_file, "tensorboard"), tmp_path)
    tell(recorder, 1, 2, 3, 4, 5)
    tell(go_on(run, tmp_path, step), *range(step + 1 if step > 0 else 1, 8), value=10.0)
    assert rounded(points(run)) == scalars(run)
    assert [1, 2, 3, 4, 5, 6, 7] == [each for each, _ in scalars(run)["train/loss"]]


def test_files_of_one_second_are_read_in_order(text_file: Path, tmp_path: Path) -> None:
    """Readers sort by name: a process that starts within the second of the one before waits for the next."""
    run, recorder = begin(logged_config(text_file, "tensorboard"), tmp_path)
    tell(recorder, 1, 2, 3)
    (first,) = (run.path / "tensorboard").iterdir()
    *_, host, _, number = first.name.split(".")
    first.rename(first.with_name(f"events.out.tfevents.{int(time.time()):010d}.{host}.999999999.{number}"))
    tell(go_on(run, tmp_path, 1), 2, 3, value=10.0)
    assert rounded(points(run)) == scalars(run)


def test_going_back_within_a_run_drops_too(text_file: Path, tmp_path: Path) -> None:
    """As with train.on_nan=rewind, in one process and one file."""
    run, recorder = begin(logged_config(text_file, "tensorboard"), tmp_path)
    tell(recorder, 1, 2, 3, 4, 5)
    recorder.rewind(3)
    tell(recorder, 4, 5, 6, value=10.0)
    assert 1 == len(list((run.path / "tensorboard").iterdir()))
    assert rounded(points(run)) == scalars(run)


def test_a_logger_that_joins_late_gets_what_it_missed(text_file: Path, tmp_path: Path) -> None:
    """Asked for at --resume, or left out in the middle: the curves are whole."""
    run, recorder = begin(logged_config(text_file, None), tmp_path)
    tell(recorder, 1, 2)
    tell(go_on(run, tmp_path, 2, "tensorboard"), 3, 4)
    tell(go_on(run, tmp_path, 4, "null"), 5, 6)
    tell(go_on(run, tmp_path, 6, "tensorboard"), 7)
    assert [1, 2, 3, 4, 5, 6, 7] == [step for step, _ in scalars(run)["train/loss"]]
    assert rounded(points(run)) == scalars(run)


def test_a_run_that_stopped_has_no_end(text_file: Path, tmp_path: Path) -> None:
    """A stopped run writes no session end, since readers keep the first one."""
    run, recorder = begin(logged_config(text_file, "tensorboard"), tmp_path)
    tell(recorder, 1)
    recorder.status(INTERRUPTED)
    assert metadata.SESSION_END_INFO_TAG not in read(run).PluginTagToContent(metadata.PLUGIN_NAME)
