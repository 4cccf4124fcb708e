"""What a sweep prints before it starts: every point, what is done, sums, and why others are left out."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.sweepplan import Ahead, head, point_lines, statuses
from moe_cli.forecast import make_plans
from moe_cli.store import Recorder, Run
from moe_cli.sweeps.plan import plan_sweep


@pytest.fixture
def ahead(settings: list[str], tmp_path: Path) -> Ahead:
    """Two configurations of two seeds, of which one run is done and one failed; others cannot be or are not asked for."""
    words = ["expert=2,4", "k=1,2,3", *settings]
    planned = plan_sweep(words, seeds=2, where=["k != 2"])
    runs = planned.existing(tmp_path)
    plans = make_plans([point.config for point in planned.points], tmp_path, 1e9)
    finish(runs[0], "completed")
    finish(runs[1], "failed")
    return Ahead(planned, plans, statuses(runs), 2, retry_failed=False)


def finish(run: Run, status: str) -> None:
    run.path.mkdir(parents=True)
    recorder = Recorder(run)
    recorder.complete({"val_bpb": 1.0}) if status == "completed" else recorder.status(status)


def test_head(ahead: Ahead) -> None:
    """How many are done, to go and failed; each point that cannot be with its reason; how many `where` leaves out."""
    lines = [line for _, line in head(ahead)]
    assert (
        lines[0]
        == "3 configurations x 2 seeds = 6 runs: 1 done before, 4 to go, 1 failed before (--retry-failed runs them again)"
    )
    assert lines[1].startswith("  left out  expert=2 k=3: k=3 is more than expert=2")
    assert lines[2] == "  where     holds not for 2 more"
    assert lines[-1].startswith("about ")
    again = [line for _, line in head(Ahead(ahead.planned, ahead.plans, ahead.status, 2, retry_failed=True))]
    assert again[0].endswith("1 done before, 5 to go")


def test_sums_are_those_of_the_points(ahead: Ahead) -> None:
    """Tokens of all and of what is to go: six steps of 4 x 16 tokens each; the status of every point."""
    lines = point_lines(ahead, None)
    assert len(lines) == 1 + 6 + 2
    assert [line.split()[-1] for line in lines[1:7]] == ["completed", "failed", *["new"] * 4]
    assert [line.split(":")[0] for line in lines[7:]] == ["total", "to go"]
    assert ["2.30k", "1.54k"] == [line.split()[3 if "to go" not in line else 4] for line in lines[7:]]
    assert {line.split()[5] for line in lines[1:7]} == {"384"}


@pytest.mark.parametrize("width", [72, 80])
def test_a_narrow_terminal_loses_no_word(ahead: Ahead, width: int) -> None:
    """Names that have no room go on below, and no line is longer than the terminal."""
    wide, narrow = point_lines(ahead, None), point_lines(ahead, width)
    assert max(map(len, narrow)) <= width
    assert sorted(word for line in wide for word in line.split()) == sorted(
        word for line in narrow for word in line.split()
    )


def test_a_budget_of_time_has_no_tokens(settings: list[str], tmp_path: Path) -> None:
    """A dash for what is not known, and the time."""
    words = [word for word in settings if not word.startswith("train.steps")]
    planned = plan_sweep(["expert=2,4", "train.minutes=2", *words])
    plans: Any = make_plans([point.config for point in planned.points], tmp_path, 1e9)
    lines = point_lines(Ahead(planned, plans, ["new", "new"], 1, retry_failed=False), None)
    assert [line.split()[4:6] for line in lines[1:3]] == [["-", "-"]] * 2
    assert "4m" in lines[-1]
