"""The script that checks a change leaves the machine that it runs on as it was, unless the machine says that it is CI's."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where the script makes an environment, its programs do nothing.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
for name in python pip pytest ruff mypy lint-imports moe; do ln -sf "$FAKE/true" "$3/bin/$name"; done
"""
FAKES = {
    "python3": PYTHON,
    "apt-get": '#!/bin/sh\necho "$*" >> "$FAKE/apt-get.log"\n',
    "id": "#!/bin/sh\necho 0\n",
    "true": "#!/bin/sh\n",
    "mktemp": '#!/bin/sh\nmkdir -p "$FAKE/scratch/dist" && touch "$FAKE/scratch/dist/moe.whl" && echo "$FAKE/scratch"\n',
}
TOOLS = ("bash", "dirname", "grep", "mkdir", "ln", "rm", "touch", "sh")


def run_ci(folder: Path, **environment: str) -> tuple[str, str]:
    """Runs .ci/run as root without Slurm and Chromium; returns its output and the log of apt-get."""
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
    assert (0, "") == (done.returncode, done.stderr)
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
    ] == skipped
    assert printed.endswith("== all good\n")


def test_ci_installs_system_packages(tmp_path: Path) -> None:
    """With CI=true, root installs Slurm and Chromium."""
    printed, installed = run_ci(tmp_path, CI="true")
    assert "skipped, because" not in printed
    assert [
        "update -qq",
        "install -qq -y slurmctld slurmd slurm-client munge",
        "update -qq",
        "install -qq -y --no-install-recommends chromium",
    ] == installed.splitlines()
