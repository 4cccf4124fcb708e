"""README and docs/ tell the truth: their commands run and their links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe_cli.cli.app import app
from moe_cli.config.compose import GROUPS, Composer
from tests.cli.conftest import TINY

ROOT = Path(__file__).parents[1]
# In the order of their commands: later pages use the runs of earlier ones.
PAGES = {
    path: (ROOT / f"{path}.md").read_text(encoding="utf-8")
    for path in (
        "README",
        *(f"docs/howto/{page}" for page in ("train", "data")),
        "docs/explanation/models",
        *(f"docs/howto/{page}" for page in ("several-processes", "loggers", "plan", "evaluate", "explain", "sweep")),
        *(f"docs/howto/{page}" for page in ("search", "clusters", "report", "bench")),
        *(f"docs/results/{page}" for page in ("sparsity", "models", "routers")),
        *(f"docs/explanation/{page}" for page in ("routers", "balancing", "concepts")),
        *(f"docs/reference/{page}" for page in ("metrics", "python")),
        *(f"docs/howto/{page}" for page in ("runs", "add-a-router")),
        "docs/tutorial/moe-from-scratch",
        "docs/benchmarks",
    )
}
# Processes that each import torch anew, or a logger's library: of the slow tests.
STARTS_PROCESSES = ("launch.num_processes", "mlflow")
BENCH = ("--tokens=16", "--d-model=16", "--d-expert=8")  # a later option holds
TEXT = "the router sends each token to two experts and the gate learns from both "


# What a model has not of the settings of TINY; and those that learn from no text.
NOT_OF = {"lstm": ("model.num_heads",), "vit": ("model.context_length",),
          "mmoe": ("model.context_length", "model.num_heads")}  # fmt: skip
OWN_DATA = ("vit", "images", "mmoe", "ratings")


def console_commands() -> list[str]:
    """Every `$ moe ...` line of the console blocks, in order, without trailing comments."""
    blocks = [block for text in PAGES.values() for block in re.findall(r"```console\n(.*?)```", text, flags=re.S)]
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ moe ")]
    return ["moe train", *(line.split("  #")[0].strip() for line in lines)]  # the quick start trains first


def shortened(command: str) -> list[str]:
    """The command's words, with settings that make it take an instant; what the page shows stays as it is."""
    words = shlex.split(command)[1:]
    own = {word.split("=")[0] for word in words}
    tiny = [
        word.replace("steps=6", "steps=2") for word in (*TINY, "train.eval_every=1") if word.split("=")[0] not in own
    ]
    if any(word.startswith(("train.tokens=", "train.minutes=", "train.flops=")) for word in words):
        tiny = [word for word in tiny if not word.startswith("train.steps")]
    words = ["train.minutes=0.005" if word.startswith("train.minutes=") else word for word in words]
    words = ["train.steps=2" if word.startswith("train.steps=") else word for word in words]
    if "paper/shazeer_table7" in words:
        words = [*words, "expert=4,8"]
    if words[:2] == ["sweep", "router"]:
        words.append("k=2")  # half the points
    words = ["--trials=2" if word.startswith("--trials=") else word for word in words]
    if "--seeds" in words:
        words[words.index("--seeds") + 1] = "2"
    if words[0] == "bench":
        sizes = [word for word in tiny if word.startswith("model.")] if "step" in words else BENCH
        return [*words, *sizes, "--seconds=0"]
    if words[0] in ("train", "sweep") and "--resume" not in words:
        chosen = {word.partition("=")[2] for word in words if word.startswith(("model=", "task="))}
        if "mmoe" in chosen:
            tiny.append("data.num_pairs=600")
        chosen |= {"lstm"} if " paper/shazeer" in " ".join(words) else set()
        left = [name for family, names in NOT_OF.items() if family in chosen for name in names]
        tiny = [word for word in tiny if word.split("=")[0] not in left]
        own_data = any(word.startswith("data=") for word in words) or chosen & set(OWN_DATA)
        data = [] if own_data else ["data=text", "data.path=notes.txt"]
        words = [words[0], *words[1:], *data, *tiny, *(["--jobs=2"] if words[0] == "sweep" else [])]
    return words


@pytest.mark.parametrize(
    "slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["most", "starting processes"]
)
def test_every_command_runs(shared_nest: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """In the order of the pages, in one folder, as a reader would; only model and budget are made small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    (tmp_path / "notes.txt").write_text(TEXT * 60)
    commands = [line for line in console_commands() if slow == any(word in line for word in STARTS_PROCESSES)]
    assert len(commands) >= (4 if slow else 70)
    for command in commands:
        result = CliRunner().invoke(app, shortened(command))
        expected = 2 if "exprt" in command else 0
        assert result.exit_code == expected, f"{command}\n{result.output}\n{result.exception!r}"


def test_every_command_has_help_with_an_example() -> None:
    """`moe COMMAND --help` shows an example line, and a page mentions the command."""
    listed = re.findall(r"^  (\w+)  ", CliRunner().invoke(app, ["--help"]).stdout.split("Commands:")[1], flags=re.M)
    assert listed == [
        "train",
        "eval",
        "sample",
        "explain",
        "sweep",
        "report",
        "recommend",
        "scaling",
        "plan",
        "config",
        "runs",
        "bench",
    ]
    for name in listed:
        assert f"Example: moe {name}" in " ".join(CliRunner().invoke(app, [name, "--help"]).stdout.split())
        assert any(f"moe {name}" in text for text in PAGES.values())


def test_links_and_pictures_exist() -> None:
    """Every relative link of every page leads to a file of the project, and every anchor to a heading."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")]
    assert {ROOT / f"{path}.md" for path in PAGES} <= set(pages)
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            if not name.startswith("http") and (not linked.exists() or (anchor and anchor not in headings(linked))):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors that a code host gives to the headings of a page."""
    lines = [line.lstrip("# ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_page_is_listed() -> None:
    """A page of docs/ whose commands no test runs fails here."""
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("docs/**/*.md")} == set(PAGES) - {
        "README"
    }


def test_every_choice_is_documented() -> None:
    """Every file of conf/ begins with a line on what it is for."""
    composer = Composer()
    for group in GROUPS:
        for choice in composer.choices(group):
            assert composer.describe(group, choice), f"{group}/{choice}"


@pytest.mark.parametrize("metric", ["max_violation", "routing_entropy", "mean_routing_entropy", "dropped_fraction",
                                    "dead_experts", "load_cv", "token_specialisation", "router_saturation", "domain_specialisation", "val_loss",
                                    "val_bpb", "flops_per_token", "model_flops_per_token", "optimizer_flops_per_step", "null_fraction", "active_params"])  # fmt: skip
def test_metrics_table_is_complete(metric: str) -> None:
    """Every measure of a summary stands in the table of metrics."""
    assert f"| `{metric}` |" in PAGES["docs/reference/metrics"]


@pytest.mark.slow
def test_the_routers_ten_lines_are_enough(tmp_path: Path) -> None:
    """A copy of the package with the page's lines in it trains and evaluates with the new router."""
    snippet = re.search(r"```python\n(.*?)```", PAGES["docs/howto/add-a-router"], flags=re.S)
    assert snippet
    parts = re.split(r"^# (moe_cli/\S+\.py): .*\n", snippet[1], flags=re.M)
    code = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name in ("moe_cli", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "conf/router/greedy.yaml").write_text("# the most likely ones\nname: greedy\n")
    config, router, registry = (tmp_path / path for path in code)
    head, union = config.read_text().split("RouterConfig = (\n")
    config.write_text(f"{head}{code['moe_cli/config/routers.py']}RouterConfig = (\n    GreedyConfig |{union}")
    router.write_text(router.read_text() + "\n\n" + code["moe_cli/moe/routers/token_choice.py"])
    imports = (
        "from moe_cli.config.routers import GreedyConfig\nfrom moe_cli.moe.routers.token_choice import GreedyRouter\n"
    )
    registry.write_text(
        imports
        + registry.read_text().replace(
            "    TopKConfig: TopKRouter,", "    GreedyConfig: GreedyRouter,\n    TopKConfig: TopKRouter,"
        )
    )
    (tmp_path / "notes.txt").write_text(TEXT * 60)
    words = [sys.executable, "-m", "moe_cli", "train", "router=greedy", "data=text", "data.path=notes.txt", *TINY]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert "greedy, balance switch" in result.stdout
