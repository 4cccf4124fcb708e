"""The edge of the command line: usage, names, paths and memory that cannot be end in three lines and exit code 2."""

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from moe_cli.cli.app import app
from moe_cli.data.baselines import bigram_bits_per_byte
from moe_cli.execution.estimate import estimate_runs
from moe_cli.execution.memory import MAX_MEMORY_RATIO, check_memory, memory_bytes
from moe_cli.formatting import or_dash, plural
from moe_cli.metrics import METRICS
from moe_cli.report.render.terminal_chart import Chart, Point, Series, chart_lines
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.sweeps.plan import check_folder
from tests.cli.conftest import Moe
from tests.runner import CliRunner

LONG = "x" * 300
USAGE = [
    "--nothing",
    "nothing",
    "report --nothing",
    "sample",
    "sample latest --tokens many",
    "runs nothing",
    "runs show",
    "sweep k=1,2 --jobs 0",
    "bench --seconds inf",
    "report --format nothing",
    "train --resume",
]


@pytest.mark.parametrize("command", USAGE)
def test_wrong_usage_fits_three_lines(command: str) -> None:
    """Wrong usage prints the error first, the `See:` line last, and at most three lines, with exit code 2."""
    result = CliRunner().invoke(app, command.split())
    lines = result.stderr.splitlines()
    assert (2, "") == (result.exit_code, result.stdout)
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("See: ")
    assert len(lines) <= 3


def test_a_command_without_words_prints_its_help() -> None:
    """Not an error and two lines."""
    assert "train      Train one model" in CliRunner().invoke(app, []).output


NAMES = [
    f"runs show {LONG}", f"eval {LONG}", f"report {LONG}", f"runs restore {LONG}", f"runs rm {LONG}", f"runs watch {LONG}",
    f"runs diff {LONG} latest", f"train --resume {LONG}", f"train --config-dir {LONG}", f"train data=text data.path={LONG}",
    f"train --outputs {LONG} train.steps=1", f"train data={LONG}", f"config experiment={LONG}", f"sweep {LONG}",
    f"sweep k=1,2 --name {LONG}", f"sweep k=1,2 --executor {LONG}", f"train data.tokenizer=./{LONG}.json",
    "train data=text data.path=file/below", "train train.steps=1 --outputs file", "train --config-dir file", "eval latest --outputs file/below",
]  # fmt: skip


@pytest.mark.parametrize("command", NAMES, ids=lambda command: command.replace(LONG, "LONG"))
def test_a_name_that_cannot_be_is_a_wrong_request(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 255 letters, or below a file: exit code 2, at most three lines, no traceback."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_OUTPUTS", str(tmp_path / "outputs"))
    result = CliRunner().invoke(app, command.split())
    errors = [line for line in result.stderr.splitlines() if not line.startswith(("note: ", "unreadable: "))]
    assert (2, True) == (result.exit_code, isinstance(result.exception, SystemExit)), result.output
    assert 1 <= len(errors) <= 3


CODES = {
    errno.ENAMETOOLONG: 2,
    errno.EACCES: 2,
    errno.EPERM: 2,
    errno.EROFS: 2,
    errno.EISDIR: 2,
    errno.ENOTDIR: 2,
    errno.ENOENT: 2,
    errno.ELOOP: 2,
    errno.EIO: 1,
    errno.ENOMEM: 1,
}


@pytest.mark.parametrize("number", CODES)
def test_what_another_path_mends_is_a_wrong_request(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the machine cannot do is a failure; the path is on one line, whatever it holds."""

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), "out\n.csv")

    monkeypatch.setattr("moe_cli.report.load.load_selection", fail)
    result = CliRunner().invoke(app, ["report", "--outputs", str(tmp_path)])
    assert CODES[number] == result.exit_code
    assert f"error: {os.strerror(number)}: out?.csv\n" == result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the folder of a process")
def test_a_deleted_working_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every command, before anything else."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for command in ("config", "report", "train --dry-run", "runs ls"):
        result = CliRunner().invoke(app, command.split())
        assert (2, "error: the working directory was deleted. Go to one that exists: cd ~\n") == (
            result.exit_code,
            result.stderr,
        )


@pytest.mark.parametrize(
    "name", ["latest", "a\nb", "a\x1bb", LONG, "é" * 150, "", " ", "a/b", "..", ".hidden", "\udcff"]
)
def test_a_sweep_has_a_name_that_others_can_type(name: str, tmp_path: Path, moe: Moe) -> None:
    """`--name` refuses names that are reserved, empty, hidden, too long, or have a slash or a control character."""
    result = moe("sweep", "k=1,2", "train.steps=1", "--name", name, "--dry-run")
    assert 2 == result.exit_code
    assert result.stderr.startswith("error: --name ")
    assert 1 == len(result.stderr.splitlines())
    assert "mine" == check_folder("mine")


def test_memory_that_is_not_there_is_refused(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe: Moe
) -> None:
    """Before a folder is made; a dry run only says so, and --force-memory insists. A sweep likewise."""
    monkeypatch.setattr("moe_cli.execution.memory.total_memory_bytes", lambda: 1_000_000)
    for words in (["train", *settings], ["sweep", "k=1,2", *settings]):
        result = moe(*words)
        assert 2 == result.exit_code
        assert "of memory are needed, and this machine has 1.00 MB" in result.stderr
        assert "--force-memory" in result.stderr.splitlines()[-1]
        assert len([line for line in result.stderr.splitlines() if not line.startswith("note")]) <= 3
        assert 0 == moe(*words, "--dry-run").exit_code
    assert not list_runs_by_age(tmp_path / "outputs")
    monkeypatch.setattr("moe_cli.cli.train._train", lambda *arguments: None)
    assert 0 == moe("train", *settings, "--force-memory").exit_code
    assert 1 == len(list_runs_by_age(tmp_path / "outputs"))


def test_memory_is_refused_from_a_multiple_of_what_there_is(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs over MAX_MEMORY_RATIO times the memory is refused, unless forced or the memory is unknown."""
    from moe_cli.config.compose import load_config
    from moe_cli.errors import ConfigError

    (plan,) = estimate_runs([load_config([*settings, "train.device=cpu"]).config], tmp_path, 1e9)
    need = memory_bytes(plan.cost)
    monkeypatch.setattr("moe_cli.execution.memory.total_memory_bytes", lambda: need // MAX_MEMORY_RATIO + 1)
    check_memory([plan])
    monkeypatch.setattr("moe_cli.execution.memory.total_memory_bytes", lambda: need // MAX_MEMORY_RATIO - 1)
    with pytest.raises(ConfigError, match="--force-memory"):
        check_memory([plan])
    check_memory([plan], force=True)
    monkeypatch.setattr("moe_cli.execution.memory.total_memory_bytes", lambda: None)
    check_memory([plan])


@pytest.mark.slow
def test_a_benchmark_names_what_is_too_much(moe: Moe) -> None:
    """A device that is none, shapes without end or memory."""
    wrong = {
        "layer --device foo": "--device foo is not",
        "layer --tokens 16000000 --k 64 --experts 65536": "of memory, and this machine has",
        f"layer --tokens {','.join(['8'] * 40)} --experts {','.join(['8'] * 40)}": "1,600 shapes are too many",
        "step train.batch_size=16000000": "of memory are needed, and this machine has",
    }
    for words, why in wrong.items():
        result = moe("bench", *words.split())
        assert (2, True) == (result.exit_code, why in result.stderr), result.output
        assert 1 == len(result.stderr.splitlines())


def test_nothing_is_less_than_zero_by_a_sign() -> None:
    """A loss of -0.0, or one that rounds to it, is 0."""
    import numpy as np

    from moe_cli.data.tokenizers import ByteTokenizer

    assert ("0.000", "0.000") == (or_dash(-0.0), or_dash(-1e-9))
    assert not any(metric.write(-1e-9).startswith("-") for metric in METRICS)
    same = np.zeros(1000, np.uint8)
    assert "0" == str(bigram_bits_per_byte(same, same, ByteTokenizer()))[0]


def test_one_is_no_plural() -> None:
    """1 layer, 2 layers."""
    assert ("1 layer", "2 layers", "0 layers") == (plural(1, "layer"), plural(2, "layer"), plural(0, "layer"))


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 1.0001), (0.0, 0.0), (1.0, 1.0 + 1e-9), (1.0, 2.0), (-1e-9, 1.0)])
def test_no_tick_stands_twice(values: tuple[float, float]) -> None:
    """Whatever the span of an axis."""
    chart = Chart("y", "x", (Series("", (Point(values[0], values[0], None), Point(values[1], values[1], None))),), 0)
    shown = [line.plain for line in chart_lines(chart, "title", 60)]
    ticks = [text for line in shown if "┤" in line and (text := line.partition("┤")[0].strip())]
    assert len(set(ticks)) == len(ticks) > 0
    below = next(line for number, line in enumerate(shown) if number and "└" in shown[number - 1]).split()
    assert len(set(below)) == len(below) > 0
    assert "-0" not in " ".join([*ticks, *below]).replace("e-0", "")


@pytest.mark.parametrize("words", [["train"], ["sweep", "k=1,2"]])
def test_two_signals_after_the_plan_end_with_the_way_on(
    words: list[str], settings: list[str], monkeypatch: pytest.MonkeyPatch, moe: Moe
) -> None:
    """SIGTERM and SIGINT sent together before training begins: one line that says how to go on, and exit code 130."""

    def send(*arguments: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("moe_cli.cli.train_preview.print_estimate", send)
    monkeypatch.setattr("moe_cli.cli.views.print_head", send)
    result = moe(*words, *settings)
    assert 130 == result.exit_code
    assert re.search(r"moe train --resume gpt|The same command continues", result.stdout.splitlines()[-1])
    assert before == signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("path", ["afile", "afile/outputs"])
@pytest.mark.parametrize("words", ["train", "sweep k=1,2 --dry-run", "report", "runs ls", "eval latest", "runs clean"])
def test_outputs_in_a_file_are_refused(words: str, path: str, tmp_path: Path, moe: Moe) -> None:
    """The message says what is wrong and what to do, for every command."""
    (tmp_path / "afile").write_text("text")
    result = moe(*words.split(), "--outputs", str(tmp_path / path))
    expected = f"error: {tmp_path / 'afile'} is not a folder. Choose a folder for the runs: --outputs DIR\n"
    assert (2, expected) == (result.exit_code, result.stderr)
