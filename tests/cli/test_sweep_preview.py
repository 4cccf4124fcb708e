"""Before it starts, `moe sweep` prints every point, what is done, sums, and the reasons of left-out points."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.sweep_preview import point_lines, summary_lines
from moe_cli.config.compose import load_config
from moe_cli.config.executors import Executor, LocalExecutor, RayExecutor, SlurmExecutor
from moe_cli.config.settings import packaged_conf
from moe_cli.costs.model import estimate_cost
from moe_cli.runs.folder import Run
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps.plan import plan_sweep
from moe_cli.sweeps.run_sweep import Execution, PreparedSweep, prepare
from tests.cli.conftest import Moe
from tests.elided import Elided

UNEQUAL = "equal active parameters are not equal FLOPs"


def prepared_of(words: list[str], outputs: Path, execution: Execution, **options: Any) -> PreparedSweep:
    sweep = prepare(plan_sweep(words, **options), outputs, execution, build=False)
    assert isinstance(sweep, PreparedSweep)
    return sweep


@pytest.fixture
def prepared(settings: list[str], tmp_path: Path) -> PreparedSweep:
    """Three configurations with two seeds: one run done, one failed; one point is impossible, `where` excludes two."""
    words, options = ["expert=2,4", "k=1,2,3", *settings], {"seeds": 2, "where": ["k != 2"]}
    runs = plan_sweep(words, **options).runs(tmp_path)
    finish(runs[0], "completed")
    finish(runs[1], "failed")
    return prepared_of(words, tmp_path, Execution(LocalExecutor(), 2), **options)


def changed(prepared: PreparedSweep, **execution: Any) -> PreparedSweep:
    """The same, carried out in another way."""
    return replace(prepared, execution=replace(prepared.execution, **execution))


def finish(run: Run, status: str) -> None:
    run.path.mkdir(parents=True)
    recorder = Recorder(run)
    recorder.complete({"val_bpb": 1.0}) if status == "completed" else recorder.status(status)


def test_head(prepared: PreparedSweep) -> None:
    """How many are done, to go and failed; each point that cannot be with its reason; how many `where` leaves out."""
    lines = [line for _, line in summary_lines(prepared)]
    assert (
        lines[0]
        == "3 configurations x 2 seeds = 6 runs: 1 done before, 4 to go, 1 failed before (--retry-failed runs them again)"
    )
    assert lines[1].startswith("  left out  expert=2 k=3: k=3 ")
    assert lines[2] == "  where     leaves out 2 combinations"
    assert lines[-1].startswith("about ")
    again = [line for _, line in summary_lines(changed(prepared, retry_failed=True))]
    assert again[0].endswith("1 done before, 5 to go")


def test_a_conf_folder_that_is_used_is_named_first(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe: Moe
) -> None:
    """The first line of the plan of a sweep and of a search names the files of ./conf."""
    (tmp_path / "here/conf/router").mkdir(parents=True)
    shutil.copy(packaged_conf() / "router/topk.yaml", tmp_path / "here/conf/router/mine.yaml")
    monkeypatch.chdir(tmp_path / "here")
    expected = Elided("note: ... router/mine.yaml. ...")
    for options in ((), ("--sampler", "random")):
        result = moe("sweep", "router=mine,switch", *settings, "--dry-run", *options)
        assert expected == result.stdout.splitlines()[0], result.output


def test_runs_with_a_checkpoint_are_counted_and_shorten_the_time(prepared: PreparedSweep) -> None:
    """Two of four pending runs have done half of their steps: three quarters of the time are left."""
    halfway = {run.run: run.estimate.steps // 2 for run in prepared.pending[:2] if run.estimate.steps}
    runs = [
        replace(run, checkpoint_step=halfway.get(run.run, 0), estimate=replace(run.estimate, seconds=80.0))
        for run in prepared.runs
    ]
    lines = [line for _, line in summary_lines(replace(prepared, runs=runs))]
    assert "1 done before, 4 to go (2 from a checkpoint), 1 failed before" in lines[0]
    assert lines[-1].startswith("about 2m 0s on 2 workers")


def test_what_was_pruned_is_counted(prepared: PreparedSweep) -> None:
    """It is neither done nor to go."""
    runs = [replace(prepared.runs[0], status="pruned"), *prepared.runs[1:]]
    assert "runs: 0 done before, 1 pruned before, 4 to go" in summary_lines(replace(prepared, runs=runs))[0][1]


@pytest.mark.parametrize(
    ("executor", "jobs", "said"),
    [
        (LocalExecutor(), 2, r"about [\dhms ]+ on 2 workers; stop"),
        (
            RayExecutor(),
            None,
            r"about [\dhms ]+ of work at this machine's speed, as many runs at a time as ray has room for; stop",
        ),
        (RayExecutor(), 3, r"about [\dhms ]+ on 3 workers of ray, each as fast as this machine; stop"),
        (
            SlurmExecutor(),
            None,
            r"about [\dhms ]+ of work at this machine's speed, as many runs at a time as slurm has room",
        ),
        (SlurmExecutor(array_parallelism=2), None, r"about [\dhms ]+ on 2 workers of slurm"),
        (SlurmExecutor(array_parallelism=2), 1, r"about [\dhms ]+ on 1 worker of slurm"),
        (SlurmExecutor(array_parallelism=2), 4, r"about [\dhms ]+ on 2 workers of slurm"),
    ],
)
def test_how_long_it_takes_is_shown_as_far_as_it_is_known(
    prepared: PreparedSweep, executor: Executor, jobs: int | None, said: str
) -> None:
    """This machine's cores say nothing of a cluster."""
    assert re.match(said, summary_lines(changed(prepared, executor=executor, jobs=jobs))[-1][1])


def test_cores_that_would_idle_or_be_crowded_are_reported(
    prepared: PreparedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster what is reserved for a run is held against its threads, here all threads against the cores."""

    def said(threads: int, executor: Executor, jobs: int = 1) -> list[str]:
        runs = [replace(each, estimate=replace(each.estimate, threads=threads)) for each in prepared.runs]
        lines = summary_lines(changed(replace(prepared, runs=runs), executor=executor, jobs=jobs))
        return [line.removeprefix("  crowded   ") for _, line in lines if "crowded" in line]

    monkeypatch.setattr("moe_cli.cli.sweep_preview.count_cores", lambda: 2)
    assert [] == said(2, RayExecutor(cpus=2), 9) == said(1, LocalExecutor(), 2)
    assert ["4 cores reserved for each run, and it uses 1. To use all: train.threads=4"] == said(1, RayExecutor(cpus=4))
    assert ["2 threads on 1 core of each run: slower. Reserve more: executor.cpus=2"] == said(2, SlurmExecutor())
    assert ["4 threads on 2 cores: slower. Fewer: -j"] == said(2, LocalExecutor(), 2)


def test_sums_are_those_of_the_points(prepared: PreparedSweep) -> None:
    """Tokens of all and of what is to go: six steps of 4 x 16 tokens each; the status of every point."""
    lines = point_lines(prepared, None)
    assert len(lines) == 1 + 6 + 2
    assert [line.split()[-1] for line in lines[1:7]] == ["completed", "failed", *["new"] * 4]
    assert [line.split(":")[0] for line in lines[7:]] == ["total", "to go"]
    assert ["2.30k", "1.54k"] == [line.split()[3 if "to go" not in line else 4] for line in lines[7:]]
    assert {line.split()[5] for line in lines[1:7]} == {"384"}


@pytest.mark.parametrize("width", [72, 80])
def test_a_narrow_terminal_loses_no_word(prepared: PreparedSweep, width: int) -> None:
    """Names that have no room go on below, and no line is longer than the terminal."""
    wide, narrow = point_lines(prepared, None), point_lines(prepared, width)
    assert max(map(len, narrow)) <= width
    assert sorted(word for line in wide for word in line.split()) == sorted(
        word for line in narrow for word in line.split()
    )


def test_a_budget_of_time_has_no_tokens(settings: list[str], tmp_path: Path) -> None:
    """A dash for what is not known, and the time."""
    words = [word for word in settings if not word.startswith("train.steps")]
    words = ["expert=2,4", "train.minutes=2", *words]
    lines = point_lines(prepared_of(words, tmp_path, Execution(LocalExecutor(), 1)), None)
    assert [line.split()[4:6] for line in lines[1:3]] == [["-", "-"]] * 2
    assert "4m" in lines[-1]


def test_sweeps_say_how_much_equal_sizes_differ(moe: Moe, text_file: Path) -> None:
    """The sparsity sweep is equal in active parameters; its table has the FLOPs of each run, and match=flops makes them equal."""
    data = ("data=text", f"data.path={text_file}", "--dry-run")
    listed = moe("sweep", "sparsity", *data).stdout
    assert UNEQUAL in listed
    assert "optimizer included" in listed
    assert UNEQUAL not in moe("sweep", "sparsity", "match=flops", *data).stdout
    assert UNEQUAL not in moe("sweep", "isoflop", *data).stdout
    for words in (("expert=16", "k=1"), ("expert=1",)):
        config = load_config(words).config
        flops = 600 * estimate_cost(config, 256).flops_per_step
        assert f"{flops / 1e12:.3g}T" in next(line for line in listed.splitlines() if line.startswith(words[0] + " "))


def test_unequal_precisions_are_announced(
    moe: Moe, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `auto` differs between the runs of a sweep, its plan says so; with one precision for all it does not."""
    monkeypatch.setattr("moe_cli.execution.precision.cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr("moe_cli.execution.precision.visible_gpus", lambda: ())
    words = ["sweep", "expert=1,8,128", "data=text", f"data.path={text_file}", "--dry-run", "--outputs", tmp_path]
    assert "precision bfloat16 for 2 runs, float32 for 1 run; for a fair" in moe(*words).stdout
    assert "for a fair" not in moe(*words, "train.precision=float32").stdout
