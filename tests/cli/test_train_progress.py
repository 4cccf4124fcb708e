"""Extreme and non-finite figures are shown, and printed JSON stays JSON."""

import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from moe_cli.cli.options import print_json, trained_run
from moe_cli.cli.search import _step
from moe_cli.cli.train_progress import print_summary
from moe_cli.errors import CheckpointError
from moe_cli.files.checksums import write_sealed
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.recorder import Recorder
from moe_cli.training.checkpoint import latest_checkpoint
from tests.tiny import tiny_config


def test_a_perplexity_beyond_every_float_is_shown(finished: Run, tmp_path: Path) -> None:
    """exp(800) is infinite and stands as null in summary.json; the summary on the screen says inf."""
    run = Run(Path(shutil.copytree(finished.path, tmp_path / finished.id)))
    write_sealed(run.path / "summary.json", {**(run.summary() or {}), "val_loss": 800.0, "val_perplexity": math.inf})
    text = io.StringIO()
    print_summary(Console(file=text, width=120), run)
    assert "800.000 nats/token" in text.getvalue()
    assert "perplexity inf" in text.getvalue()


def test_the_end_of_a_run_says_how_to_look_at_tensorboard(finished: Run, tmp_path: Path) -> None:
    """Only with that logger."""
    run = Run(Path(shutil.copytree(finished.path, tmp_path / "runs" / finished.id)))
    last = {}
    for log in (None, "tensorboard+mlflow"):
        (run.path / "config.json").write_text(json.dumps({**run.config_dict(), "log": log}))
        text = io.StringIO()
        print_summary(Console(file=text, width=120), run)
        last[log] = text.getvalue().splitlines()[-1].split()
    assert {
        None: ["moe", "report"],
        "tensorboard+mlflow": ["tensorboard", "--logdir", os.path.relpath(tmp_path)],
    } == last


def test_the_summary_tells_the_whole_time_from_the_training(finished: Run, tmp_path: Path) -> None:
    """The time from start to end includes evaluations; a run of several starts has only the training time."""
    run = Run(Path(shutil.copytree(finished.path, tmp_path / finished.id)))
    write_sealed(run.path / "summary.json", {**(run.summary() or {}), "seconds": 34.0, "dispatch": "loop"})
    lines = {}
    for starts in (1, 2):
        status = {**run.status(), "started": 1000.0, "heartbeat": 1079.0, "starts": starts}
        (run.path / "status.json").write_text(json.dumps(status))
        text = io.StringIO()
        print_summary(Console(file=text, width=120), run)
        lines[starts] = text.getvalue().splitlines()[0]
    assert lines[1].startswith("done in 1m 19s   training 34s   ")
    assert lines[1].endswith("tok/s   back end loop")
    assert lines[2].startswith("done   training 34s   ")


def test_a_narrow_terminal_breaks_the_summary_between_its_parts(finished: Run) -> None:
    """A terminal gets no line beyond its width and no part of a part; a file gets one line, whatever the width."""
    texts = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        print_summary(Console(file=file, width=40, force_terminal=is_terminal, no_color=True), run=finished)
        texts[is_terminal] = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()).split("  validation")[0]
    assert all(len(line) <= 40 and line == line.rstrip() for line in texts[True].splitlines())
    assert texts[False].count("\n") == 1
    assert texts[True].split() == texts[False].split()


def test_latest_is_the_newest_run_with_a_checkpoint(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newer run without a checkpoint is named; a running run has no checkpoint yet."""
    shutil.copytree(finished.path, tmp_path / "runs" / finished.id)
    newer = create_run(tmp_path, "runs", tiny_config(tmp_path, seed=7))
    Recorder(newer).status("running", created=4e9, host="another")
    assert finished.id == trained_run(tmp_path, "latest").id
    assert f"note: {newer.id}, the newest run, has no checkpoint. {finished.id} is used.\n" == capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs" / finished.id)
    with pytest.raises(CheckpointError, match="is running and has no checkpoint yet"):
        latest_checkpoint(trained_run(tmp_path, "latest"))


def test_a_curve_that_is_not_finite_does_not_end_a_search(tmp_path: Path) -> None:
    """The panel of a search reads a validation loss of null, which a run leaves that is about to fail."""
    run = create_run(tmp_path, "sweep", tiny_config(tmp_path))
    recorder = Recorder(run)
    assert "starting" == _step(run)
    recorder.metrics({"step": 2, "train/loss": 1.5})
    assert "step 2" == _step(run)
    recorder.metrics({"step": 2, "val/bpb": 1.25})
    recorder.metrics({"step": 4, "val/bpb": math.nan})
    assert "step 4   bpb 1.250" == _step(run)


def test_printed_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinity, which JSON does not have, are null for programs too."""
    print_json({"rows": [{"val_loss": math.nan, "val_perplexity": math.inf, "k": 2}]})
    assert {"rows": [{"val_loss": None, "val_perplexity": None, "k": 2}]} == json.loads(capsys.readouterr().out)
    print_json({"x": math.nan})
    assert "NaN" not in capsys.readouterr().out
