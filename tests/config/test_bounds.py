"""Absurd numbers: every setting and every option of a command refuses them or bears them, at once and in three lines."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import typer

from moe_cli.cli.app import app
from moe_cli.config.bounds import MAX_NUMBER, MAX_WHOLE
from moe_cli.config.build import kinds_of, names_of
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.executors import RayExecutor, SlurmExecutor, load_executor
from moe_cli.config.overrides import parse_override
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import Settings, limits_of
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.errors import ConfigError
from moe_cli.execution.estimate import step_work
from moe_cli.execution.memory import memory_bytes
from moe_cli.sweeps.plan import plan_sweep
from moe_cli.sweeps.search_space import SearchOptions, plan_sweep_or_search
from tests.runner import CliRunner

ABSURD = ("0", "-1", str(2**63), "nan", "inf", "9" * 5000)
NUMBERS = [name for name in names_of(RunConfig) if kinds_of(RunConfig, name) & {int, float}]
# What some choices cannot do without.
NEEDED = {
    "data=tokens": ["data.path=tokens", "data.vocab_size=300"],
    **{f"data={name}": ["data.path=a"] for name in ("text", "hf", "fashion_mnist", "image_folder", "movielens")},
    "data=fashion_mnist": ["data.path=a", "model=vit"],
    "data=image_folder": ["data.path=a", "model=vit"],
}
SECONDS = 20


@contextmanager
def at_once(what: str) -> Iterator[None]:
    """Fails where something has no end."""

    def end(*arguments: object) -> None:
        raise AssertionError(f"{what} goes on and on")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def choices_with(key: str) -> list[str]:
    """The words of the first choice that has a setting; none where all have it."""
    group, _, rest = key.partition(".")
    composer = Composer()
    if group == "balance" and "." in rest:
        return [f"balance={'+'.join(sorted({rest.partition('.')[0], 'z' if 'z.' not in key else 'switch'}))}"]
    if not rest or group in ("eval", "launch"):
        return []
    for choice in composer.choices(group):
        if rest in settings_of(group, choice):
            return [f"{group}={choice}", *NEEDED.get(f"{group}={choice}", [])]
    return []


@cache
def settings_of(group: str, choice: str) -> set[str]:
    """The settings that a choice of a group has."""
    try:
        config = load_config([f"{group}={choice}", *NEEDED.get(f"{group}={choice}", [])]).config
    except ConfigError:
        return set()
    return set(vars(getattr(config, group)))


def most_of(key: str) -> float:
    """The largest number that the field of a setting allows."""
    group, name = key.split(".")[0] if "." in key else "", key.rpartition(".")[2]
    classes = [*Settings.__subclasses__()]
    for cls in classes:
        classes += cls.__subclasses__()
        limits = limits_of(cls).get(name) if cls.group == group else None
        if limits:
            widest = MAX_WHOLE if kinds_of(RunConfig, key) == {int} else MAX_NUMBER
            return limits.at_most or (limits.between[1] if limits.between else widest)
    raise AssertionError(key)


def priced(words: list[str]) -> str | None:
    """Returns the error of a configuration, or None if its cost can be computed."""
    try:
        config = load_config(words).config
        costs = estimate_cost(config, 300)
        training_steps(config, 300)
        memory_bytes(costs)
        step_work(config, costs)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", NUMBERS)
def test_a_setting_refuses_or_bears_absurd_numbers(key: str) -> None:
    """Each is refused in at most three lines, or the configuration can be priced; so can the most that is allowed."""
    choices = choices_with(key)
    most = most_of(key)
    for value in (*ABSURD, str(most)):
        with at_once(f"{key}={value[:40]}"):
            wrong = priced([*choices, f"{key}={value}"])
        assert wrong is None or len(wrong.splitlines()) <= 3
        if value in ("nan", "inf", "9" * 5000):
            assert wrong is not None, value
            assert len(wrong) < 1000


EXECUTOR_SETTINGS = [
    (kind, each.name)
    for kind in (RayExecutor, SlurmExecutor)
    for each in fields(kind)
    if {int, float} & {*get_args(get_type_hints(kind)[each.name]), get_type_hints(kind)[each.name]}
]


@pytest.mark.parametrize(("kind", "name"), EXECUTOR_SETTINGS)
def test_a_setting_of_an_executor_refuses_or_bears_absurd_numbers(kind: Any, name: str) -> None:
    """As a setting of a run does; and it has a bound of its own."""
    key = f"executor.{name}"
    for value in (*ABSURD, str(most_of(key))):
        wrong = None
        try:
            with at_once(f"{key}={value[:40]}"):
                load_executor([f"executor={kind.name}", f"{key}={value}"])
        except ConfigError as error:
            wrong = str(error)
        assert wrong is None or (len(wrong.splitlines()) <= 3 and len(wrong) < 1000)
        assert wrong is not None or value in ("0", str(most_of(key))), value


def options(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every option that takes a number, with the command it belongs to."""
    for each in command.params:
        kind = getattr(getattr(each, "type_descriptor", None), "annotation", None)
        if kind in (int, float) or (
            path[:1] == ("bench",) and each.name in ("tokens", "experts", "k", "threads", "d_model")
        ):
            yield path, each.opts[-1]
    for name, sub in getattr(command, "commands", {}).items():
        yield from options(sub, (*path, name))


OPTIONS = list(options(typer.main.get_command(app)))
ARGUMENTS = {
    ("sweep",): ["k=1,oops", "--dry-run"],
    ("decide",): ["--dry-run"],
    ("reproduce",): ["early_saturation", "--dry-run"],
    ("sample",): ["latest"],
    ("explain",): ["latest", "text"],
    ("runs", "experts"): ["latest"],
    ("plan",): [],
    ("bench", "layer"): [],
    ("bench", "step"): ["expert=0"],
    ("bench", "optimizer"): ["expert=0"],
    ("bench", "sweep"): ["expert=0"],
}


def test_an_option_of_a_search_is_bounded() -> None:
    """Whatever the words are."""
    for options in (SearchOptions("tpe", trials=10**30), SearchOptions("tpe", seed=2**32)):
        with pytest.raises(ConfigError, match="whole number"):
            plan_sweep_or_search(["optim.lr=interval(0.001,0.1)"], options)


def test_the_options_are_found() -> None:
    """Every command with a number among its options can be called here."""
    assert set(ARGUMENTS) == {path for path, _ in OPTIONS}
    assert len(OPTIONS) >= 18


@pytest.mark.parametrize(
    ("path", "option"), OPTIONS, ids=lambda part: " ".join(part) if isinstance(part, tuple) else part
)
def test_an_option_refuses_or_bears_absurd_numbers(
    path: tuple[str, ...], option: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 or 2, at most three lines on standard error, and an end."""
    monkeypatch.setenv("MOE_OUTPUTS", str(tmp_path))
    for name in ("layer", "step", "optimizer", "tables") if path[0] == "bench" else ():
        monkeypatch.setitem(sys.modules, f"moe_cli.bench.{name}", _NoBench(name))
    search = ["--sampler", "tpe"] if option in ("--trials", "--search-seed") else []
    for value in ABSURD:
        words = [*path, *ARGUMENTS[path], *search, option, value]
        with at_once(" ".join(words)[:80]):
            result = CliRunner().invoke(app, words)
        shown = result.stderr.splitlines()
        assert isinstance(result.exception, SystemExit | None), (value[:40], result.exception)
        assert result.exit_code in (0, 2), (value[:40], result.output)
        assert len([line for line in shown if not line.startswith("note: ")]) <= 3, result.stderr
        assert len(result.stderr) < 3000


class _NoBench(ModuleType):
    """In place of a module that measures."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*arguments: object) -> None:
            raise ConfigError("measured")

        return refuse


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("k=range(1,1000000000)", "names more than 10,000 values"),
        ("k=range(1,9,0)", "has no end"),
        ("optim.lr=range(0,1,0.0)", "has no end"),
        ("optim.lr=range(0,inf)", "has no end"),
        (f"k=range(0,{10**400},0.5)", "names more than"),
        ("k=shuffle(range(1,1000000000))", "names more than"),
        ("k=" + ",".join(map(str, range(10_001))), "names 10,001 values"),
        ("k=" + "[" * 600 + "]" * 600, "cannot be read"),
        ("k=" + "1" * 300_000, "too long"),
    ],
)
def test_a_word_is_counted_before_its_values_are_made(word: str, why: str) -> None:
    """One without an end, or of too many values, is refused at once."""
    with at_once(word[:80]), pytest.raises(ConfigError, match=why) as error:
        parse_override(word)
    assert len(str(error.value)) < 1000


def test_a_product_is_counted_before_it_is_made() -> None:
    """The configurations of a sweep, and its runs over seeds, have a most."""
    axes = [f"{key}=range(1,1000)" for key in ("expert", "model.d_ff", "seed")]
    with at_once("sweep"), pytest.raises(ConfigError, match="are too many"):
        plan_sweep(axes)
    with pytest.raises(ConfigError, match="at most 10000"):
        plan_sweep(["k=1,2"], seeds=10**30)
    with pytest.raises(ConfigError, match="are too many"):
        plan_sweep(["expert=range(1,100)"], seeds=5000)
    assert 2 == len(plan_sweep(["k=1,2", "train.steps=1"]).points)


WRONG_VALUES = [
    (["expert=1,2,foo"], "expert=foo is not a whole number"),
    (["k=1,-1"], "k=-1 is too small"),
    (["router=topk,swich"], "router=swich: no such choice"),
    (["expert=2,4", "optm.lr=1"], "no setting 'optm.lr'"),
    ([f"expert=2,{10**30}"], "is too large"),
]


@pytest.mark.parametrize(("words", "why"), WRONG_VALUES)
@pytest.mark.parametrize("search", [False, True])
def test_a_wrong_value_among_good_ones_is_an_error(words: list[str], why: str, search: bool) -> None:
    """A value that is wrong by itself is an error even among good ones, in a sweep and in a search."""
    with pytest.raises(ConfigError, match=why):
        plan_sweep_or_search(words, SearchOptions("random" if search else None))


def test_what_cannot_be_together_is_left_out() -> None:
    """k=4 of expert=2 is no wrong value."""
    plan = plan_sweep(["expert=2,8", "k=1,4", "train.steps=1"])
    assert 3 == len(plan.points)
    assert ["expert=2 k=4"] == [each.label for each in plan.left_out]
