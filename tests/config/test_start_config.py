"""Configurations to start from: a saved file, the configuration of a run, own data by their path."""

from pathlib import Path

import pytest
import yaml

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.start_config import fewest_settings
from moe_cli.errors import ConfigError

COMPOSER = Composer()


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with notes.txt."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("some text\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", [pytest.param("makemoe", marks=pytest.mark.slow), "published/deepseek_v3"])
def test_the_fewest_settings_lead_to_the_same_configuration(name: str, texts: Path) -> None:
    """An experiment is reached again from its fewest settings, and derived values are not among them."""
    words = [f"experiment={name}", *(["data.path=notes.txt"] if name == "makemoe" else [])]
    config = load_config(words).config
    settings = fewest_settings(COMPOSER, config)
    assert config == COMPOSER.point(settings).config
    assert not {"model.num_heads", "router.renormalise"} & fewest_settings(COMPOSER, load_config([]).config).keys()


def test_a_saved_configuration_gives_its_run_again(texts: Path) -> None:
    """The text that `moe config` prints, as a file, is the same configuration."""
    config = load_config(["model=lstm", "expert=16", "optim.lr=0.01"]).config
    Path("c.yaml").write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    assert config == load_config(["c.yaml"]).config


@pytest.mark.parametrize(
    ("saved", "changes"),
    [
        (["expert=8"], ["expert=16"]),
        (["expert=1"], ["expert=8", "k=1"]),
        (["expert=8"], ["expert=1"]),
        (["train.steps=10"], ["train.tokens=100000"]),
        (["model=lstm"], ["model=gpt"]),
        (["optim.lr=0.01"], ["optim=adamw"]),
    ],
)
def test_changes_of_a_saved_configuration_act_as_if_typed_with_it(saved: list[str], changes: list[str]) -> None:
    """Derived values follow the change, and a changed choice of a group or a budget replaces the earlier one."""
    changed = load_config(changes, like=load_config(saved).config).config
    kept = [word for word in saved if word.split("=")[0] != changes[0].split("=")[0]]
    kept = [word for word in kept if not word.startswith(("train.steps", "optim.lr"))]
    assert load_config([*kept, *changes]).config == changed


@pytest.mark.parametrize(
    ("words", "selected"),
    [
        (["notes.txt"], "data.path selects data=text."),
        (["data.path=notes.txt"], "data.path selects data=text."),
        (["model=vit", "data.path=notes.txt"], "model=vit selects task=images data=image_folder."),
        (["model=vit"], "model=vit selects task=images data=digits."),
        (["model=lstm"], "model=lstm selects router=noisy_topk balance=importance+load."),
        (["data=text", "data.path=notes.txt"], None),
        (["model=gpt"], None),
    ],
)
def test_what_a_choice_selects_is_printed(words: list[str], selected: str | None, texts: Path) -> None:
    """The task, the data and other choices that a model or a path brings along are named in one line."""
    notes = [note for note in load_config(words).notes if " selects " in note]
    assert ([] if selected is None else [selected]) == notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope.txt"], "there is no file nope.txt. Write a setting as key=value, such as expert=8"),
        (
            ["notes.txt", "more.txt"],
            "notes.txt and more.txt are two files: give one, or the folder of several texts.",
        ),
        (
            ["c.yaml", "experiment=speedrun"],
            "experiment= gives a configuration to start from, as the saved one does: give one.",
        ),
        (["list.yaml"], "list.yaml is not a configuration. Save one with: moe config expert=8 > list.yaml"),
    ],
)
def test_errors_of_paths(words: list[str], message: str, texts: Path) -> None:
    """A path that cannot be used gives one line."""
    Path("more.txt").write_text("more\n", encoding="utf-8")
    Path("c.yaml").write_text("expert: 4\n", encoding="utf-8")
    Path("list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(words)
    assert message == str(error.value)
