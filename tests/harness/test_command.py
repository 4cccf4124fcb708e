"""The command of this package is lm-eval with a model and tasks more, and its errors are single lines."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from moe_cli.harness import task_data
from moe_cli.harness.__main__ import MODEL, NAME, TASKS, main, with_tasks

ROOT = Path(__file__).parents[2]


def test_the_packaged_tasks_are_known() -> None:
    """A folder of tasks that the user names replaces the packaged one, and other commands take none."""
    assert ["run", "--tasks", "a", "--include_path", str(TASKS)] == with_tasks(["run", "--tasks", "a"])
    for words in (["ls", "--include_path", "b"], ["run", "--include_path=b"], ["--help"], []):
        assert words == with_tasks(words)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without lm_eval the command says what to install."""
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert 2 == main()
    assert "error: lm_eval is not installed. Install it: pip install 'moe-cli[eval]'\n" == capsys.readouterr().err


def test_an_unknown_task_is_an_error_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """lm_eval raises ValueError with the names that it does not know."""

    def cli_evaluate() -> None:
        raise ValueError("Tasks not found: no_task")

    module = ModuleType("lm_eval.__main__")
    monkeypatch.setattr(module, "cli_evaluate", cli_evaluate, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", module)
    monkeypatch.setattr("moe_cli.harness.__main__.register", lambda: None)
    monkeypatch.setattr(sys, "argv", ["moe"])
    assert 2 == main()
    assert capsys.readouterr().err.startswith("error: Tasks not found: no_task. List them: python -m")


def test_the_entry_point_is_the_registered_model() -> None:
    """Releases of lm_eval that read entry points find the class that the command registers with others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {NAME: MODEL} == project["entry-points"]["lm_eval.models"]


class TaskLoader(yaml.SafeLoader):
    """Reads the name of a function, without importing it."""


def function_name(loader: yaml.SafeLoader, node: Any) -> str:
    return str(loader.construct_scalar(node))


TaskLoader.add_constructor("!function", function_name)


def test_each_task_has_data_and_is_documented() -> None:
    """A task is named like its file, its data are made in `task_data`, and the page names it."""
    page = (ROOT / "docs/howto/lm-evaluation-harness.md").read_text(encoding="utf-8")
    files = sorted(TASKS.glob("*.yaml"))
    assert 4 == len(files)
    for file in files:
        task = yaml.load(file.read_text(encoding="utf-8"), TaskLoader)
        module, _, function = task["custom_dataset"].rpartition(".")
        assert (file.stem, task_data.__name__) == (task["task"], module)
        assert callable(getattr(task_data, function))
        assert f"`{task['task']}`" in page
