"""A decision at work, with the real controller and draws instead of training: stops, shared work, failures, outputs."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.api.decide import decide
from moe_cli.cli.app import app
from moe_cli.config.executors import LocalExecutor
from moe_cli.config.schema import RunConfig
from moe_cli.decisions import plan
from moe_cli.decisions.decision_file import make_limit_options
from moe_cli.decisions.feed import DecisionFeed, replay
from moe_cli.decisions.page import decision_sections, race
from moe_cli.decisions.plan import parse_rules, plan_decision
from moe_cli.decisions.run_decision import PreparedDecision, prepare_decision
from moe_cli.decisions.terms import CONFIRMATION, DECISION_FILE, PRICE, STAGES, Decision, Rules
from moe_cli.decisions.text import answer_sentences
from moe_cli.errors import ConfigError
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import run_sweep, scheduler
from moe_cli.sweeps.run_sweep import Execution
from moe_cli.sweeps.scheduler import Progress, run_all
from tests.runner import CliRunner
from tests.sweeps.fake import FakePool
from tests.test_docs import JSON_TABLE, PAGES, check_documented

TINY = (
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.context_length=16",
    "train.steps=8",
    "train.batch_size=2",
)
# Two experts are worst by far, eight are best, and dense is between them.
SPACE = ("expert=2,4,8", "k=1")
BEST, WORST = "expert=8", "expert=2"


def outcome(config: RunConfig) -> dict[str, Any] | None:
    """Results with a seed's noise that all candidates share, and a little of their own."""
    own = {1: 0.03, 2: 0.3, 4: 0.02, 8: 0.0}[config.expert]
    shared = random.Random(config.seed).gauss(0, 0.02)
    noise = random.Random(f"{config.run_id}").gauss(0, 0.002)
    steps = config.train.steps or 0
    rate = 0.01 * math.log2(config.optim.lr / 0.02 * math.sqrt(steps / 8)) ** 2  # best is 0.02 with the full budget
    return {
        "val_bpb": 2 * (1 + own + shared + noise + rate) + 1 / steps,
        "val_loss": 1.0,
        "seconds": float(steps),
        "tokens": steps * config.tokens_per_step,
        "steps": steps,
        "flops_per_token": 100.0 * config.expert,
        "params": 1000 * config.expert,
        "tokens_per_second": 50.0,
        "peak_memory_bytes": 1000,
        "machine": "here",
    }


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler does not wait between its looks, and the rules want fewer runs than usual."""
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.0)

    def few(*arguments: Any) -> Rules:
        return replace(parse_rules(*arguments), looks=(3, 4), lr_multipliers=(0.5, 1.0), lr_extensions=1, lr_seeds=1)

    monkeypatch.setattr(plan, "parse_rules", few)


@pytest.fixture
def words(tmp_path: Path, text_file: Path) -> list[str]:
    (tmp_path / "words.txt").write_bytes(text_file.read_bytes())
    return ["data=text", f"data.path={tmp_path / 'words.txt'}", *TINY, *SPACE]


def prepare(words: list[str], outputs: Path, runs: int = 90, **options: Any) -> PreparedDecision:
    execution = Execution(LocalExecutor(), 2, **options)
    return prepare_decision(plan_decision(words), make_limit_options(None, runs), outputs, execution)


def work(prepared: PreparedDecision, pool: FakePool, observer: Any = lambda progress: None) -> DecisionFeed:
    with prepared.begin(pool) as feed:
        run_all(feed, pool, observer)
    assert len(set(pool.started)) == len(pool.started)
    return feed


def decided(feed: DecisionFeed) -> Decision:
    assert feed.step.decision is not None
    return feed.step.decision


def test_a_decision_stopped_in_each_stage_is_as_one_undisturbed(words: list[str], tmp_path: Path) -> None:
    """Stopped again and again, at random moments of every stage, it ends with the same decision, each run done once."""
    calm = work(prepare(words, tmp_path / "calm"), FakePool(outcome, 2))
    assert BEST == decided(calm).winner
    assert [WORST] == [dropped.name for dropped in decided(calm).dropped]
    draw, stopped, started = random.Random(0), set[str](), Counter[Path]()
    while True:
        prepared = prepare(words, tmp_path / "kills")
        pool, left = FakePool(outcome, 2), draw.randint(0, 6)
        with prepared.begin(pool) as feed:

            def stop(progress: Progress, feed: DecisionFeed = feed, left: int = left) -> None:
                if len(progress.finished) >= left and feed.step.decision is None:
                    stopped.add(feed.step.stage)
                    raise KeyboardInterrupt

            try:
                run_all(feed, pool, stop)
            except KeyboardInterrupt:
                started.update(run.path for run in pool.started if run.summary() is not None)
                continue
            break
    assert {stage for stage in STAGES if any(r.stage == stage for r in calm.results)} == stopped
    same = {request: result.loss for request, result in feed.results.items()}
    assert {request: result.loss for request, result in calm.results.items()} == same
    assert decided(calm).comparisons == decided(feed).comparisons
    assert decided(calm).dropped == decided(feed).dropped
    assert decided(calm).rates == decided(feed).rates
    assert max(started.values()) == 1


def test_two_processes_share_a_decision(words: list[str], tmp_path: Path) -> None:
    """A second process starts none of the runs of the first: it waits for one at work, reads the others, and comes to the same decision."""
    first, second = prepare(words, tmp_path), prepare(words, tmp_path)
    pools = FakePool(outcome, 2), FakePool(outcome, 2)
    with first.begin(pools[0]) as one, second.begin(pools[1]) as other:
        taken = one.next_run()
        assert taken is not None
        with lock(taken.path):
            seen = [other.next_run() for _ in range(other.waiting())]
            for run in seen:
                assert run is not None
                other.return_run(run)
            assert other.next_run() != taken
        one.return_run(taken)
    feeds = work(first, pools[0]), work(second, pools[1])
    assert decided(feeds[0]) == decided(feeds[1])
    assert [] == pools[1].started


def test_a_failed_run_drops_its_candidate_until_it_is_retried(words: list[str], tmp_path: Path) -> None:
    """The decision says why; with --retry-failed the run starts again, and the decision is that without a failure."""

    def fail(config: RunConfig) -> dict[str, Any] | None:
        return None if config.expert == 8 and config.seed == 1 else outcome(config)

    feed = work(prepare(words, tmp_path), FakePool(fail, 2))
    (reason,) = [dropped.reason for dropped in decided(feed).dropped if dropped.name == BEST]
    assert "it could not be (seed 1)" == reason
    assert BEST != decided(feed).winner
    assert not prepare(words, tmp_path).has_work()
    again = prepare(words, tmp_path, retry_failed=True)
    assert again.has_work()
    assert BEST == decided(work(again, FakePool(outcome, 2))).winner


def test_a_larger_budget_adds_to_a_smaller_one(words: list[str], tmp_path: Path) -> None:
    """Runs of the smaller one are not executed again, and the limit on the number of runs holds."""
    small = work(prepare(words, tmp_path, runs=15), FakePool(outcome, 2))
    assert len(small.results) <= 15
    pool = FakePool(outcome, 2)
    large = work(prepare(words, tmp_path, runs=90), pool)
    assert len(large.results) <= 90
    assert not {run.path for run in pool.started} & set(small.requests)


def test_another_decision_in_one_folder_is_refused(words: list[str], tmp_path: Path) -> None:
    """Other candidates, seeds, margins or budgets of training need another name; a damaged record is an error."""
    work(prepare(words, tmp_path), FakePool(outcome, 2))
    for change, message in (
        ("seed=3", "it differs in seed"),
        ("expert=2,4", "its candidates (without expert=8)"),
        ("model.d_ff=64", "the settings of dense"),
        ("train.steps=9", "train.steps"),
    ):
        with pytest.raises(ConfigError) as error:
            prepare([*words, change], tmp_path)
        assert message in str(error.value)
        assert "--name decide-experts-2" in str(error.value)
    write_json(tmp_path / "decide-experts" / DECISION_FILE, {"rules": {}})
    with pytest.raises(ConfigError, match="is damaged or of another version"):
        prepare(words, tmp_path)


def test_a_budget_that_is_too_small_is_refused(words: list[str], tmp_path: Path) -> None:
    """Before the first run, with the least that would do; and that is enough."""
    with pytest.raises(ConfigError, match=r"--runs 9 cannot decide anything: the least is 12 runs, or .* min here"):
        prepare(words, tmp_path, runs=9)
    assert prepare(words, tmp_path, runs=12).has_work()
    assert not (tmp_path / "decide-experts").exists()


def test_equal_flops_and_time(words: list[str], tmp_path: Path) -> None:
    """--by flops gives all the FLOPs of the dense model's steps; the minutes of --by time stay those of the start."""
    limits, execution = make_limit_options(None, 90), Execution(LocalExecutor(), 1)
    flops = prepare_decision(plan_decision(words, by="flops", name="f"), limits, tmp_path, execution)
    tokens = prepare_decision(plan_decision(words, name="t"), limits, tmp_path, execution)
    dense = tokens.estimates[0]
    assert {float(f"{8 * dense.cost.flops_per_step:.3g}")} == {c.train.flops for c in flops.plan.configs.values()}
    timed = prepare_decision(plan_decision(words, by="time", name="m"), limits, tmp_path, execution)
    with timed.begin(None):
        pass
    record = read_json(tmp_path / "m" / DECISION_FILE) or {}
    for candidate in record["candidates"]:
        candidate["config"]["train"]["minutes"] = 7.5
    write_json(tmp_path / "m" / DECISION_FILE, record)
    later = prepare_decision(plan_decision(words, by="time", name="m"), limits, tmp_path, execution)
    assert {7.5} == {config.train.minutes for config in later.plan.configs.values()}


@pytest.fixture
def command(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`moe decide` with draws instead of training."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: FakePool(outcome, 2))
    options = ["--outputs", str(tmp_path / "out"), "-j", "2"]
    return lambda *more: CliRunner().invoke(app, ["decide", *words, *more, *options], env={"COLUMNS": "80"})


def test_the_command_answers_in_five_sentences(command: Any, tmp_path: Path) -> None:
    """Prices first, then a line for each run, then the answer within 80 columns; the same command again only answers."""
    first = command("--runs", "90")
    assert 0 == first.exit_code, first.output
    assert "How many experts" in first.stdout
    assert f"Use {BEST}. It is better than " in first.stdout
    for part in ("at equal tokens", "at equal time", "at equal FLOPs", "Cost: ", "Not tried: more than 8 experts"):
        assert part in " ".join(first.stdout.split())
    text = [line for line in first.stdout.splitlines() if "moe " not in line and "done " not in line]
    assert [] == [line for line in text if len(line) > 80]
    again = command("--runs", "90")
    assert "done " not in again.stdout
    answer = first.stdout[first.stdout.index("Use ") :]
    assert answer == again.stdout[again.stdout.index("Use ") :]
    recommend = ["recommend", "decide-experts", "--outputs", str(tmp_path / "out")]
    assert answer == CliRunner().invoke(app, recommend, env={"COLUMNS": "80"}).stdout


def test_the_json_and_the_page_have_the_decision(command: Any, tmp_path: Path) -> None:
    """--json prints the certificate alone; the page of the report has the answer and draws every candidate."""
    result = command("--runs", "90", "--json")
    content = json.loads(result.stdout)
    recommend = ["recommend", "decide-experts", "--json", "--outputs", str(tmp_path / "out")]
    assert content == json.loads(CliRunner().invoke(app, recommend).stdout)
    check_documented("decide", dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))["decide"], content)
    assert BEST == content["decision"]["winner"]
    assert ["tokens", "time", "flops"] == [gain["by"] for gain in content["gains"]]
    assert {"params": 8.0, "peak_memory_bytes": 1.0, "tokens_per_second": 1.0, "flops_per_token": 8.0} == content[
        "cost_ratios"
    ]
    assert len(list_runs_by_age(tmp_path / "out" / "decide-experts")) == len(content["history"])
    assert all(entry["stage"] in STAGES for entry in content["history"])
    sections = {section.id: section for section in decision_sections([tmp_path / "out" / "decide-experts"])}
    assert f"Use {BEST}." in sections["answer"].lines[0]
    assert {"expert=2", "expert=4", "expert=8", "dense"} == {line.name for line in sections["race"].chart.lines}  # type: ignore[union-attr]
    fresh = [line for line in sections["race"].chart.lines if line.mark == "ring"]  # type: ignore[union-attr]
    assert content["history"][-1]["stage"] == CONFIRMATION
    assert fresh


def test_every_line_of_the_race_is_in_its_legend(words: list[str], command: Any, tmp_path: Path) -> None:
    """The legend names each colour once; with more candidates than colours, the last ones share a colour and a name."""
    command("--runs", "90")
    found = decide(words, runs=90, jobs=2, outputs=tmp_path / "out")
    first = found.history[0]
    more = [replace(first, candidate=f"expert={number}") for number in range(100, 112)]
    pairs = [entry for one in more for entry in (one, replace(one, candidate="dense"))]
    lines = race(replace(found, history=(*pairs, *found.history))).lines
    names = {(line.style, line.name) for line in lines}
    assert len({line.style for line in lines}) == len(names) == 10
    assert {"dense", "others"} < {line.name for line in lines}


def test_python_returns_the_certificate_of_the_command(command: Any, words: list[str], tmp_path: Path) -> None:
    """`decide` prints nothing by default, and refuses what the command refuses."""
    printed = json.loads(command("--runs", "90", "--json").stdout)
    found = decide(words, runs=90, jobs=2, outputs=tmp_path / "out")
    assert printed == json.loads(json.dumps(found.to_dict()))
    assert len(found.seeds) == found.gains[0].seeds, "the seeds of the winner and dense, not those of all candidates"
    assert f"on fresh seeds {found.seeds[0]} to {found.seeds[-1]}: " in answer_sentences(found)[1]
    gap = replace(found, seeds=(1000, 1002, 1003))
    assert "on 3 fresh seeds of 1000 to 1003: " in answer_sentences(gap)[1]
    with pytest.raises(ConfigError, match="is a string"):
        decide("expert=2,4", runs=90)
    with pytest.raises(ConfigError, match="give a budget"):
        decide(words, outputs=tmp_path / "out")
    with pytest.raises(ConfigError, match="--within 2 is not a number above 0"):
        decide(words, runs=90, within=2, outputs=tmp_path / "out")


def test_dense_runs_with_larger_budgets_price_the_winner(command: Any, tmp_path: Path) -> None:
    """Added to a decision that has ended, they change its price from a bound to a value, and nothing that it claims."""
    bound = json.loads(command("--runs", "90", "--json").stdout)
    command("--runs", "99", "--baseline-budgets", "1.5", "--json")
    found = json.loads(command("--runs", "99", "--baseline-budgets", "4", "--json").stdout)
    added = [entry for entry in found["history"] if entry["stage"] == PRICE]
    assert {("dense", 1.5), ("dense", 4.0)} == {(entry["candidate"], entry["fraction"]) for entry in added}
    assert bound["decision"] | {"runs": 0, "seconds": 0} == found["decision"] | {"runs": 0, "seconds": 0}
    assert len(bound["history"]) + len(added) == len(found["history"])
    assert ([1.0], None) == (bound["price"]["budgets"], bound["price"]["multiplier"]["value"])
    assert [1.0, 1.5, 4.0] == found["price"]["budgets"]
    # The winner is 0.06 bits lower; 1.5 times the steps lower the loss of dense by 0.042, and 4 times by 0.094.
    assert 1.5 < found["price"]["multiplier"]["value"] < 4
    assert 1.0 == found["price"]["relative_speed"]["value"]
    assert "the effective speedup is " in " ".join(command("--runs", "99").stdout.split())


def test_a_dry_run_prints_prices_and_makes_nothing(command: Any, tmp_path: Path) -> None:
    """Each stage, what the budget can decide, and what it leaves out."""
    result = command("--runs", "12", "--dry-run", "--baseline-budgets", "2")
    assert 0 == result.exit_code, result.output
    for stage in STAGES:
        assert f"  {stage}" in result.stdout
    assert "power" in result.stdout
    assert "Learning rates were not tuned" in result.stdout
    assert not (tmp_path / "out" / "decide-experts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give a budget: --minutes 45, or --runs 60."),
        (("--minutes", "0"), "--minutes 0 must be above 0"),
        (("--minutes", "nan"), "--minutes nan must be above 0"),
        (("--runs", "0"), "--runs"),
        (("--runs", "90", "--within", "much"), "--within much is not a share of the loss. Give one such as 1% or 0.01"),
        (("--runs", "90", "--within", "0%"), "--within 0% is not a share of the loss."),
        (("--runs", "90", "--dry-run", "--json"), "leave out --json."),
        (("--runs", "90", "--by", "energy"), "--by energy is not one of"),
        (("--runs", "90", "--executor", "slrum"), "slrum"),
    ],
)
def test_wrong_options_are_refused(command: Any, options: tuple[str, ...], message: str) -> None:
    """Exit code 2, in at most three lines."""
    result = command(*options)
    assert 2 == result.exit_code, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 3


def test_replay_reads_only_what_is_wanted(words: list[str], tmp_path: Path) -> None:
    """Runs of another sweep in the folder have no effect on the step."""
    prepared = prepare(words, tmp_path)
    step = replay(prepared.plan, prepared.candidates, prepared.limit(), tmp_path)
    extra = Run(tmp_path / "decide-experts" / "gpt-other")
    extra.path.mkdir(parents=True)
    write_json(extra.path / "summary.json", {"val_bpb": 0.1})
    assert step == replay(prepared.plan, prepared.candidates, prepared.limit(), tmp_path)


def test_a_run_at_work_is_not_given_again(words: list[str], tmp_path: Path) -> None:
    """When one run of a group ends, the others of the group that are at work stay where they are."""
    prepared = prepare(words, tmp_path)
    with prepared.begin(FakePool(outcome, 2)) as feed:
        first, second = feed.next_run(), feed.next_run()
        assert first is not None
        with lock(first.path):
            Recorder(first).complete(outcome(first.config()) or {})
        feed.ended(first)
        assert second not in [feed.next_run() for _ in range(feed.waiting())]
