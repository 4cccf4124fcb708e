"""The wheel holds all that the program needs, and works from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_conf_and_runs_elsewhere(tmp_path: Path) -> None:
    """Every file of conf/ is in the built wheel, tests are not, and the unpacked wheel resolves a configuration."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    wanted = {f"moe_cli/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
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


def test_versions_agree() -> None:
    """The command line tells the version that the package has."""
    import moe_cli

    printed = subprocess.run([sys.executable, "-m", "moe_cli", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"moe {moe_cli.__version__}"
