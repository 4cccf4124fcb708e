"""Pruning reports each evaluation once and stops poor runs permanently; a pruned run is no result."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EVALUATIONS_PER_RUN
from moe_cli.errors import ConfigError
from moe_cli.execution.worker import EXIT_INTERRUPTED, EXIT_OK
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import scheduler
from moe_cli.sweeps.pruning import evaluations_to_prune_at, make_pruner
from moe_cli.sweeps.scheduler import pending_runs, run_all
from moe_cli.sweeps.search import SearchFeed, open_study
from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_search

# Evaluations before the end, with train.eval_every=null.
NUM_EVALUATIONS = EVALUATIONS_PER_RUN - 1
LR = "optim.lr=tag(log,interval(0.001,0.1))"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver does not wait between its looks."""
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.0)


def plan(*words: str, seeds: int | None = None, **options: Any) -> SearchPlan:
    options = {"sampler": "random", "trials": 12, "prune": "asha", **options}
    return plan_search([*words, "train.steps=100"], SearchOptions(**options), seeds=seeds, composer=Composer())


class EvaluatingJob:
    """Records an evaluation at each look, nine in all, and is complete at the tenth; stops when it is asked to."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.looks, self.stopped = run, run.config(), 0, False

    def poll(self) -> int | None:
        if self.stopped:
            return EXIT_INTERRUPTED
        self.looks += 1
        with lock(self.run.path):
            if self.looks > NUM_EVALUATIONS:
                Recorder(self.run).complete({"val_bpb": loss(self.config, 10)})
                return EXIT_OK
            Recorder(self.run).metrics({"step": 10 * self.looks, "val/bpb": loss(self.config, self.looks)})
        return None

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


class EvaluatingPool:
    """A pool with a fixed number of workers."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.jobs: list[EvaluatingJob] = []

    def room(self) -> int:
        return self.workers - sum(not job.stopped and job.looks <= NUM_EVALUATIONS for job in self.jobs)

    def start(self, run: Run) -> EvaluatingJob:
        self.jobs.append(EvaluatingJob(run))
        return self.jobs[-1]

    def close(self) -> None: ...


def loss(config: RunConfig, looks: int) -> float:
    return 2.0 + config.optim.lr + 1 / looks


def search(asked: SearchPlan, outputs: Path, at_a_time: int = 1) -> tuple[SearchFeed, EvaluatingPool]:
    pool = EvaluatingPool(at_a_time)
    with SearchFeed(asked, open_study(asked, outputs, NUM_EVALUATIONS), outputs, lambda: at_a_time).at_work() as feed:
        run_all(feed, pool)
    return feed, pool


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_what_is_behind_is_stopped_permanently(tmp_path: Path, name: str) -> None:
    """Each pruner stops some runs before their end, and the best one never; none of them starts again."""
    asked = plan(LR, prune=name, trials=16)
    feed, pool = search(asked, tmp_path)
    by_state: dict[str, list[float]] = {"COMPLETE": [], "PRUNED": []}
    for trial in feed.trials():
        by_state[trial.state.name].append(feed.plan.settings(trial.params)["optim.lr"])
    assert by_state["PRUNED"]
    assert min(by_state["COMPLETE"]) == min(by_state["COMPLETE"] + by_state["PRUNED"])
    pruned = [job.run for job in pool.jobs if job.stopped]
    assert len(pruned) == len(by_state["PRUNED"])
    assert {"pruned"} == {run.status()["status"] for run in pruned}
    assert all(run.status()["reason"].startswith(f"pruned by {name}: val_bpb ") for run in pruned)
    assert [] == search(asked, tmp_path)[1].jobs
    assert [] == pending_runs(list_runs_by_age(tmp_path), retry_failed=True)


def test_every_evaluation_is_reported_once_in_order(tmp_path: Path) -> None:
    """A complete trial's steps are 1 to 9, with the values that its run recorded."""
    feed, _ = search(plan(LR, trials=3), tmp_path)
    complete = [trial for trial in feed.trials() if trial.state.name == "COMPLETE"]
    assert complete
    for trial in complete:
        config = feed.plan.configs(trial.params)[0]
        assert {step: loss(config, step) for step in range(1, 10)} == trial.intermediate_values


def test_a_run_that_goes_on_from_a_checkpoint_is_not_reported_twice(tmp_path: Path) -> None:
    """After the sweep was killed, evaluations that are made again keep their numbers."""
    asked = plan(LR, trials=1, prune="median")
    first = SearchFeed(asked, open_study(asked, tmp_path, NUM_EVALUATIONS), tmp_path)
    run = first.next_run()
    assert run is not None
    job = EvaluatingJob(run)
    for _ in range(4):
        job.poll()
        assert [] == first.to_prune([run])
    with lock(run.path):
        Recorder(run).rewind(20)
    feed, pool = search(asked, tmp_path)
    (trial,) = feed.trials()
    assert list(range(1, 10)) == sorted(trial.intermediate_values)
    assert [run] == [job.run for job in pool.jobs]


def test_only_what_survives_its_first_seed_is_repeated(tmp_path: Path) -> None:
    """A pruned trial has one run, a complete one a run for each seed."""
    feed, pool = search(plan(LR, seeds=3), tmp_path, at_a_time=3)
    runs: dict[str, int] = {}
    for job in pool.jobs:
        label = feed.labels[job.run.path].split(" seed=")[0]
        runs[label] = runs.get(label, 0) + 1
    expected = {feed.plan.label(trial.params): 1 if trial.state.name == "PRUNED" else 3 for trial in feed.trials()}
    assert expected == runs
    assert {1, 3} == set(runs.values())


def test_a_trial_found_unpromising_is_not_begun_again(tmp_path: Path) -> None:
    """The sweep was killed between that and the run's end: the next one prunes it without starting it."""
    asked = plan(LR, trials=1)
    first = SearchFeed(asked, open_study(asked, tmp_path, NUM_EVALUATIONS), tmp_path)
    run = first.next_run()
    assert run is not None
    first._open[0].trial.set_user_attr("pruned_by", "by asha: val_bpb 9.000 at evaluation 1")
    feed, pool = search(asked, tmp_path)
    assert ([], ["PRUNED"]) == (pool.jobs, [trial.state.name for trial in feed.trials()])
    assert "pruned by asha: val_bpb 9.000 at evaluation 1" == run.status()["reason"]


def test_evaluations_are_counted_from_the_settings() -> None:
    """Nine times a run, or as train.eval_every says; none at all is an error."""
    config = load_config(["train.steps=100"]).config
    assert NUM_EVALUATIONS == evaluations_to_prune_at(config, 100)
    assert 4 == evaluations_to_prune_at(config, 5)
    assert 3 == evaluations_to_prune_at(load_config(["train.steps=100", "train.eval_every=25"]).config, 100)
    for words, steps in ((["train.steps=100", "train.eval_every=100"], 100), (["train.steps=1"], 1)):
        with pytest.raises(ConfigError, match=r"steps=1 there are none|of 100 steps there are none"):
            evaluations_to_prune_at(load_config(words).config, steps)


def test_pruners_by_name() -> None:
    """The names mean Optuna's pruners; no name, one that prunes nothing."""
    names = {name: type(make_pruner(name, 9)).__name__ for name in ("asha", "hyperband", "median", None)}
    assert names == {
        "asha": "SuccessiveHalvingPruner",
        "hyperband": "HyperbandPruner",
        "median": "MedianPruner",
        None: "NopPruner",
    }
