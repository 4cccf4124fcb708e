"""Plain dictionaries into configurations: types, unknown keys, nearest names."""

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given

from moe_cli.config.bounds import shortened
from moe_cli.config.build import build, did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.config.resolve import resolve
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import TrainConfig
from moe_cli.errors import ConfigError
from tests.config.strategies import configs


@dataclasses.dataclass(frozen=True)
class Square:
    """A variant with one number."""

    name: Literal["square"] = "square"
    side: float = 1.0


@dataclasses.dataclass(frozen=True)
class Circle:
    """Another variant."""

    name: Literal["circle"] = "circle"
    radius: float | None = None


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """One field of every kind that the schema uses."""

    count: int
    title: str = ""
    scale: float = 1.0
    visible: bool = True
    limit: int | None = None
    size: Literal["small", "large"] = "small"
    only: Square = dataclasses.field(default_factory=Square)
    shape: Square | Circle | None = None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": 3}, SamplingParams(3)),
        ({"count": 3.0}, SamplingParams(3)),
        ({"count": 1, "scale": 2}, SamplingParams(1, scale=2.0)),
        ({"count": 1, "title": 7}, SamplingParams(1, title="7")),
        ({"count": 1, "visible": False}, SamplingParams(1, visible=False)),
        ({"count": 1, "limit": None}, SamplingParams(1)),
        ({"count": 1, "limit": 4}, SamplingParams(1, limit=4)),
        ({"count": 1, "size": "large"}, SamplingParams(1, size="large")),
        ({"count": 1, "only": {"side": 3}}, SamplingParams(1, only=Square(side=3.0))),
        ({"count": 1, "shape": {"name": "circle", "radius": 2}}, SamplingParams(1, shape=Circle(radius=2.0))),
        ({"count": 1, "shape": {"name": "square"}}, SamplingParams(1, shape=Square())),
        ({"count": 1, "shape": None}, SamplingParams(1)),
    ],
)
def test_values_become_what_is_declared(values: dict[str, Any], expected: SamplingParams) -> None:
    """Whole floats become integers, integers become floats, names pick variants, null stays null."""
    built = build(SamplingParams, values)
    assert expected == built
    for field in dataclasses.fields(SamplingParams):
        assert type(getattr(expected, field.name)) is type(getattr(built, field.name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "setting 'count' is missing."),
        ({"count": 1, "coutn": 2}, "no setting 'coutn'. Did you mean 'count'?"),
        ({"count": 1, "zzz": 2}, "no setting 'zzz'."),
        ({"count": 1.5}, "count=1.5 is not "),
        ({"count": True}, "count=true is not "),
        ({"count": "1"}, "count=1 is not "),
        ({"count": None}, "count=null is not "),
        ({"count": float("nan")}, "count=nan is not "),
        ({"count": 10**400}, f"count={shortened(10**400)} is not "),
        ({"count": 1, "limit": "x"}, "limit=x is not "),
        ({"count": 1, "scale": float("inf")}, "scale=inf is not "),
        ({"count": 1, "scale": 10**400}, f"scale={shortened(10**400)} is not "),
        ({"count": 1, "scale": False}, "scale=false is not "),
        ({"count": 1, "title": True}, "title=true is not "),
        ({"count": 1, "title": ["a"]}, "title=['a'] is a list"),
        ({"count": 1, "visible": 1}, "visible=1 is not "),
        ({"count": 1, "size": "lage"}, "size=lage is not "),
        ({"count": 1, "size": None}, "size=null is not "),
        ({"count": 1, "only": 3}, "only=3 is one value"),
        ({"count": 1, "only": {"sied": 3}}, "no setting 'only.sied'. Did you mean 'side'?"),
        ({"count": 1, "only": {"side": "x"}}, "only.side=x is not "),
        ({"count": 1, "only": {"_target_": "os.system"}}, "no setting 'only._target_'."),
        ({"count": 1, "shape": {"name": "sqare"}}, "shape=sqare is not "),
        ({"count": 1, "shape": {}}, "shape=null is not "),
        ({"count": 1, "shape": {"name": "circle", "side": 1}}, "no setting 'shape.side' with shape=circle."),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    """A wrong key or value is named in full, as the user typed it, with the nearest choice."""
    with pytest.raises(ConfigError) as error:
        build(SamplingParams, values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("expret", " Did you mean 'expert'?"),
        ("lr", " Did you mean 'optim.lr'?"),
        ("optim.lrr", " Did you mean 'optim.lr'?"),
        ("wieght", " Did you mean 'balance.weight'?"),
        ("zebra", ""),
    ],
)
def test_did_you_mean(word: str, expected: str) -> None:
    """The nearest option is proposed, by its whole name or its last part; a far one is not."""
    assert expected == did_you_mean(word, ["expert", "optim.lr", "balance.weight", "capacity"])


def test_a_last_part_in_full_is_nearer_than_a_similar_name() -> None:
    """`seed` is train.seed and not seeds."""
    assert " Did you mean 'train.seed'?" == did_you_mean("seed", ["seeds", "train.seed"])


def test_did_you_mean_prefers_the_first_of_equal_last_parts() -> None:
    """The first listed of two settings with the same last part is proposed."""
    assert " Did you mean 'model.name'?" == did_you_mean("name", ["model.name", "router.name"])


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "null"), (True, "true"), (False, "false"), (0.5, "0.5"), ("a", "a")]
)
def test_show_is_what_a_user_types(value: Any, expected: str) -> None:
    """A value is shown in the notation of the command line."""
    assert expected == format_setting(value)


@given(configs())
def test_a_configuration_survives_its_dictionary(config: RunConfig) -> None:
    """config -> to_dict -> JSON -> from_dict gives the same configuration, open or resolved."""
    for each in (config, resolve(config).config):
        assert each == from_dict(each.to_dict())
        assert each == from_dict(json.loads(json.dumps(each.to_dict())))


@pytest.mark.parametrize(("said", "meant"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_on_and_off_may_have_been_read_as_booleans(said: object, meant: str) -> None:
    """YAML has the words on and off for true and false."""
    assert meant == build(TrainConfig, {"compile": said}).compile
