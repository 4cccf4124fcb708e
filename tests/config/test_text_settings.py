"""Text settings: what is typed stays as it is, on the line, in files and in conditions; YAML files are bounded."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.axes import single_values
from moe_cli.config.baselines import parse_baseline
from moe_cli.config.build import names_of
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.executors import load_executor
from moe_cli.config.expressions import parse_expression
from moe_cli.config.folders import is_text
from moe_cli.config.overrides import parse_override, parse_overrides
from moe_cli.config.schema import RunConfig
from moe_cli.config.sweep_file import load_sweep_file
from moe_cli.config.yaml_file import read_yaml_text
from moe_cli.errors import ConfigError
from moe_cli.sweeps.search_space import SearchOptions, plan_sweep_or_search

TEXTS = sorted(name for name in names_of(RunConfig) if is_text(name) and name not in ("log", "balance.name"))
# What YAML or Hydra's grammar would read as something else.
NUMBERS = ("2024_01", "007", "2024.10", "1e3", "0x10", "010", "-1", "nan", "inf", "true", "on", "1_0.5_0", ".5")


def test_the_settings_that_take_text() -> None:
    """These, and no other."""
    expected = [
        "data.exclude",
        "data.field",
        "data.path",
        "data.revision",
        "data.split",
        "data.subset",
        "data.tokenizer",
        "log_project",
        "train.device",
        "train.upcycle_from",
    ]
    assert expected == TEXTS
    assert not any(is_text(key) for key in ("expert", "optim.lr", "model.dropout", "train.compile", "drop", "nothing"))


@pytest.mark.parametrize("key", [*TEXTS, "model", "preset"])
def test_a_word_of_text_stays_as_it_is_typed(key: str) -> None:
    """Alone and among several; null and what stands in quotes are what they were."""
    for written in NUMBERS:
        assert written == single_values(parse_overrides([f"{key}={written}"]), "train")[key]
        if key != "log_project":  # a run has one
            assert (written, "a", written) == parse_override(f"{key}={written},a,'{written}'").values
    assert (None,) == parse_override(f"{key}=null").values


@given(st.from_regex(r"[0-9]{1,4}(_[0-9]{1,3}){0,2}(\.[0-9]{1,3})?(e[0-9])?", fullmatch=True))
def test_a_path_of_digits_is_the_path(written: str) -> None:
    """Whatever number it looks like."""
    data: Any = load_config(["data=text", f"data.path=/{written}", f"data.field={written}"]).config.data
    assert (f"/{written}", written) == (data.path, data.field)


def test_numbers_stay_numbers() -> None:
    """Numbers stay numbers for numeric settings and in the bounds of a range or an interval."""
    assert (1000,) == parse_override("train.steps=1_000").values
    assert (1, 2) == parse_override("data.path=range(1,3)").values
    assert 0.1 == parse_override("data.field=interval(0.1,2)").values[0].low


@pytest.mark.parametrize("written", NUMBERS)
def test_a_sweep_and_a_search_keep_text(written: str, tmp_path: Path) -> None:
    """Typed or in a file: the points have the folders that are named."""
    words = ["data=text", f"data.path=/{written}", f"data.field={written},b", "train.steps=1"]
    plan: Any = plan_sweep_or_search(words, SearchOptions())
    assert [written, "b"] == [point.config.data.field for point in plan.points]
    search: Any = plan_sweep_or_search(words, SearchOptions("random"))
    assert {"data.field": (written, "b")} == search.space
    (tmp_path / "sweep").mkdir()
    text = f"set: {{data: text, data.path: {written}}}\ngrid:\n  data.field: [{written}, b]\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    (block,) = load_sweep_file(Composer(tmp_path), "mine").blocks
    assert [written, written] == [each["data.path"] for each in block.settings()]
    assert [written, "b"] == [each["data.field"] for each in block.settings()]


@pytest.mark.parametrize("written", ["2024_01", "on"])
def test_files_of_conf_keep_text(written: str, tmp_path: Path) -> None:
    """A group's file, an experiment and an executor."""
    for folder in ("data", "experiment", "executor"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(f"name: text\npath: /{written}\nfield: {written}\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\ndefaults: [{{override /data: text}}]\ndata: {{path: {written}, field: {written}}}\n"
    )
    (tmp_path / "executor" / "mine.yaml").write_text(f"name: slurm\npartition: {written}\n")
    for word in ("data=mine", "experiment=mine"):
        data: Any = load_config([word], config_dir=tmp_path).config.data
        assert written == data.field
    executor: Any = load_executor(["executor=mine"], config_dir=tmp_path)
    assert written == executor.partition
    executor = load_executor(["executor=slurm", f"executor.partition={written}"])
    assert written == executor.partition


def test_conditions_set_text_against_text() -> None:
    """A number in a condition, and in a baseline, is as it is written where the setting holds text."""
    values = {"data.path": "2024_01", "k": 2}
    for text in ("data.path == 2024_01", "2024_01 == data.path", "data.path in [7, 2024_01]", "k == 2", "k in [1, 2]"):
        assert parse_expression(text).holds(values), text
    assert not parse_expression("data.path == 202401").holds(values)
    assert parse_expression("data.path == true").holds({"data.path": "true"})
    assert {"data.path": "2024_01", "k": 2} == parse_baseline("data.path == 2024_01 and k == 2")
    assert {"data.path": "2024_01", "k": 2} == parse_baseline("data.path=2024_01 k=2")


LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
WRONG = {
    "octal": ("grid: {expert: [010]}\n", "line 1: 010 would be read as octal"),
    "sixtieths": ("grid:\n  expert: 1:30\n", "line 2: 1:30 would be read in sixtieths"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "nested deeper than 50 levels"),
    "itself": ("a: &a\n- *a\n", r"line 2: \*a contains itself"),
    "laughs": (LAUGHS, "more than 50,000 values"),
    "large": ("# " + "x" * 2**20 + "\n", "at most 1,048,576 are read"),
    "digits": ("grid: {expert: [" + "9" * 5000 + "]}\n", "a number of 5000 characters"),
    "latin": ("grid: {k: [1]} # é".encode("latin-1"), "is not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_is_bounded_before_anything_is_made_of_it(name: str, tmp_path: Path) -> None:
    """Sweeps and groups alike: refused with the file's name, in at most three lines."""
    text, why = WRONG[name]
    for folder in ("sweep", "model", "executor"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    calls = [
        lambda: load_sweep_file(Composer(tmp_path), "mine"),
        lambda: load_config(["model=mine"], config_dir=tmp_path),
        lambda: load_executor(["executor=mine"], config_dir=tmp_path),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=why) as error:
            call()
        assert "mine" in str(error.value)
        assert len(str(error.value).splitlines()) <= 3


def test_a_sweep_file_as_editors_leave_it(tmp_path: Path) -> None:
    """A byte order mark hides no question; a comma string is its values; .yml and a folder are named."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "mine.yaml").write_text('# Does it help?\ngrid: {expert: "1,2,4", data.exclude: "a,b"}\n', "utf-8-sig")
    (folder / "short.yml").write_text("grid: {k: [1, 2]}\n")
    (folder / "folder.yaml").mkdir()
    composer = Composer(tmp_path)
    sweep = load_sweep_file(composer, "mine")
    assert "Does it help?" == sweep.question
    assert [(1, "a,b"), (2, "a,b"), (4, "a,b")] == [tuple(each.values()) for each in sweep.blocks[0].settings()]
    with pytest.raises(ConfigError, match=r"rename .*short\.yml"):
        load_sweep_file(composer, "short")
    for name in ("folder", "x" * 300):
        with pytest.raises(ConfigError, match="no sweep"):
            load_sweep_file(composer, name)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "short.yml").write_text("name: gpt\n")
    with pytest.raises(ConfigError, match=r"rename .*short\.yml"):
        load_config(["model=short"], config_dir=tmp_path)


def test_what_is_quoted_is_only_what_needs_it(tmp_path: Path) -> None:
    """The text of a file stays as it is but for the numbers of text settings."""
    file = tmp_path / "a.yaml"
    text = "name: text # 007\npath: {}\nlog: {{optim.lr: {{low: 1, log: true}}}}\nother: 0x10\n"
    file.write_text(text.format("2024_01"))
    assert text.format("'2024_01'") == read_yaml_text(file, is_text, "data")
