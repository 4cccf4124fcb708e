"""The wheel holds all that the program needs, the source archive holds the repository, and the metadata are complete."""

import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_wheel_holds_conf_and_runs_elsewhere(tmp_path: Path) -> None:
    """Every file of conf/ and every task is in the built wheel, tests are not, and the unpacked wheel resolves a configuration."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    wanted = {"moe_cli/py.typed"}
    wanted |= {f"moe_cli/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "moe_cli").rglob("*.yaml")}
    assert "moe_cli/harness/tasks/moe_text.yaml" in wanted
    assert wanted <= names
    assert not any(name.startswith(("tests/", "conf/", "outputs/")) for name in names)
    (tmp_path / "elsewhere").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.argv = ['moe', 'config', 'expert=3']\n"
        "import moe_cli; assert 'site' in moe_cli.__file__; from moe_cli.cli.app import main; main()"
    )
    run = [sys.executable, "-c", code]
    printed = subprocess.run(run, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True)
    assert "\nexpert: 3\nk: 2\n" in printed.stdout


def test_source_archive_holds_the_repository(tmp_path: Path) -> None:
    """The source archive has the package, its tests, and every file that the tests read."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    patterns = ("moe_cli/**/*.py", "conf/**/*.yaml", "tests/**/*.py", "docs/**/*.md", ".github/**/*.*", ".ci/*")
    wanted = {
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()
    }
    wanted = {name for name in wanted if "__pycache__" not in name} | {"README.md", "LICENSE", "constraints.txt"}
    assert set() == wanted - names


@pytest.mark.parametrize("repository", ["", "https://example.org/moe"])
def test_readme_of_the_package_has_absolute_links(repository: str) -> None:
    """On a package index, links and pictures of the README are absolute, or absent when the repository is unknown."""
    hook = runpy.run_path(str(ROOT / ".ci/package_metadata.py"))
    text = hook["package_readme"]((ROOT / "README.md").read_text(encoding="utf-8"), repository, "1.2.3")
    assert [] == re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    assert bool(repository) == ("![" in text)
    assert bool(repository) == (f"({repository}/blob/v1.2.3/docs/README.md)" in text)
    assert bool(repository) == bool(hook["package_urls"](repository))


def test_metadata_are_complete() -> None:
    """The extra `all` has every optional library, both commands exist, and all tested versions are named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"all", "dev", "docs", "test"}
    assert [f"moe-cli[{','.join(sorted(extras))}]"] == project["optional-dependencies"]["all"]
    assert {"moe", "moe-cli"} == set(project["scripts"])
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(project["classifiers"])
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    named = {re.split(r"[\[<>=]", each)[0] for group in project["optional-dependencies"].values() for each in group}
    assert [] == sorted(name for name in named - {"moe-cli", "mlxtend"} if f"{name}==" not in pinned)


def test_versions_agree() -> None:
    """The command line tells the version that the package has."""
    import moe_cli

    printed = subprocess.run([sys.executable, "-m", "moe_cli", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"moe {moe_cli.__version__}"
