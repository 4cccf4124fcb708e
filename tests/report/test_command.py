"""`moe report` as it is typed."""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.runs.folder import FAILED
from tests.report.folders import complete, stopped, sweep_of_three_seeds
from tests.runner import CliRunner


def report(outputs: Path, *words: str, columns: str | None = None) -> Result:
    return CliRunner().invoke(app, ["report", *words, "--outputs", str(outputs)], env={"COLUMNS": columns})


def test_piped_output_is_plain_and_wide(tmp_path: Path) -> None:
    """Without a terminal: no escapes, up to 120 columns, or as many as COLUMNS says."""
    sweep_of_three_seeds(tmp_path)
    piped = report(tmp_path)
    assert piped.exit_code == 0
    assert "\x1b" not in piped.output
    assert 80 < max(map(len, piped.output.splitlines())) <= 120
    assert max(map(len, report(tmp_path, columns="70").output.splitlines())) <= 70


def test_formats(tmp_path: Path) -> None:
    """Each format is one document on standard output."""
    sweep_of_three_seeds(tmp_path)
    content = json.loads(report(tmp_path, "--format", "json").stdout)
    assert [entry["expert"] for entry in content] == [16, 8, 8, 1]
    assert report(tmp_path, "--format", "csv").stdout.startswith("run,runs,status,expert,k,")
    assert report(tmp_path, "--format", "md").stdout.startswith("| expert | k | params |")


def test_selection_filter_sort_columns_and_runs(tmp_path: Path) -> None:
    """The options reach the report together."""
    sweep_of_three_seeds(tmp_path)
    condition = "expert == 8 and seed != 1"
    words = ["sparsity", "--where", condition, "--sort", "-val_bpb", "--columns", "k, seed", "--runs"]
    assert report(tmp_path, *words, "--format", "csv").stdout.split() == ["k,seed", "1,2", "2,2", "1,0", "2,0"]


def test_a_baseline_outside_the_selection_is_found(tmp_path: Path) -> None:
    """The dense run that the report advises to make is used, wherever it lies in the outputs folder."""
    complete(tmp_path, 1.8, "mine", expert=8)
    assert "moe train expert=1" in report(tmp_path, "mine").stdout
    complete(tmp_path, 2.0, "runs", expert=1)
    assert "-10.0 %" in report(tmp_path, "mine").stdout
    assert "moe train" not in report(tmp_path, "mine").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "'nosuch'"),
        (["--sort", "exprt"], "no column 'exprt'. Did you mean 'expert'?"),
        (["--columns", "exprt"], "no column 'exprt'. Did you mean 'expert'?"),
        (["--sort", "foo"], "no column 'foo'. There are: "),
        (["--where", "expert > 100"], "'expert > 100'"),
        (["--where", "expert = 8"], "Write == to compare"),
        (["--where", "__import__('os')"], "is not allowed"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    """No traceback, the word that was wrong, and what to do."""
    sweep_of_three_seeds(tmp_path)
    result = report(tmp_path, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_runs(tmp_path: Path) -> None:
    """An empty outputs folder says how to begin."""
    result = report(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: no runs in {tmp_path}. ")


def test_a_blank_reason_of_a_failure_counts_as_none(tmp_path: Path) -> None:
    """A status.json that was damaged or written by hand may hold one: report, page and recommendation do without."""
    complete(tmp_path, 1.8, "mine", expert=8)
    run = stopped(tmp_path, FAILED, " \n", "mine", expert=64, k=8)
    advice = CliRunner().invoke(app, ["recommend", "--outputs", str(tmp_path)])
    assert "Failed: expert=64 k=8: see traceback.txt." in advice.stdout
    assert f"1 failed, the first {run.id}: see traceback.txt in its folder" in report(tmp_path, columns="120").stdout
    cells = report(tmp_path, "--runs", "--columns", "run, reason", "--format", "md").stdout
    assert f"| {run.id} | - |" in cells.replace("\\", "")
    page = tmp_path / "page.html"
    assert report(tmp_path, "-o", str(page)).exit_code == 0
    assert f'["{run.id}","failed","-"]' in page.read_text(encoding="utf-8").replace('", "', '","')
