"""Every default of conf/ is the default of its dataclass, and a comment that names a derived default names the right one."""

import dataclasses
import re
from typing import Any, get_args

import pytest
import yaml

from moe_cli.config.balances import BalanceConfig
from moe_cli.config.build import build
from moe_cli.config.compose import Composer, packaged_conf
from moe_cli.config.data import DataConfig
from moe_cli.config.model import AnyModel
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import RouterConfig
from moe_cli.config.schema import AdamWConfig, MuonConfig, RunConfig, SGDConfig
from moe_cli.config.tasks import TaskConfig

VARIANTS: dict[str, Any] = {
    "model": AnyModel, "task": TaskConfig, "router": RouterConfig, "balance": BalanceConfig, "data": DataConfig,
    "optim": MuonConfig | AdamWConfig | SGDConfig,
}  # fmt: skip
# What a family refuses, and its file of conf/ therefore does not offer.
REFUSED = {"mmoe": {"tie_embeddings"}}
CHOICES = [(group, cls) for group, union in VARIANTS.items() for cls in get_args(union) if cls.name != "+"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults, as YAML has them."""
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize(("group", "cls"), CHOICES, ids=lambda each: getattr(each, "name", each))
def test_a_choice_of_conf_and_its_dataclass_have_the_same_defaults(group: str, cls: Any, composer: Composer) -> None:
    """Every field stands in the file of its choice, with the same value, and nothing else does."""
    expected = {name: value for name, value in defaults(cls).items() if name not in REFUSED.get(cls.name, ())}
    assert expected == composer.compose(f"{group}={cls.name}")[group]


def test_every_choice_of_a_group_has_a_dataclass(composer: Composer) -> None:
    """The comparison above misses no file of conf/."""
    files = {(group, name) for group in VARIANTS for name in composer.choices(group)}
    assert files == {(group, cls.name) for group, cls in CHOICES}


def test_a_run_without_settings_is_what_moe_train_composes(composer: Composer) -> None:
    """RunConfig() has the values of conf/config.yaml and of the groups that it chooses, before and after resolving."""
    assert build(RunConfig, composer.tree({})) == RunConfig()
    assert composer.point({}) == resolve(RunConfig())


# Comments such as "null: 0.6" on settings that are open in conf/ and filled in by resolve.
NAMED = re.compile(r"^\s*(\w+): null\s+#.*?null: ([\d.]+)", re.MULTILINE)


@pytest.mark.parametrize("file", ["config", "optim/muon", "task/ratings"])
def test_comments_name_the_derived_defaults(file: str, composer: Composer) -> None:
    """A comment that says what null becomes says what resolve makes of it."""
    group, _, choice = file.partition("/")
    named = dict(NAMED.findall((packaged_conf() / f"{file}.yaml").read_text()))
    config = composer.point({group: choice} if choice else {}).config
    found = getattr(config, group) if choice else config
    assert named
    assert {name: yaml.safe_load(text) for name, text in named.items()} == {
        name: getattr(found, name) for name in named
    }


def test_the_comment_on_the_budget_names_the_default_steps(composer: Composer) -> None:
    """The number of steps of a run without a budget."""
    text = (packaged_conf() / "train" / "default.yaml").read_text()
    assert f"none given: {composer.point({}).config.train.steps} steps" in text
