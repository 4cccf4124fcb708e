"""Folders of the user's own: ./conf is named where it is used, another program's is left alone, and errors name files."""

from pathlib import Path

import pytest

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.settings import packaged_conf
from moe_cli.errors import ConfigError
from moe_cli.sweeps.plan import plan_sweep
from tests.config.test_compose import TINY, write

USED = "./conf is used: model/gpt.yaml. To leave it out: --config-dir none"
WHOLE = (packaged_conf() / "config.yaml").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_conf_folder_that_is_used_is_named(here: Path) -> None:
    """Where a file of it takes part, by its name, and how to leave it out; where none does, not a word."""
    write(here / "conf", model__gpt=TINY, sweep__mine="grid: {expert: [4, 8]}\n")
    assert (USED,) == load_config([]).notes
    assert not any("./conf" in note for note in load_config(["model=lstm"]).notes)
    assert () == load_config([], config_dir=here / "conf").notes
    assert (USED,) == plan_sweep(["k=1,2"]).conf_notes
    assert any("sweep/mine.yaml" in note for note in plan_sweep(["mine", "model=lstm"]).conf_notes)


@pytest.mark.parametrize(
    "text",
    [
        "defaults:\n  - override /hydra/job_logging: disabled\nexpert: 16\n",
        "expert: 16\nhydra:\n  job:\n    chdir: true\n",
    ],
)
def test_what_a_file_sets_of_hydra_itself_has_no_effect(tmp_path: Path, text: str) -> None:
    """An experiment may name Hydra's own groups and settings, as those of programs of Hydra do."""
    write(tmp_path, experiment__mine=f"# @package _global_\n{text}")
    assert load_config(["expert=16"]).config == load_config(["experiment=mine"], config_dir=tmp_path).config


def test_files_that_others_build_on_count(here: Path) -> None:
    """model=bert takes its defaults from model/gpt.yaml, which is the user's here."""
    write(here / "conf", model__gpt=TINY)
    assert USED == load_config(["model=bert"]).notes[0]


def test_config_dir_none_leaves_it_out(here: Path) -> None:
    """The packaged files alone, without a note."""
    write(here / "conf", model__gpt=TINY)
    resolved = load_config([], config_dir=Path("none"))
    assert (96, ()) == (resolved.config.model.d_model, resolved.notes)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"model__gpt": TINY, "config": "a: 1\n"}, "it has a config.yaml, so it belongs to another program"),
        ({"model__resnet": "_target_: torchvision.resnet\n"}, "model/resnet.yaml is not a file of this program"),
        ({"model__gpt": "_target_: other.gpt\n"}, "model/gpt.yaml is not a file of this program"),
        ({"optim__adam": "name: adam\nlr: 1\n"}, "optim/adam.yaml is not a file of this program"),
        ({"train__default": "epochs: 3\n"}, "train/default.yaml is not a file of this program"),
        ({"data__list": "[1, 2]\n"}, "data/list.yaml is not a file of this program"),
        (
            {"optim__muon": "defaults: [base]\n_target_: torch.optim.Adam\n"},
            "optim/muon.yaml is not a file of this program",
        ),
        ({"model__gpt": "name: gpt\nn_layer: 2\nn_head: 2\n"}, "model/gpt.yaml is not a file of this program"),
    ],
)
def test_the_conf_folder_of_another_program_is_left_alone(here: Path, files: dict[str, str], why: str) -> None:
    """Every command works there as elsewhere, and says why the folder is not used."""
    plain = load_config([], config_dir=Path("none")).config
    write(here / "conf", **files)
    resolved = load_config([])
    assert plain == resolved.config
    assert (f"./conf is not used: {why}. To use it: --config-dir conf",) == resolved.notes


@pytest.mark.parametrize("folder", ["named", "conf"])
def test_what_is_wrong_in_a_file_names_the_file(here: Path, folder: str) -> None:
    """The error says which files of the user's took part; what was typed wrong says nothing of them."""
    write(here / folder, model__gpt=TINY + "unknown: 1\n")
    shown = "./conf" if folder == "conf" else str(here / folder)
    config_dir = None if folder == "conf" else here / folder
    with pytest.raises(ConfigError) as error:
        load_config(["expert=4"], config_dir=config_dir)
    assert f"no setting 'model.unknown' with model=gpt.\nUsed from {shown}: model/gpt.yaml" == str(error.value)
    write(here / folder, model__gpt=TINY)
    with pytest.raises(ConfigError) as error:
        load_config(["expert=4", "k=9"], config_dir=config_dir)
    assert "Used from" not in str(error.value)


def test_a_whole_config_yaml_stands_in_place_of_ours(tmp_path: Path) -> None:
    """With all settings and groups it is the configuration to start from, and what is typed goes over it."""
    write(tmp_path, config=WHOLE.replace("expert: 8", "expert: 16"))
    assert 16 == load_config([], config_dir=tmp_path).config.expert
    assert 4 == load_config(["expert=4"], config_dir=tmp_path).config.expert


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expert: 16\n",
        "- a\n",
        "word\n",
        "3\n",
        "defaults: 3\n",
        "defaults:\n  - model: gpt\n",
        "foo: [\n",
        "defaults:\n  - nothing\n",
        "hydra: 1\n",
        WHOLE.replace("eval:", "other:"),
        WHOLE + "more: 1\n",
        WHOLE.replace("  - model: gpt\n", "") + "model: 3\n",
    ],
)
def test_any_other_config_yaml_is_refused_by_its_place(tmp_path: Path, text: str) -> None:
    """Whatever stands in it, the error is one for users, of at most three lines, and names the folder."""
    write(tmp_path, config=text)
    with pytest.raises(ConfigError) as error:
        load_config(["expert=4"], config_dir=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert 3 >= len(str(error.value).splitlines())


def test_the_choices_of_a_foreign_folder_are_not_offered(here: Path) -> None:
    """A file of another program is no choice."""
    write(here / "conf", model__resnet="_target_: torchvision.resnet\n")
    assert "resnet" not in Composer().choices("model")
