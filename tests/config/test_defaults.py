"""conf/ is the only place where defaults stand, and a comment that names a derived default names the right one."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf
from yaml.cyaml import CParser

from moe_cli.config import hydra_loader, settings
from moe_cli.config.build import build, names_of_variants
from moe_cli.config.compose import Composer
from moe_cli.config.executors import Executor, LocalExecutor, PluginExecutor
from moe_cli.config.hydra_loader import parse_packaged
from moe_cli.config.model import GPTConfig
from moe_cli.config.optim import MuonConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import FROM_CONF, Settings, packaged_conf
from moe_cli.config.training import EvalConfig
from moe_cli.config.yaml_file import format_yaml

GROUPS = ("model", "task", "router", "balance", "data", "optim")


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def subclasses(cls: type) -> list[type]:
    return [each for sub in cls.__subclasses__() for each in (sub, *subclasses(sub))]


def test_no_config_dataclass_has_a_default_of_its_own() -> None:
    """Every field but `name`, which selects the class, takes its default from conf/."""
    classes = subclasses(Settings)
    assert {RunConfig, MuonConfig, EvalConfig, GPTConfig, LocalExecutor} <= set(classes)
    own = [
        f"{cls.__name__}.{each.name}"
        for cls in classes
        for each in dataclasses.fields(cls)
        if each.name != "name" and each.default is not FROM_CONF
    ]
    assert [] == own


@pytest.fixture
def edited_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of conf/ that stands in for the packaged one."""
    shutil.copytree(packaged_conf(), tmp_path / "conf")
    monkeypatch.setattr(settings, "packaged_conf", lambda: tmp_path / "conf")
    settings.defaults_of.cache_clear()
    yield tmp_path / "conf"
    settings.defaults_of.cache_clear()


def test_a_default_follows_its_file(edited_conf: Path) -> None:
    """A changed number of conf/ is the default of the dataclass, of those based on the same file, and of a whole run."""
    for name, old, new in (("model/gpt", "d_ff: 288", "d_ff: 384"), ("config", "expert: 8 ", "expert: 4 ")):
        file = edited_conf / f"{name}.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    assert (384, 4, 384) == (GPTConfig().d_ff, RunConfig().expert, RunConfig().model.d_ff)


def test_a_file_that_lacks_a_setting_is_named(edited_conf: Path) -> None:
    """Nothing takes the place of a default that conf/ does not have."""
    (edited_conf / "optim" / "muon.yaml").write_text("name: muon\nlr: 0.02\n")
    with pytest.raises(
        settings.ConfigError, match=r"^conf/optim/muon.yaml lacks adam_lr, beta1, beta2, decay_fraction, "
    ):
        MuonConfig()


def plain(config: Any) -> str:
    """As JSON, in which 0 and 0.0 differ as they do in a digest."""
    return json.dumps(config.to_dict(), sort_keys=True)


def test_a_run_without_settings_is_what_moe_train_composes(composer: Composer) -> None:
    """RunConfig() has the values of conf/config.yaml and of the groups that it chooses, before and after resolving."""
    assert plain(build(RunConfig, composer.tree({}))) == plain(RunConfig())
    assert composer.point({}) == resolve(RunConfig())


@pytest.mark.parametrize("group", GROUPS)
def test_hydra_and_the_dataclasses_read_the_same_files(group: str, composer: Composer) -> None:
    """Every choice of a group has a class, and the settings that Hydra composes are those that the class reads."""
    choices = composer.choices(group)
    assert set(choices) == names_of_variants(RunConfig, group) - {"+"}
    for choice in choices:
        assert composer.compose(f"{group}={choice}")[group] == settings.read_choice(group, choice)


def test_two_loaders_read_the_same_values() -> None:
    """The loader in C that the packaged files are read with for Hydra finds in each what OmegaConf's own does."""
    files = [packaged_conf() / "config.yaml", *packaged_conf().rglob("*/*.yaml")]
    assert len(files) > 100
    for file in files:
        assert (file, OmegaConf.to_container(OmegaConf.load(file))) == (file, parse_packaged(file.read_text("utf-8")))


def test_without_the_extension_in_c_yaml_is_read_and_written_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML may be installed without it; the two dumpers break long lines in different places."""
    tree = {
        **settings.read_conf("model/gpt"),
        "path": "umlauts äöü — 🙂 and 'quotes' " * 9,
        "list": [1, [2.5e-7, None]],
    }
    text = format_yaml(tree)
    assert tree == yaml.safe_load(text)
    loaders = (settings._loader, hydra_loader._yaml_loader)
    for loader in loaders:
        loader.cache_clear()
    monkeypatch.delattr(yaml, "CSafeLoader")
    monkeypatch.delattr(yaml, "CSafeDumper")
    for each in (text, format_yaml(tree)):
        assert tree == settings.parse_conf(each, "here") == parse_packaged(each)
    for loader in loaders:
        assert not issubclass(loader(), CParser)
        loader.cache_clear()


def test_every_choice_and_executor_has_all_its_settings() -> None:
    """No file of conf/ lacks a setting of its class, and none has one more."""
    variants = [
        (each, name)
        for group in GROUPS
        for each in get_args(get_type_hints(RunConfig)[group])
        if isinstance(each, type) and issubclass(each, Settings)
        for name in get_args(get_type_hints(each)["name"])
    ]
    variants += [(each, each.name) for each in get_args(Executor) if each is not PluginExecutor]
    assert len(variants) > 40
    for cls, name in variants:
        assert {each.name for each in dataclasses.fields(cls)} == settings.defaults_of(cls, name).keys(), name


# Comments such as "null: 0.6" on settings that are open in conf/ and filled in by resolve.
NAMED = re.compile(r"^\s*(\w+): null\s+#.*?null: ([\d.]+)", re.MULTILINE)


@pytest.mark.parametrize(
    ("file", "choice"), [("config", {}), ("optim/_schedule", {"optim": "muon"}), ("task/ratings", {"task": "ratings"})]
)
def test_comments_name_the_derived_defaults(file: str, choice: dict[str, str], composer: Composer) -> None:
    """A comment that says what null becomes says what resolve makes of it."""
    named = dict(NAMED.findall((packaged_conf() / f"{file}.yaml").read_text()))
    config = composer.point(choice).config
    found = getattr(config, file.partition("/")[0]) if choice else config
    assert named
    assert {name: yaml.safe_load(text) for name, text in named.items()} == {
        name: getattr(found, name) for name in named
    }


def test_each_comment_stands_alone() -> None:
    """Help, completion and the settings page show the comment of one setting without its neighbours."""
    lines = [line for file in packaged_conf().rglob("*.yaml") for line in file.read_text().splitlines()]
    commented = [line for line in lines if re.match(r"\s*\w+:.* # ", line)]
    assert len(commented) > 100
    assert [] == [line for line in commented if line.endswith(",") or " #  " in line]


def test_the_comment_on_the_budget_names_the_default_steps(composer: Composer) -> None:
    """The number of steps of a run without a budget."""
    text = (packaged_conf() / "train" / "default.yaml").read_text()
    assert f"none given: {composer.point({}).config.train.steps} steps" in text
