"""Spaces and rules: what is a candidate, which run a request is, and what is refused before the first run."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.sweep_file import SPACE, list_sweeps, load_sweep_file
from moe_cli.decisions.plan import DENSE_NAME, DecisionPlan, parse_rules, plan_decision
from moe_cli.decisions.terms import RunRequest
from moe_cli.errors import ConfigError
from moe_cli.sweeps.plan import plan_sweep
from tests.config.test_compose import write

SPACES = list_sweeps(Composer(), SPACE)
LARGE = ("workstation", "cluster")
RULES = "defaults: [_rules, _self_]\n"


@pytest.mark.parametrize("preset", ["laptop", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
@pytest.mark.parametrize("space", SPACES)
def test_every_space_has_a_question_and_one_dense_model(space: str, preset: str) -> None:
    """Every file of conf/decide begins with its question; all its candidates can be run, the dense model first."""
    plan = plan_decision([space, f"preset={preset}"])
    assert plan.question.endswith("?")
    assert DENSE_NAME == next(iter(plan.configs))
    assert [DENSE_NAME] == [name for name, config in plan.configs.items() if config.dense]
    assert () == plan.left_out
    assert f"decide-{space}" == plan.name


def test_without_a_space_experts_are_decided() -> None:
    """Settings alone change the default space: single values hold for all, several values replace the file's own."""
    plan = plan_decision(["expert=4,64", "k=1", "model.num_layers=2", "seed=7"])
    assert ["dense", "expert=4", "expert=64"] == list(plan.configs)
    assert {2} == {config.model.num_layers for config in plan.configs.values()}
    assert {7} == {config.seed for config in plan.configs.values()} | {plan.rules.first_seed}
    assert list(plan_decision(["experts"]).configs) == list(plan_decision([]).configs)


def test_a_request_is_an_ordinary_run() -> None:
    """A run at half the budget and twice the learning rates, times sqrt(2), is that of the same words in a sweep."""
    plan = plan_decision(["optim.lr=0.01", "optim.adam_lr=0.004"])
    config = plan.config(RunRequest("expert=8 k=1", 3, 0.5, 2.0, "screening"))
    words = ["expert=4,8", "k=1", "train.steps=300", "optim.lr=0.02828", "optim.adam_lr=0.01131", "seed=3"]
    assert config.digest in [point.config.digest for point in plan_sweep(words).points]
    assert "expert=8 k=1 seed=3, 1/2 budget, lr x2" == plan.label(RunRequest("expert=8 k=1", 3, 0.5, 2.0, ""))
    assert plan.configs["expert=8 k=1"] == plan.config(RunRequest("expert=8 k=1", 0, 1.0, 1.0, ""))


@pytest.mark.parametrize(
    ("budget", "by", "part"),
    [
        ("train.steps=3", "tokens", ("steps", 1)),
        ("train.tokens=1001", "tokens", ("tokens", 250)),
        ("train.flops=2e9", "flops", ("flops", 5e8)),
        ("train.minutes=2", "time", ("minutes", 0.5)),
    ],
)
def test_a_part_of_any_budget(budget: str, by: str, part: tuple[str, float]) -> None:
    """Each kind of budget has its own equality, and its quarter; steps and tokens stay whole, and at least one."""
    plan = plan_decision([budget])
    assert by == plan.by
    config = plan.config(RunRequest(DENSE_NAME, 0, 0.25, 1.0, ""))
    assert part == config.train.budget
    rates = [f"optim.{name}={2 * getattr(plan.dense.optim, name)}" for name in ("lr", "adam_lr")]
    words = [f"train.{part[0]}={part[1]}", "expert=1", "train.threads=1", *rates]
    assert load_config(words).config.digest == config.digest


@pytest.mark.parametrize(("fraction", "factor"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_the_learning_rate_follows_the_length_of_the_run(fraction: float, factor: float) -> None:
    """By 1 / sqrt(T), for all candidates and all rates alike; not with lr_horizon=0."""
    plan = plan_decision([])
    same = replace(plan, rules=replace(plan.rules, lr_horizon=0.0))
    for name, config in plan.configs.items():
        request = RunRequest(name, 0, fraction, 1.5, "")
        for rate in ("lr", "adam_lr"):
            known = getattr(config.optim, rate)
            assert pytest.approx(1.5 * factor * known, rel=1e-3) == getattr(plan.config(request).optim, rate)
            assert pytest.approx(1.5 * known, rel=1e-3) == getattr(same.config(request).optim, rate)


@pytest.mark.parametrize(
    ("words", "every"),
    [([], 75), (["train.tokens=1228800"], 75), (["train.minutes=2"], None), (["train.eval_every=7"], 7)],
)
def test_a_run_with_a_part_of_the_budget_is_evaluated_once_before_its_end(words: list[str], every: int | None) -> None:
    """Only its final loss counts; ten evaluations would take as long as the training. What the user says holds."""
    plan = plan_decision(words)
    assert every == plan.config(RunRequest(DENSE_NAME, 0, 0.25, 1.0, "")).train.eval_every
    assert plan.dense.train.eval_every == plan.config(RunRequest(DENSE_NAME, 0, 1.0, 1.0, "")).train.eval_every


def test_rules_are_those_of_the_file() -> None:
    """conf/decide/_rules.yaml has every rule; --within replaces one, and `seed` is the first seed."""
    file = load_sweep_file(Composer(), "experts", kind=SPACE).rules
    rules = asdict(plan_decision(["seed=4"], within=0.02).rules)
    assert {**{name: tuple(v) if isinstance(v, list) else v for name, v in file.items()}, "within": 0.02} == {
        name: value for name, value in rules.items() if name != "first_seed"
    }
    assert 4 == rules["first_seed"]


def test_a_file_changes_single_rules(tmp_path: Path) -> None:
    """A space of the user takes the usual rules and replaces one; a preset replaces another."""
    text = RULES + "grid: {expert: [2, 4]}\nrules: {finalists: 2}\npresets: {large: {rules: {choice_seeds: 9}}}\n"
    plan = own_space(tmp_path, text)
    usual = plan_decision([]).rules
    assert (2, usual.choice_seeds) == (plan.rules.finalists, plan.rules.choice_seeds)
    large = parse_rules(load_sweep_file(Composer(tmp_path), "mine", "large", SPACE), 0)
    assert (2, 9) == (large.finalists, large.choice_seeds)


def own_space(folder: Path, text: str) -> DecisionPlan:
    return plan_decision(["mine"], config_dir=write(folder, decide__mine=text))


WRONG_FILES = {
    "grid: {expert: [2]}\nseeds: 3\n": "no part 'seeds' in a space.",
    "grid: {expert: [2]}\nbaseline: {expert: 1}\n": "no part 'baseline' in a space.",
    "set: {k: 1}\n": "a space must hold what varies: grid, zip, points or union.",
    RULES: "a space must hold what varies: grid, zip, points or union.",
    "grid: {expert: [2]}\n": "mine: the rule within is missing. For the usual rules, write: defaults: [_rules, _self_]",
    RULES + "grid: {expert: [2]}\nrules: {wihtin: 1}\n": "mine: no rule 'wihtin'. Did you mean 'within'?",
    RULES + "grid: {expert: [2]}\nrules: {within: 0}\n": "rules.within=0 is not a number above 0 and at most 1.",
    RULES + "grid: {expert: [2]}\nrules: {alpha: true}\n": "rules.alpha=true is not a number above 0 and at most 0.5.",
    RULES + "grid: {expert: [2]}\nrules: {within: x}\n": "rules.within=x is not a number",
    RULES
    + "grid: {expert: [2]}\nrules: {screening_fraction: 1.5}\n": "rules.screening_fraction=1.5 is not a number above 0 and at most 1.",
    RULES + "grid: {expert: [2]}\nrules: {choice_seeds: 0}\n": "rules.choice_seeds=0 is not a whole number",
    RULES + "grid: {expert: [2]}\nrules: {looks: 3}\n": "rules.looks must be a list of numbers, not: 3",
    RULES + "grid: {expert: [2]}\nrules: {looks: [1]}\n": "rules.looks=1 is not a whole number of at least 2",
    RULES + "grid: {expert: [2]}\nrules: {looks: [5, 3]}\n": "rules.looks must rise: [5,3]",
    RULES + "grid: {expert: [2]}\nrules: {lr_multipliers: [0.5, 2]}\n": "rules.lr_multipliers must rise and hold 1",
    RULES + "grid: {expert: [2]}\nrules: {lr_multipliers: [x, 1]}\n": "rules.lr_multipliers=x is not a number",
    RULES + "grid: {expert: [2]}\nrules: {lr_multipliers: [true, 2]}\n": "rules.lr_multipliers=true is not a number",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_space_is_refused(text: str, tmp_path: Path) -> None:
    """The message names the part or the rule."""
    with pytest.raises(ConfigError) as error:
        parse_rules(load_sweep_file(Composer(write(tmp_path, decide__mine=text)), "mine", kind=SPACE), 0)
    assert WRONG_FILES[text] in str(error.value)


WRONG_WORDS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "space": (
        ["rooter"],
        {},
        "no space 'rooter'. Did you mean 'router'? There are: balance, experts, granularity, router.",
    ),
    "setting": (["exprt=8"], {}, "no setting 'exprt'. Did you mean 'expert'?"),
    "sizes": (["model.d_model=64,96"], {}, "a decision compares with one dense model, and these settings make 2: "),
    "seeds": (["seed=1,2"], {}, "'seed=1,2' names several seeds"),
    "presets": (["preset=laptop,cluster"], {}, "names several presets: a space has one."),
    "by": ([], {"by": "energy"}, "--by energy is not one of: tokens, time, flops."),
    "budget": (
        ["train.minutes=2"],
        {"by": "flops"},
        "--by flops: the training budget is given in time, train.minutes=2.0.",
    ),
    "budget of the model alone": (
        ["train.model_flops=1e12"],
        {},
        "train.model_flops=1000000000000.0 is a budget that no decision holds equal. Use train.flops=",
    ),
    "margin": ([], {"within": 0.0}, "--within 0.0 is not a number above 0 and at most 1."),
    "name": ([], {"name": "a/b"}, "--name a/b must be a plain folder name."),
    "where": ([], {"where": ["expert > 99"]}, "no combination of these settings can be run."),
    "interval": (["expert=interval(2,8)"], {}, "is an interval, from which only a search draws."),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_refused(case: str) -> None:
    """In at most three lines."""
    words, options, message = WRONG_WORDS[case]
    with pytest.raises(ConfigError) as error:
        plan_decision(words, **options)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
