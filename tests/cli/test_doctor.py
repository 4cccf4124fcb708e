"""moe doctor: what it finds, and what it says of an installation that does not work."""

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from moe_cli.execution import doctor
from tests.cli.conftest import Moe

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Extras that bring no feature of the program.
OTHER_EXTRAS = {"all", "dev", "test", "docs"}


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=\[;]", requirement)[0].strip() for requirement in requirements}


def test_it_knows_every_extra_and_the_oldest_torch() -> None:
    """The extras, their packages, and the version of torch are those of pyproject.toml."""
    extras = {name: packages(content) for name, content in PYPROJECT["optional-dependencies"].items()}
    assert {name: extras[name] for name in extras.keys() - OTHER_EXTRAS} == {
        name: set(content) for name, content in doctor.EXTRAS.items()
    }
    assert doctor.EXTRAS.keys() == doctor.PURPOSES.keys()
    assert f"torch>={'.'.join(map(str, doctor.MIN_TORCH))}" in PYPROJECT["dependencies"]


def test_text_and_json_agree(moe: Moe, tmp_path: Path) -> None:
    """Both hold versions, folders, and for each feature the version of its first package or the command that installs it."""
    text, found = moe("doctor"), json.loads(moe("doctor", "--json").stdout)
    assert (0, []) == (text.exit_code, found["problems"])
    assert str(tmp_path / "outputs") == found["outputs"]
    for key in ("moe", "python", "package", "outputs"):
        assert found[key] in text.stdout
    assert f"{found['torch']['version']}   build: {found['torch']['build']}" in text.stdout
    rows = {line.split()[0]: line for line in text.stdout.splitlines() if line.startswith("  ")}
    assert [*rows] == [each["name"] for each in found["optional"]]
    for each in found["optional"]:
        missing = None in each["versions"].values()
        assert missing == rows[each["name"]].endswith(each["install"])
        assert missing or rows[each["name"]].endswith(" ".join(next(iter(each["versions"].items()))))
    assert [] == [*tmp_path.iterdir()], "it writes nothing"


def test_one_screen_holds_it(moe: Moe, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 26 lines of 80 columns, also where every optional package is missing."""
    monkeypatch.setattr("moe_cli.execution.doctor.package_version", lambda name: None)
    monkeypatch.setattr("moe_cli.execution.doctor.is_installed", lambda name: False)
    monkeypatch.setattr("moe_cli.execution.doctor.visible_gpus", lambda: ())
    monkeypatch.setenv("COLUMNS", "80")
    lines = moe("doctor").stdout.splitlines()
    assert len(lines) <= 26
    assert [] == [line for line in lines if len(line) > 80 and "/" not in line]
    assert len(doctor.EXTRAS) + len(doctor.READERS) == sum("missing: pip install " in line for line in lines)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "tempfile.TemporaryFile",
            errno.EACCES,
            "cannot write in {}: Permission denied. Choose another outputs folder",
        ),
        ("tempfile.TemporaryFile", errno.ENOSPC, "cannot write in {}: No space left on device. Free space"),
        ("fcntl.flock", errno.ENOTSUP, "the file system of {} has no locks, which runs need. Choose another folder"),
    ],
)
def test_a_folder_that_cannot_keep_runs_is_a_problem(
    moe: Moe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: int, message: str
) -> None:
    """The command fails, and the text says why and what to do."""

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(f"moe_cli.execution.doctor.{name}", fail)
    result = moe("doctor", "--json")
    problems = json.loads(result.stdout)["problems"]
    assert (1, 1) == (result.exit_code, len(problems))
    assert problems[0].startswith(message.format(tmp_path))


def test_slower_or_different_is_a_note(moe: Moe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores, and settings of ./conf: the command succeeds."""
    (tmp_path / "conf/router").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    result = moe("doctor", "--json")
    found = json.loads(result.stdout)
    assert (0, [], str(tmp_path / "conf")) == (result.exit_code, found["problems"], found["conf"])
    assert [
        f"OMP_NUM_THREADS=9999 is more than the {found['cores']} core{'s' * (found['cores'] > 1)} that this process "
        f"may use: training is slower. Use OMP_NUM_THREADS={found['cores']}",
        "the settings in ./conf come before the packaged ones. To ignore them: --config-dir none",
    ] == found["notes"]


def test_torch_is_the_only_large_import() -> None:
    """No optional package is imported to look for it; a torch that cannot be imported is a problem."""
    code = (
        "import sys; sys.modules['torch'] = None; from moe_cli.cli.app import app\n"
        "code = app(['doctor'], standalone_mode=False)\n"
        "print(code, *{'hydra', 'matplotlib', 'mlflow', 'optuna', 'pandas', 'ray', 'sklearn'} & sys.modules.keys())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "1" == printed.splitlines()[-1]
    assert "\nproblem: torch cannot be imported: " in printed
