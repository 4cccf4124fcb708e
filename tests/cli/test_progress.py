"""The board: right counts, best and time left; no line too wide; plain lines when piped; what a stopped sweep leaves."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from moe_cli import load_runs, recommend
from moe_cli.cli.progress import SweepDisplay, SweepProgress, best_so_far, eta_seconds, finished_line, panel
from moe_cli.cli.runs.watch import SweepFolder, run_panel, watch_run, watch_sweep
from moe_cli.files.checksums import write_sealed
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.configuration import best_rows
from moe_cli.report.load import rows_below
from moe_cli.runs.folder import COMPLETED, FAILED, PENDING, RUNNING, Run
from moe_cli.runs.locks import sweep_lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.status import read_status, read_statuses
from moe_cli.sweeps.plan import SweepPlan, plan_sweep
from moe_cli.sweeps.scheduler import Progress
from tests.report.folders import complete, edit_summary, set_status, stopped, summary, sweep_of_three_seeds

NOW = 1_000_000.0


def render(content: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def standing_of(runs: list[Run], waiting: int = 0) -> SweepProgress:
    seen = read_statuses(runs)
    done, running, failed = (
        [each for each in seen if each.status == status] for status in (COMPLETED, RUNNING, FAILED)
    )
    return SweepProgress(done, running, failed, waiting)


def going_on(outputs: Path, step: int, started: float = NOW - 100, **settings: int) -> Run:
    run = stopped(outputs, RUNNING, group="sparsity", **settings)
    set_status(run, RUNNING, host="elsewhere", heartbeat=time.time(), started=started, step=step, steps=100)
    line = '{"step": %d, "val/loss": 1.36, "val/bpb": 1.96, "val/max_violation": 0.41, "val/dead_experts": 0.125, "tokens_per_second": 24100}\n'
    (run.path / "metrics.jsonl").write_text(line % step)
    return run


@pytest.fixture
def mixed(tmp_path: Path) -> SweepProgress:
    """Twelve runs done, two running, one failed, three waiting."""
    sweep_of_three_seeds(tmp_path)
    going_on(tmp_path, 50, expert=16, k=4)
    going_on(tmp_path, 0, expert=32, k=4)
    stopped(tmp_path, FAILED, "out of memory: lower train.batch_size\nand more", "sparsity", expert=64, k=8)
    return standing_of(list_runs_by_age(tmp_path), waiting=3)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160, 200])
def test_the_panel_fits_every_width(mixed: SweepProgress, width: int) -> None:
    """No line is wider than the terminal, and each thing has a line of its own."""
    lines = render(panel(mixed, {}, width, 24, NOW), width)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if line[:3] != "   "] == ["13/18", "running", "best", "failed"]
    assert len(lines) == 5


def test_the_panel_says_what_matters(mixed: SweepProgress) -> None:
    """The panel shows counts, the figures of running runs, the best with the dense model, and the reason of failure."""
    text = "\n".join(render(panel(mixed, {}, 160, 24, NOW), 160))
    for part in (
        "13/18",
        "12 done",
        "2 running",
        "1 failed",
        "3 waiting",
        "step 50/100",
        "val 1.360",
        "24.1k tok/s",
        "MaxVio +41 %",
        "dead 12 %",
        "1m 40s left",
        "starting",
        "1.718 +- 0.020 bits/byte",
        "dense 1.840",
        "3 seeds",
        "out of memory: lower train.batch_size",
    ):
        assert part in text, part
    assert "and more" not in text


def test_the_panel_is_no_higher_than_the_terminal(tmp_path: Path) -> None:
    """The panel shows some of many running and failed runs and counts the others."""
    for seed in range(30):
        going_on(tmp_path, 10, expert=4, seed=seed)
        stopped(tmp_path, FAILED, "x", "sparsity", expert=8, seed=seed)
    lines = render(panel(standing_of(list_runs_by_age(tmp_path)), {}, 80, 20, NOW), 80)
    assert len(lines) <= 20
    assert "and 19 more running" in "\n".join(lines)
    assert "and 27 more failed: moe runs ls sparsity --status failed" in "\n".join(lines)


def test_the_best_is_a_configuration(tmp_path: Path) -> None:
    """The best configuration has the lowest mean over seeds; its dense model has the same budget."""
    for seed, bits in enumerate((1.60, 1.90)):
        complete(tmp_path, bits, expert=8, seed=seed)
    for seed, bits in enumerate((1.70, 1.72)):
        complete(tmp_path, bits, expert=16, seed=seed)
    complete(tmp_path, 1.80, expert=1)
    complete(tmp_path, 1.75, expert=1, train__steps=900)  # which learned longer
    runs = list_runs_by_age(tmp_path)
    labels = {run.path: f"expert={run.config().expert} seed={run.config().seed}" for run in runs}
    best, longer = best_so_far(read_statuses(runs), labels)
    assert (longer.is_dense, longer.loss.mean) == (True, 1.75)
    assert (best.label, best.seeds, best.is_dense, best.dense) == ("expert=16", 2, False, 1.80)
    assert best.loss.mean == pytest.approx(1.71)


def test_runs_that_are_not_ranked_together_have_a_best_each(tmp_path: Path) -> None:
    """Data sets and budgets in tokens, FLOPs or time: the rows that the report marks as best, and no best across budgets."""
    for expert, bits in ((8, 1.6), (16, 1.5)):
        complete(tmp_path, bits, expert=expert)
        complete(tmp_path, bits - 0.3, expert=expert, results={"corpus_sha256": "cd" * 32})
        for flops in (1e12, 3e12):
            complete(tmp_path, bits - flops / 1e14, expert=expert, train__flops=flops)
    found = best_so_far(read_statuses(list_runs_by_age(tmp_path)), {})
    rows = best_rows(aggregate_seeds(rows_below(tmp_path)).configurations)
    assert 4 == len(rows)
    assert sorted(row["val_bpb"] for row in rows) == sorted(best.loss.mean for best in found)


def test_a_sweep_over_budgets_shows_each(tmp_path: Path) -> None:
    """Each budget has a line; of nine budgets the panel shows some and counts the others, within its height."""
    labels = {}
    for place, flops in enumerate(1e12 * 2**power for power in range(9)):
        for expert in (4, 8):
            run = complete(tmp_path, 2.0 - place / 10 - expert / 100, "isoflop", expert=expert, train__flops=flops)
            labels[run.path] = f"expert={expert} train.flops={flops:g} seed=0"
    runs = sorted(list_runs_by_age(tmp_path), key=lambda run: run.config().train.flops or 0)
    text = render(panel(standing_of(runs[:4]), labels, 120, 24, NOW), 120)
    lines = [line for line in text if "bits/byte" in line]
    assert ["train.flops=1e+12", "train.flops=2e+12"] == [line.split("expert=8 ")[1].split()[0] for line in lines]
    text = render(panel(standing_of(runs), labels, 120, 10, NOW), 120)
    assert len(text) <= 10
    assert "and 6 more budgets or data sets: moe report isoflop" in "\n".join(text)


@pytest.mark.parametrize(("model", "unit"), [("vit", "nats/image"), ("bert", "nats/masked token")])
def test_losses_are_given_for_what_the_task_answers(tmp_path: Path, model: str, unit: str) -> None:
    """A run without bits per byte shows its loss in the unit of its task."""
    edit_summary(complete(tmp_path, 1.6, expert=8, model=model).path, val_bpb=None)
    found = read_statuses(list_runs_by_age(tmp_path))
    assert unit in finished_line(found[0], "expert=8").plain
    assert [unit] == [best.unit for best in best_so_far(found, {})]
    assert unit == recommend(load_runs(tmp_path)).unit


def test_time_left(tmp_path: Path) -> None:
    """Runs took 300 s each, and of two running one is half done after 100 s: with three waiting, 650 s."""
    done = complete(tmp_path, 1.7, expert=2)
    set_status(done, COMPLETED, started=NOW - 500, heartbeat=NOW - 200)
    half, fresh = going_on(tmp_path, 50, expert=4), going_on(tmp_path, 0, NOW, expert=8)
    standing = standing_of([done, half, fresh], waiting=3)
    assert eta_seconds(standing, NOW) == pytest.approx((100 + 300 + 3 * 300) / 2)
    assert eta_seconds(standing_of([fresh], waiting=3), NOW) is None
    assert eta_seconds(standing_of([half], waiting=1), NOW) == pytest.approx(100 + 200)


def sweep_at_hand(outputs: Path) -> tuple[SweepPlan, list[Run]]:
    plan = plan_sweep(["expert=1,4", "k=1", "train.steps=20"], name="mine")
    return plan, plan.create_runs(outputs)


def labelled(plan: SweepPlan, runs: list[Run]) -> dict[Run, str]:
    return {run: point.label for run, point in zip(runs, plan.points, strict=True)}


def finish(run: Run, val_bpb: float) -> None:
    set_status(run, COMPLETED)
    write_sealed(run.path / "summary.json", summary(run, run.config(), val_bpb))


def test_a_sweep_prints_a_line_for_each_end(tmp_path: Path) -> None:
    """Piped: one line for each run when it is done or has failed, and no panel; one more if a second try succeeds."""
    plan, runs = sweep_at_hand(tmp_path)
    console = Console(file=io.StringIO(), width=80)
    progress = Progress(len(runs))
    with SweepDisplay(console, labelled(plan, runs), runs) as display:
        display(progress)
        progress.waiting -= 1
        finish(runs[0], 1.7)
        progress.finished.append(runs[0])
        display(progress)
        progress.waiting -= 1
        set_status(runs[1], FAILED, reason="out of [memory]\nmore")
        progress.failed.append(runs[1])
        display(progress)
        display(progress)
        finish(progress.failed.pop(), 1.9)  # tried again
        progress.finished.append(runs[1])
        display(progress)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "done    expert=1 seed=0   1.700 bits/byte   24.0k tok/s",
        "failed  expert=4 seed=0   out of [memory]",
        "done    expert=4 seed=0   1.900 bits/byte   24.0k tok/s",
    ]


def test_a_sweep_counts_what_was_done_before(tmp_path: Path) -> None:
    """Runs that were complete when it began are done; one that runs again is no longer failed."""
    plan, runs = sweep_at_hand(tmp_path)
    finish(runs[0], 1.7)
    set_status(runs[1], FAILED, reason="x")
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with SweepDisplay(console, labelled(plan, runs), []) as display:
        before = display._sweep_progress(Progress())
    with SweepDisplay(console, labelled(plan, runs), [runs[1]]) as display:
        again = display._sweep_progress(Progress(1))
    assert (len(before.done), len(before.failed), before.waiting) == (1, 1, 0)
    assert (len(again.done), len(again.failed), again.waiting) == (1, 0, 1)


def test_a_terminal_gets_a_panel(tmp_path: Path) -> None:
    """It is drawn, and gone when the display ends; the lines above it stay."""
    plan, runs = sweep_at_hand(tmp_path)
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    with SweepDisplay(console, labelled(plan, runs), runs) as display:
        display(Progress(len(runs)))
        assert isinstance(console.file, io.StringIO)
        assert "2 waiting" in console.file.getvalue()
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")


class Story:
    """Replaces time.sleep: each call runs the next event."""

    def __init__(self, *events: object) -> None:
        self.events = list(events)

    def __call__(self, seconds: float) -> None:
        event = self.events.pop(0)
        assert callable(event)
        event()


def test_watching_tells_each_change_once(tmp_path: Path) -> None:
    """Begun, done, begun, failed; then it ends by itself. A run that is added meanwhile is seen."""
    first = stopped(tmp_path, PENDING, group="mine", expert=2, k=1)

    def begin() -> None:
        set_status(first, RUNNING, host="elsewhere", heartbeat=time.time(), started=time.time())

    def end_and_begin() -> None:
        finish(first, 1.7)
        second = stopped(tmp_path, PENDING, group="mine", expert=4, k=1)
        set_status(second, RUNNING, host="elsewhere", heartbeat=time.time(), started=time.time())

    def fail() -> None:
        (second,) = (run for run in list_runs_by_age(tmp_path) if run != first)
        set_status(second, FAILED, reason="out of memory")

    console = Console(file=io.StringIO(), width=80)
    with sweep_lock(first.path.parent):
        code = watch_sweep(console, first.path.parent, Story(begin, end_and_begin, fail))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        f"running {first.id} seed=0",
        "done    expert=2 seed=0   1.700 bits/byte   24.0k tok/s",
        "running expert=4 seed=0",
        "failed  expert=4 seed=0   out of memory",
        "1 of 2 runs complete, 1 failed. See: moe report mine",
    ]
    assert code == 3


def test_what_ended_meanwhile_is_printed_in_order(tmp_path: Path) -> None:
    """Runs are printed in the order of their ends."""
    runs = [complete(tmp_path, 1.7, "mine", expert=2, seed=seed) for seed in range(3)]
    for run, ended in zip(runs, (30.0, 10.0, 20.0), strict=True):
        set_status(run, COMPLETED, heartbeat=ended)
    console = Console(file=io.StringIO(), width=80)
    assert watch_sweep(console, runs[0].path.parent, Story()) == 0
    assert isinstance(console.file, io.StringIO)
    printed = [line.split("seed=")[1][0] for line in console.file.getvalue().splitlines()[:3]]
    assert printed == ["1", "2", "0"]


def test_watching_ends_when_no_run_is_at_work(tmp_path: Path) -> None:
    """Watching a stopped sweep returns 3 and prints how to continue."""
    run = stopped(tmp_path, PENDING, group="mine")
    set_status(run, PENDING, created=time.time() - 3600)
    console = Console(file=io.StringIO(), width=80)
    assert watch_sweep(console, run.path.parent, Story()) == 3
    assert isinstance(console.file, io.StringIO)
    assert "1 not running: the same sweep command continues" in console.file.getvalue()


def test_watching_a_run(tmp_path: Path) -> None:
    """A line for each new evaluation, then how it ended."""
    run = going_on(tmp_path, 10)
    console = Console(file=io.StringIO(), width=80)
    assert watch_run(console, run, Story(lambda: None, lambda: finish(run, 1.7))) == 0
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[1:] == [f"done    {run.id}   1.700 bits/byte   24.0k tok/s"]
    assert lines[0].startswith("step 10/100")


def test_a_run_that_was_just_made_is_waited_for(tmp_path: Path) -> None:
    """Between its folder and its first step a training has not begun; an old folder without a process is not waited for."""
    run = stopped(tmp_path, PENDING)
    console = Console(file=io.StringIO(), width=80)
    assert watch_run(console, run, Story(lambda: finish(run, 1.7))) == 0
    old = stopped(tmp_path, PENDING, seed=1)
    set_status(old, PENDING, created=time.time() - 3600)
    assert watch_run(console, old, Story()) == 1
    with sweep_lock(old.path.parent):
        assert watch_run(console, old, Story(lambda: finish(old, 1.7))) == 0


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_of_a_run_fits(tmp_path: Path, width: int) -> None:
    """Step, loss, experts and curve, no line wider than the terminal."""
    each = read_status(going_on(tmp_path, 50, expert=8))
    lines = render(run_panel(each, [3.0, 2.5, 2.0], width, NOW), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("step 50/100", "val 1.360", "1m 40s left", "curve 3.000 █▅▁ 2.000"):
        assert part in text, part
    assert ("24.1k tok/s" in text) == (width > 40)


def test_a_folder_is_scanned_again_only_when_it_changed(tmp_path: Path) -> None:
    """Looking costs no listing of the folder as long as nothing was added."""
    run = stopped(tmp_path, PENDING, group="mine")
    folder = SweepFolder(run.path.parent)
    assert folder.rescan()
    assert not folder.rescan()
    stopped(tmp_path, PENDING, group="mine", seed=1)
    assert folder.rescan()
    assert len(folder.runs) == 2
