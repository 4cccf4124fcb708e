"""Names with bytes that are no UTF-8, and half characters in records, stop no report."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli import load_curves, load_runs
from moe_cli.cli.app import app
from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.runs.folder import FAILED
from moe_cli.runs.recorder import Recorder
from tests.report.folders import complete, stopped
from tests.runner import CliRunner

BYTES = os.fsdecode(b"s\xff\xfe")


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_written(text: str) -> None:
    """Text that is UTF-8 already stays as it is."""
    shown = as_utf8(text)
    assert (True, is_utf8(text)) == (is_utf8(shown), shown == text)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Runs with and without results, where no name of a folder is UTF-8, and with half a character in what they say."""
    outputs = tmp_path / os.fsdecode(b"w\xff") / "outputs"
    for seed, loss in enumerate((1.7, 1.8)):
        run = complete(outputs, loss, BYTES, results={"note\ud800": 1.0, "words": "\ud800"}, expert=4, k=2, seed=seed)
        Recorder(run).metrics({"step": 1, "train/loss": loss, "val/bpb": loss})
        complete(outputs, loss + 0.1, BYTES, expert=1, k=1, seed=seed)
    stopped(outputs, FAILED, "out of \udcff memory", BYTES, expert=8, k=2)
    return outputs


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.md", "a.tex", "a.html", os.fsdecode(b"\xff.csv")])
def test_every_export_is_written(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In a working directory whose name is no UTF-8, to a file whose name is none."""
    monkeypatch.chdir(outputs.parent)
    result = CliRunner().invoke(app, ["report", BYTES, "-o", name])
    assert 0 == result.exit_code, result.output
    assert (outputs.parent / name).read_bytes().decode()


@pytest.mark.parametrize("words", [["report"], ["runs", "ls"], ["runs", "ls", "--json"], ["runs", "show", "latest"]])
def test_every_list_is_printed(outputs: Path, words: list[str]) -> None:
    """With such bytes as something a terminal can show."""
    result = CliRunner().invoke(app, [*words, "--outputs", str(outputs)])
    assert 0 == result.exit_code, result.output


def test_frames_lead_to_the_folders(outputs: Path) -> None:
    """The group is spelled out, and the path stays the one of the folder."""
    frame, curves = load_runs(outputs), load_curves(outputs)
    assert {"s\\xff\\xfe"} == set(frame["sweep"]) == set(curves["sweep"])
    assert all(Path(path, "config.json").is_file() for path in frame["path"])
