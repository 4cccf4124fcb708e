"""Wrong requests print one to three lines and exit with code 2, without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import RunBusy, TrainingError
from moe_cli.runs.lookup import list_runs_by_age
from tests.runner import CliRunner

WRONG = {
    "train exprt=8": "error: no setting 'exprt'. Did you mean 'expert'?",
    "train train.device=cuda": "error: train.device=cuda: torch sees no GPU. Use train.device=cpu",
    "train --resume latest": "error: no runs in OUTPUTS. Make one: moe train",
    "eval gpt": "error: no runs in OUTPUTS. Make one: moe train",
    "sample latest": "error: no runs in OUTPUTS. Make one: moe train",
    "sample latest --temperature inf": "error: --temperature inf is not a number. Use 0 to 2.",
    "sample latest --prompt \udcff": "error: --prompt is not UTF-8 text.",
    "train --resume latest expert=8": "error: --resume takes expert from the run itself: leave it out.\nWhat may change is how it is carried out: launch.num_processes and its like, train.threads, train.device, log.",
    "train --resume latest --config-dir .": "error: --resume takes the settings from the run. Leave out --config-dir.",
    "config --groups expert=8": "error: --groups lists every choice. Leave settings and --diff out.",
    "sample latest --prompt=": "error: --prompt is empty: give at least one character.",
    "report": "error: no runs in OUTPUTS. Make one: moe train",
    "sweep expert=8": "error: nothing varies. Give several values, as in: moe sweep expert=1,8 k=1,2. "
    "Or name a sweep: moe config --groups",
    "sweep seed=1,2 --seeds 2": "error: seed=1,2 and --seeds 2 both choose seeds: give one.",
    "sweep k=1,2 --timeout 5": "error: --timeout 5 is not a duration. Give a number with a unit: 30s, 10m, 2h or 1h30m.",
    "sweep k=1,2 --force --retry-failed": "error: --force starts every run again: --retry-failed has no effect. "
    "Leave it out.",
    "sweep k=1,2 --force --rerun-stale": "error: --force starts every run again: --rerun-stale has no effect. "
    "Leave it out.",
    "sweep k=1,2 --name a/b": "error: --name a/b must be a plain folder name.",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_request(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is exactly what stands in the table, nothing goes to standard output, and the exit code is 2."""
    outputs = tmp_path / "outputs"
    monkeypatch.setenv("MOE_OUTPUTS", str(outputs))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command.split())
    assert result.stderr.strip() == WRONG[command].replace("OUTPUTS", str(outputs))
    assert (result.stdout, result.exit_code) == ("", 2)


DATA = {
    "missing": (None, "does not exist."),
    "empty": (b"", "is empty. Give a file or folder of text."),
    "binary": (b"abc\0def" * 100, "is not text"),
    "latin": (
        "caf\xe9 ".encode("latin-1") * 100,
        "is not UTF-8",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_unusable_data(name: str, tmp_path: Path) -> None:
    """A file that cannot be used is named, with what is wrong and where; no run folder is left behind."""
    content, problem = DATA[name]
    path = tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(app, ["train", "data=text", f"data.path={path}", "--outputs", str(tmp_path / "out")])
    assert result.stderr.startswith(f"error: data.path={path} {problem}")
    assert len(result.stderr.splitlines()) == 1
    assert result.exit_code == 2
    assert not (tmp_path / "out" / "runs").exists()


def test_short_text(tmp_path: Path) -> None:
    """A text shorter than one context says how much there is and how much it takes, in two lines."""
    path = tmp_path / "notes.txt"
    path.write_text("too short " * 5)
    words = ["train", "data=text", f"data.path={path}", "model.context_length=128", "--outputs", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.stderr.splitlines() == [
        f"error: data.path={path} leaves 45 bytes for training and 5 for validation; one context takes 129.",
        "Give more text, or lower model.context_length.",
    ]
    assert result.exit_code == 2


def test_outputs_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where the outputs folder should be is an error that names it."""
    (tmp_path / "outputs").write_text("in the way")
    result = CliRunner().invoke(app, ["train", "train=smoke", "--outputs", str(tmp_path / "outputs")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) <= 3


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (TrainingError("the loss is nan."), 1, "error: the loss is nan."),
        (RunBusy("it is being written."), 2, "error: it is being written."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (OSError(5, "Input/output error", "out.csv"), 1, "error: Input/output error: out.csv"),
        (
            OSError(28, "No space left on device", "out.csv"),
            1,
            "error: No space left on device: out.csv\n"
            "Free space, for example what the trash holds: moe runs clean --older-than 0d --yes, then the same command.",
        ),
        (OSError("no reason"), 1, "error: no reason"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(
    error: BaseException, code: int, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 the work failed, 2 a wrong request, 130 interrupted: each with its reason on standard error, a full disk with the way on."""

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("moe_cli.report.load.load_selection", fail)
    result = CliRunner().invoke(app, ["report", "--outputs", str(tmp_path)])
    assert (printed, "", code) == (result.stderr.strip(), result.stdout, result.exit_code)


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`moe config | head -1` ends quietly, with exit code 0."""
    command = [sys.executable, "-m", "moe_cli", "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (b"", 0) == (process.stderr.read(), process.wait())


@pytest.mark.slow
@pytest.mark.parametrize("reader", [None, "head"])
def test_a_training_without_a_reader_says_why_it_stopped(
    reader: str | None, settings: list[str], tmp_path: Path
) -> None:
    """`moe train | nosuchprogram`: the run is interrupted, with the reason, and goes on when it is asked to.

    Each of many steps prints a line, so that the training cannot end before the reader has gone.
    """
    words = [*settings, "train.steps=100", "train.eval_every=1"]
    command = [sys.executable, "-m", "moe_cli", "train", *words, "--outputs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if reader:
            process.stdout.readline()
        process.stdout.close()
        assert 130 == process.wait()
    (run,) = list_runs_by_age(tmp_path)
    assert "interrupted" == run.status()["status"]
    assert run.status()["reason"].startswith("stopped at once")
    assert 0 == CliRunner().invoke(app, ["train", "--resume", run.id, "--outputs", str(tmp_path)]).exit_code
