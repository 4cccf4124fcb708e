"""Searches: what is drawn, what counts as a trial, and that nothing is lost or done twice however a search ends."""

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_cli import sweep
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.schema import RunConfig
from moe_cli.config.sweep_file import list_sweeps, load_sweep_file
from moe_cli.errors import ConfigError, MoeError
from moe_cli.files.reading import read_json
from moe_cli.files.writing import make_folder, write_json
from moe_cli.report.importance import JOURNAL, STUDY, open_journal
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import lock
from moe_cli.sweeps import scheduler
from moe_cli.sweeps.scheduler import Progress, run_all
from moe_cli.sweeps.search import ORPHANED, SearchFeed, counted_trials, open_study, pareto_front
from moe_cli.sweeps.search_estimate import estimate_search
from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_search
from tests.sweeps.fake import FakePool, Results

LR = "optim.lr=tag(log,interval(0.001,0.1))"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver does not wait between its looks."""
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.0)


def plan(*words: str, seeds: int | None = None, where: tuple[str, ...] = (), **options: Any) -> SearchPlan:
    options = {"sampler": "random", "trials": 6, **options}
    return plan_search(
        [*words, "train.steps=5"], SearchOptions(**options), seeds=seeds, where=where, composer=Composer()
    )


def bowl(config: RunConfig) -> dict[str, Any]:
    """Bits per byte that are least at a learning rate of 0.02, and a little less with k=2."""
    value = 1 + (math.log10(config.optim.lr / 0.02)) ** 2 + (0.1 if config.k == 1 else 0.0)
    return {"val_bpb": value, "flops_per_token": 1.0 / value}


def search(
    asked: SearchPlan,
    outputs: Path,
    results: Results = bowl,
    *,
    at_a_time: int = 1,
    retry: bool = False,
    observer: Any = lambda progress: None,
) -> tuple[SearchFeed, FakePool]:
    pool = FakePool(results, at_a_time)
    with SearchFeed(asked, open_study(asked, outputs, 9), outputs, lambda: at_a_time, retry).at_work() as feed:
        run_all(feed, pool, observer)
    return feed, pool


def drawn(feed: SearchFeed) -> list[str]:
    return [feed.plan.label(trial.params) for trial in feed.trials()]


def states(feed: SearchFeed) -> list[str]:
    return [trial.state.name for trial in feed.trials()]


def test_every_trial_is_a_run_with_its_result(tmp_path: Path) -> None:
    """As many trials as asked for, each the run of its settings, its value what the run came to."""
    feed, pool = search(plan(LR, "k=1,2"), tmp_path)
    assert ["COMPLETE"] * 6 == states(feed)
    assert 6 == len(set(pool.started))
    for trial in feed.trials():
        config = load_config([*feed.plan.trial_overrides(trial.params), "train.threads=1"]).config
        assert config == Run(tmp_path / "search" / config.run_id).config()
        assert bowl(config)["val_bpb"] == trial.values[0]
    least = min(feed.trials(), key=lambda trial: trial.values[0])
    assert [least.number] == [trial.number for trial in feed.best()]


@pytest.mark.slow
def test_tpe_finds_better_than_chance(tmp_path: Path) -> None:
    """On a bowl, 25 trials of TPE come closer to its bottom than 25 at random, on average over seeds."""
    best = {
        sampler: [
            search(
                plan(LR, "optim.adam_lr=tag(log,interval(0.001,0.1))", trials=25, sampler=sampler, seed=seed),
                tmp_path / f"{sampler}{seed}",
                two_bowls,
            )[0]
            .best()[0]
            .values[0]
            for seed in range(3)
        ]
        for sampler in ("tpe", "random")
    }
    assert sum(best["tpe"]) < sum(best["random"])


def two_bowls(config: RunConfig) -> dict[str, Any]:
    optim: Any = config.optim
    return {"val_bpb": math.log10(optim.lr / 0.02) ** 2 + math.log10(optim.adam_lr / 0.005) ** 2}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path: Path, sampler: str) -> None:
    """Stopped in the midst of a trial and continued, it tries what it would have tried, and asks for nothing twice."""
    asked = plan(LR, "k=1,2", sampler=sampler, trials=14)
    undisturbed, _ = search(asked, tmp_path / "a")

    def interrupt(progress: Progress) -> None:
        if len(progress.finished) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(asked, tmp_path / "b", observer=interrupt)
    resumed, pool = search(asked, tmp_path / "b")
    assert drawn(undisturbed) == drawn(resumed)
    assert ["COMPLETE"] * 14 == states(resumed)
    assert 2 == len(pool.started)


def test_a_running_trial_of_a_dead_search_is_taken_up(tmp_path: Path) -> None:
    """Another search continues the run of a killed search with the same settings."""
    asked = plan(LR)
    study = open_study(asked, tmp_path, 9)
    killed = SearchFeed(asked, study, tmp_path)
    run = killed.next_run()
    assert run is not None
    feed, pool = search(asked, tmp_path)
    assert run == pool.started[0]
    assert 6 == len(feed.study.trials)


def test_a_trial_that_was_killed_while_drawn_is_drawn_again(tmp_path: Path) -> None:
    """Half of its settings in the journal: it is set aside, and the search tries what it would have tried."""
    asked = plan(LR, "k=1,2")
    undisturbed, _ = search(asked, tmp_path / "a")
    study = open_study(asked, tmp_path / "b", 9)
    study.ask().suggest_float("optim.lr", 0.001, 0.1, log=True)
    feed, _ = search(asked, tmp_path / "b")
    assert drawn(undisturbed) == drawn(feed)
    assert ORPHANED == feed.study.trials[0].user_attrs["excluded"]


def test_a_torn_line_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    """A line that a killed process wrote by half is cut off, and every line of the journal is JSON afterwards."""
    asked = plan(LR, trials=2)
    search(asked, tmp_path)
    path = tmp_path / "search" / JOURNAL
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"c4')
    more = plan(LR, trials=4)
    assert ["COMPLETE"] * 4 == states(search(more, tmp_path)[0])
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    assert ["COMPLETE"] * 4 == [trial.state.name for trial in open_study(more, tmp_path, 9).trials]


def test_a_damaged_journal_is_an_error(tmp_path: Path) -> None:
    """Rubbish within the journal is said with what to do about it."""
    search(plan(LR, trials=1), tmp_path)
    path = tmp_path / "search" / JOURNAL
    path.write_text("rubbish\n" + path.read_text())
    with pytest.raises(MoeError, match=r"search.journal is damaged. Move it away"):
        open_study(plan(LR), tmp_path, 9)


def test_two_searches_share_the_trials(tmp_path: Path) -> None:
    """Two at once on one folder: as many trials as asked for in all, no run started twice, none left over."""
    asked = plan(LR, trials=12)
    pools: list[FakePool] = []
    feeds: list[SearchFeed] = []

    def one() -> None:
        feed, pool = search(asked, tmp_path, slowly)
        feeds.append(feed)
        pools.append(pool)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [run for pool in pools for run in pool.started]
    assert 12 == len(started) == len(set(started))
    assert all(pool.started for pool in pools)
    assert all(["COMPLETE"] * 12 == states(feed) for feed in feeds)


def slowly(config: RunConfig) -> dict[str, Any]:
    threading.Event().wait(0.02)
    return bowl(config)


def test_what_cannot_be_is_not_counted(tmp_path: Path) -> None:
    """Trials with k > expert are set aside without a run and do not count as trials."""
    feed, pool = search(plan("expert=2,4", "k=1,3", trials=8, seed=1), tmp_path)
    aside = [trial for trial in feed.study.trials if trial.user_attrs.get("excluded") == "impossible"]
    assert aside
    assert all("k=3 " in trial.user_attrs["reason"] for trial in aside)
    assert ["COMPLETE"] * 8 == states(feed)
    assert all(run.config().k <= run.config().expert for run in pool.started)


def test_a_search_of_nothing_possible_gives_up(tmp_path: Path) -> None:
    """After a hundred draws in a row that cannot be, it ends and says why; before it starts, it is an error."""
    asked = plan("expert=2,4", "k=1,2", where=("k > expert",))
    feed, pool = search(asked, tmp_path)
    assert (100, []) == (len(feed.study.trials), pool.started)
    assert "100 draws in a row are impossible, the last: a condition of 'where' does not hold." == feed.stop_reason
    with pytest.raises(ConfigError, match="a condition of 'where' does not hold"):
        estimate_search(asked, tmp_path)


def test_equal_configurations_are_trained_once(tmp_path: Path) -> None:
    """Ten trials of two configurations are two runs, and each trial has the result of its own."""
    feed, pool = search(plan("k=1,2", "optim.lr=0.01", trials=10), tmp_path, at_a_time=4)
    assert 2 == len(pool.started)
    assert ["COMPLETE"] * 10 == states(feed)
    by_k = {trial.params["k"]: trial.values[0] for trial in feed.trials()}
    assert all(by_k[trial.params["k"]] == trial.values[0] for trial in feed.trials())
    assert abs(by_k[1] - by_k[2] - 0.1) < 1e-12


def test_runs_that_are_there_are_not_trained_again(tmp_path: Path) -> None:
    """Without its journal a search begins again and takes the results of the runs in the folder."""
    first, _ = search(plan(LR), tmp_path)
    (tmp_path / "search" / JOURNAL).unlink()
    again, pool = search(plan(LR), tmp_path)
    assert [] == pool.started
    assert [trial.values for trial in first.trials()] == [trial.values for trial in again.trials()]


def test_a_failed_run_is_a_failed_trial(tmp_path: Path) -> None:
    """It counts, with the run's reason; with retry_failed it is tried again with the settings it had."""
    feed, _ = search(plan("k=1,2", LR), tmp_path, lambda config: None if config.k == 1 else bowl(config))
    failed = [trial for trial in feed.trials() if trial.state.name == "FAIL"]
    assert failed
    assert len(failed) < 6
    assert {"it could not be"} == {trial.user_attrs["reason"] for trial in failed}
    assert (6, []) == (len(feed.trials()), search(plan("k=1,2", LR), tmp_path)[1].started)
    again, pool = search(plan("k=1,2", LR), tmp_path, retry=True)
    assert ["COMPLETE"] * 6 == states(again)
    assert sorted(map(again.plan.label, [trial.params for trial in failed])) == sorted(
        again.labels[run.path] for run in pool.started
    )


def test_a_run_that_is_tried_again_comes_before_new_trials(tmp_path: Path) -> None:
    """A returned run comes next; while it is locked elsewhere, a new run comes instead."""
    asked = plan(LR)
    with SearchFeed(asked, open_study(asked, tmp_path, 9), tmp_path, lambda: 3).at_work() as feed:
        first, second = feed.next_run(), feed.next_run()
        assert first
        assert second
        feed.return_run(first)
        assert first == feed.next_run()
        feed.return_run(second)
        with lock(second.path):
            third = feed.next_run()
            assert third not in (None, first, second)
            feed.return_run(first)
            assert first == feed.next_run()


def test_room_that_a_cluster_gains_is_used(tmp_path: Path) -> None:
    """The feed gives as many runs as there is room for at the time."""
    asked, room = plan(LR), [1]
    with SearchFeed(asked, open_study(asked, tmp_path, 9), tmp_path, lambda: room[0]).at_work() as feed:
        assert [True, False] == [feed.next_run() is not None for _ in range(2)]
        room[0] = 3
        assert [True, True, False] == [feed.next_run() is not None for _ in range(3)]


@pytest.mark.parametrize(
    ("words", "objective", "said"),
    [
        (["expert=1,8"], "val_bpb,max_violation", "max_violation: a dense model .* Leave out expert=1"),
        (["expert=8", "k=1,2"], "capacity_val_loss", "capacity_val_loss: a dropless model .* capacity=1.25"),
    ],
)
def test_a_result_that_some_draws_have_not_is_refused(
    words: list[str], objective: str, said: str, tmp_path: Path, text_file: Path
) -> None:
    """Before a run is trained for nothing."""
    asked = plan(*words, "data=text", f"data.path={text_file}", "model.context_length=16", objective=objective)
    with pytest.raises(ConfigError, match=said):
        estimate_search(asked, tmp_path)


def test_a_trials_value_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    """Each seed is a run; the trial waits for all of them."""
    asked = plan(LR, seeds=3, trials=2)
    feed, pool = search(asked, tmp_path, lambda config: {"val_bpb": 1.0 + config.seed + config.optim.lr}, at_a_time=2)
    assert 6 == len(pool.started)
    for trial in feed.trials():
        assert abs(trial.values[0] - (2.0 + feed.plan.settings(trial.params)["optim.lr"])) < 1e-12


def test_a_result_without_a_value_fails_the_trial(tmp_path: Path) -> None:
    """A dense run has no max_violation: the trial says so."""
    feed, _ = search(plan(LR, objective="max_violation", trials=1), tmp_path, lambda config: {"max_violation": None})
    assert [("FAIL", "max_violation has no value")] == [
        (trial.state.name, trial.user_attrs["reason"]) for trial in feed.trials()
    ]


def test_the_front_is_what_no_trial_beats(tmp_path: Path) -> None:
    """With several objectives, one of them to be large, the front is the one by definition: speeds within 10 % are equal."""
    asked = plan(LR, objective="val_bpb,tokens_per_second", trials=25)

    def results(config: RunConfig) -> dict[str, Any]:
        lr = math.log10(config.optim.lr)
        return {"val_bpb": 2 + math.sin(9 * lr), "tokens_per_second": 100 + 60 * math.cos(23 * lr)}

    feed, _ = search(asked, tmp_path, results)
    points = {trial.number: trial.values for trial in feed.trials()}
    assert 25 == len({tuple(values) for values in points.values()})
    by_definition = {
        number
        for number, (loss, speed) in points.items()
        if not any(other < loss and speed <= 1.10 * fast for other, fast in points.values())
    }
    assert by_definition == {trial.number for trial in feed.best()}
    assert by_definition <= {trial.number for trial in feed.study.best_trials}
    assert 1 < len(by_definition) < 25
    assert sorted(trial.values[0] for trial in feed.best()) == [trial.values[0] for trial in feed.best()]
    assert [] == pareto_front([], ["val_bpb", "tokens_per_second"])


def test_the_front_of_a_search_is_that_of_the_report() -> None:
    """A lower loss at 5 % less speed beats, at 15 % it does not; of one objective only the best value is left."""
    values = [(2.0, 100.0), (1.9, 95.0), (1.8, 85.0)]
    trials: list[Any] = [SimpleNamespace(number=place, values=pair) for place, pair in enumerate(values)]
    front = pareto_front(trials, ["val_bpb", "tokens_per_second"])
    assert [2, 1] == [trial.number for trial in front]
    for trial in trials:
        trial.values = trial.values[1:]
    assert [0] == [trial.number for trial in pareto_front(trials, ["tokens_per_second"])]


def test_other_questions_have_other_folders(tmp_path: Path) -> None:
    """More trials continue a search, another space, setting, objective or number of seeds is refused."""
    open_study(plan(LR, trials=1), tmp_path, 9)
    open_study(plan(LR, "train.threads=1", trials=9, sampler="tpe", prune="median"), tmp_path, 9)
    for other in (plan(LR, "k=1,2"), plan(LR, "expert=4"), plan(LR, objective="val_loss"), plan(LR, seeds=2)):
        with pytest.raises(
            ConfigError, match=r"holds a search with other (space|settings|objectives|seeds): .*\n.*--name"
        ):
            open_study(other, tmp_path, 9)


def test_numbers_are_of_the_settings_kind(tmp_path: Path) -> None:
    """Whole bounds make whole numbers where the setting is one, fractions where it is not; a step is kept."""
    feed, _ = search(plan("expert=interval(2,9)", "optim.weight_decay=interval(0,1)", "k=1", trials=12), tmp_path, bowl)
    experts = [trial.params["expert"] for trial in feed.trials()]
    assert all(isinstance(expert, int) and 2 <= expert <= 9 for expert in experts)
    assert any(trial.params["optim.weight_decay"] % 1 for trial in feed.trials())
    conf = tmp_path / "conf" / "sweep"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("search: {space: {expert: {low: 2, high: 8, step: 3}, optim.lr: [0.01, 0.02]}}")
    mine = plan_search(["mine"], SearchOptions(), composer=Composer(tmp_path / "conf"))
    assert (6, "tpe", 20) == (mine.size, mine.sampler, mine.trials)
    assert {2, 5, 8} >= {config.expert for config in preview_configs(mine, tmp_path)}


def preview_configs(asked: SearchPlan, outputs: Path) -> list[RunConfig]:
    _, pool = search(asked, outputs / "steps")
    return [run.config() for run in pool.started]


def test_a_named_search(tmp_path: Path) -> None:
    """conf/sweep/learning_rate says space, trials and pruning; words on the line fix a setting, or vary another."""
    tune = plan_search(["learning_rate", "optim.lr=0.03", "k=1,2"], SearchOptions(trials=3), composer=Composer())
    assert (["optim.adam_lr", "balance.weight", "k"], 3, "asha") == (list(tune.space), tune.trials, tune.prune)
    assert 0.03 == tune.fixed["optim.lr"]


SEARCHES = [name for name in list_sweeps(Composer()) if load_sweep_file(Composer(), name).search is not None]


@pytest.mark.parametrize("name", SEARCHES)
def test_named_searches(name: str, tmp_path: Path, text_file: Path) -> None:
    """Every search of conf/sweep has a question as its first line, and can be begun with each preset; larger, with more trials."""
    trials = []
    for preset in ("laptop", "workstation", "cluster"):
        asked = plan_search(
            [name, f"preset={preset}", "data=text", f"data.path={text_file}", "train.threads=1"],
            SearchOptions(),
            composer=Composer(),
        )
        assert asked.question.endswith("?")
        assert 1.0 == estimate_search(asked, tmp_path).possible
        trials.append(asked.trials)
    assert sorted(set(trials)) == trials


@pytest.mark.usefixtures("shared_fork_server")
def test_a_search_from_python(tmp_path: Path, text_file: Path) -> None:
    """sweep(..., sampler=...) gives one row a run and leaves the journal in the sweep's folder."""
    from tests.cli.conftest import TINY

    words = [LR, "data=text", f"data.path={text_file}", *TINY]
    frame = sweep(words, sampler="random", trials=2, jobs=2, outputs=tmp_path, name="mine")
    assert 2 == len(frame)
    assert frame["val_bpb"].notna().all()
    assert (tmp_path / "mine" / JOURNAL).is_file()
    assert 1 == len(open_journal(tmp_path / "mine").get_all_studies())
    assert STUDY == open_journal(tmp_path / "mine").get_all_studies()[0].study_name
    assert 2 == len(
        counted_trials(
            open_study(
                plan_search([*words], SearchOptions("random", 2), name="mine", composer=Composer()), tmp_path, 9
            ).trials
        )
    )


def test_a_search_is_recorded_next_to_its_runs(tmp_path: Path) -> None:
    """Its command stands in sweep.json, once for the same command; the question stays."""
    folder = make_folder(tmp_path / "search")
    write_json(folder / "sweep.json", {"question": "Which rate?", "baseline": {"k": 1}})
    for trials in (1, 2):
        open_study(plan(LR, trials=trials), tmp_path, 9)
    record = read_json(tmp_path / "search" / "sweep.json") or {}
    assert ("Which rate?", {"k": 1}) == (record["question"], record["baseline"])
    assert [[LR, "train.steps=5"]] == [command["words"] for command in record["commands"]]
