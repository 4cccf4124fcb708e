"""The script that checks a change leaves its machine as it was, unless that is CI's; the workflows run what exists."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# Where the script makes an environment, its programs do nothing.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
for name in python pip pytest ruff lint-imports twine moe moe-cli; do ln -sf "$FAKE/true" "$3/bin/$name"; done
ln -sf "$FAKE/mypy" "$3/bin/mypy"
"""
FAKES = {
    "python3": PYTHON,
    "apt-get": '#!/bin/sh\necho "$*" >> "$FAKE/apt-get.log"\n',
    "id": "#!/bin/sh\necho 0\n",
    "true": "#!/bin/sh\n",
    "mypy": '#!/bin/sh\necho "types checked"\nexit "${TYPE_ERRORS:-0}"\n',
    "tar": '#!/bin/sh\nmkdir "$FAKE/scratch/moe_cli-0"\n',
    "mktemp": '#!/bin/sh\nmkdir -p "$FAKE/scratch/dist" && touch "$FAKE/scratch/dist/moe.whl" && echo "$FAKE/scratch"\n',
}
TOOLS = ("bash", "cat", "dirname", "grep", "mkdir", "ln", "rm", "sh", "tail", "touch")


def run_ci(folder: Path, exit_code: int = 0, **environment: str) -> tuple[str, str]:
    """Runs .ci/run as root without Slurm, Chromium and zsh; returns its output and the log of apt-get."""
    fake = folder / "fake"
    fake.mkdir()
    for name, text in FAKES.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    for name in TOOLS:
        (fake / name).symlink_to(next(path for each in os.get_exec_path() if (path := Path(each) / name).exists()))
    (folder / ".ci").mkdir()
    (folder / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (folder / "README.md").write_text((ROOT / "README.md").read_text())
    variables = {"PATH": str(fake), "FAKE": str(fake), **environment}
    done = subprocess.run(
        [fake / "bash", ".ci/run"], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert (exit_code, "") == (done.returncode, done.stderr)
    log = fake / "apt-get.log"
    return done.stdout, log.read_text() if log.exists() else ""


@pytest.mark.parametrize("environment", [{}, {"CI": ""}, {"CI": "false"}])
def test_system_packages_are_installed_on_ci_only(tmp_path: Path, environment: dict[str, str]) -> None:
    """Without CI=true no system package is installed, not even by root, and the script says which ones it skips."""
    printed, installed = run_ci(tmp_path, **environment)
    assert "" == installed
    skipped = [line for line in printed.splitlines() if line.startswith("skipped")]
    assert [
        "skipped, because CI=true is not set: apt-get install slurmctld slurmd slurm-client munge",
        "skipped, because CI=true is not set: apt-get install --no-install-recommends chromium",
        "skipped, because CI=true is not set: apt-get install zsh fish",
    ] == skipped
    assert printed.endswith("== all good\n")


def test_ci_installs_system_packages(tmp_path: Path) -> None:
    """With CI=true, root installs Slurm, Chromium and two shells."""
    printed, installed = run_ci(tmp_path, CI="true")
    assert "skipped, because" not in printed
    assert [
        "update -qq",
        "install -qq -y slurmctld slurmd slurm-client munge",
        "update -qq",
        "install -qq -y --no-install-recommends chromium",
        "update -qq",
        "install -qq -y zsh fish",
    ] == installed.splitlines()


def test_a_type_error_fails_after_the_slow_tests(tmp_path: Path) -> None:
    """Types are checked in the background: their output is printed, and an error ends the script."""
    printed, _ = run_ci(tmp_path, exit_code=1, TYPE_ERRORS="1")
    assert printed.endswith("== lint, types, import contracts\ntypes checked\n")


WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(".github/workflows/*.yml"))}
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def steps(workflow: str) -> list[dict[str, Any]]:
    """Returns the steps of all jobs of a workflow."""
    jobs = yaml.safe_load(WORKFLOWS[workflow])["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actions_are_pinned(workflow: str) -> None:
    """Every action is pinned by the hash of a commit, with its version as a comment, and rights are limited."""
    used = re.findall(r"uses: (.*)", WORKFLOWS[workflow])
    assert used
    assert [] == [action for action in used if not PINNED.fullmatch(action)]
    assert {"contents": "read"} == yaml.safe_load(WORKFLOWS[workflow])["permissions"]


def test_workflows_run_what_exists() -> None:
    """The workflows test the supported versions on both systems, and run files of this repository that exist."""
    quick = yaml.safe_load(WORKFLOWS["test.yml"])["jobs"]["quick"]["strategy"]["matrix"]
    assert ["ubuntu-latest", "macos-latest"] == quick["system"]
    assert ["3.11", "3.12", "3.13", "3.14"] == quick["python"]
    commands = "\n".join(step.get("run", "") for name in WORKFLOWS for step in steps(name))
    files = set(re.findall(r"(?<!\S)(?:\.ci|docs|moe_cli)/[\w./]+|\w+\.(?:md|txt)\b", commands))
    assert {".ci/run", "README.md", "constraints.txt", "docs/build_site.py", "moe_cli/__init__.py"} == files
    assert [] == [name for name in files if not (ROOT / name).is_file()]
    script = (ROOT / ".ci/run").read_text()
    for shared in (
        r"grep -m1 -E '^python3 -m venv .*\[test\]' README.md",
        "twine check --strict",
        "docs/build_site.py",
    ):
        assert shared in commands
        assert shared in script


@pytest.mark.parametrize(("tag", "code"), [("v{}", 0), ("v9.9.9", 1)])
def test_release_needs_the_version_as_tag(tag: str, code: int) -> None:
    """The release stops unless its tag is the version of the package."""
    import moe_cli

    (check,) = (step["run"] for step in steps("release.yml") if "GITHUB_REF_NAME" in step.get("run", ""))
    variables = {"PATH": os.environ["PATH"], "GITHUB_REF_NAME": tag.format(moe_cli.__version__)}
    assert code == subprocess.run(["bash", "-c", check], cwd=ROOT, env=variables, check=False).returncode
