"""README and docs/ are true: their commands run, their Python prints what they show, and their links lead somewhere.

A page is one test, in a folder of its own. Comments `<!-- test: ... -->` in the page hold for the next block:
- `run` or `sweep`: the folder has two finished runs, or a finished sweep.
- `slow`: the block is one of the slow tests.
- `exit=2`: the exit code to expect.
- `skip`: another test runs the block.
- `json`: the table below has the keys that the command prints; another test runs it.
- `output=any`: what Python prints is not compared.
- `-model.num_heads`: takes a word away from those that make a training tiny.
- Every other word is added to each train, sweep, sample and bench command, in place of one with the same key.
"""

import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from moe_cli.bench.optimizer import OptimizerBenchmark, OptimizerBenchResult
from moe_cli.bench.spread import Spread
from moe_cli.bench.step import StepBenchmark, StepBenchResult, step_to_dicts
from moe_cli.bench.sweep import SweepBenchmark, SweepRound
from moe_cli.cli.app import app
from moe_cli.config.compose import GROUPS, Composer, load_config
from moe_cli.config.settings import read_conf
from moe_cli.config.yaml_file import format_yaml
from moe_cli.files.writing import hold
from moe_cli.report.scaling.bet_scores import Outcome, bets_record
from moe_cli.report.scaling.bets import Bet
from moe_cli.testing import check_router
from tests.config.test_compose import write
from tests.report.folders import complete
from tests.report.scaling.test_command import planted, scaling
from tests.runner import CliRunner

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT).with_suffix("")): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
TEXT = "the router sends each token to two experts and the gate learns from both "
TINY = [
    *("model.d_model=16", "model.d_ff=32", "model.num_layers=2", "model.num_heads=2", "model.context_length=16"),
    *("train.steps=2", "train.batch_size=4", "train.log_every=2", "train.eval_every=1", "train.threads=1"),
    *("data=text", "data.path=notes.txt"),
]
# Words cannot be added to Python: there the default model is this small, and the default data have a tenth of the text to
# evaluate.
SMALL_MODEL = {"num_layers": 2, "d_model": 16, "d_ff": 32, "context_length": 16}
SMALL_DATA = {"defaults": ["_text", "_self_"], "name": "python", "val_fraction": 0.002}
# What prepares the folder of a page.
COMMANDS = {
    "run": ("moe train expert=1", "moe train expert=8"),
    "sweep": ("moe sweep sparsity expert=1,8 k=2 --seeds 2",),
}
BLOCK = re.compile(
    r"<!-- test: (?P<hint>.*?) -->|^```(?P<kind>\w+)\n(?P<code>.*?)^```(?:\n\n```text\n(?P<output>.*?)^```)?",
    re.S | re.M,
)


@dataclass(frozen=True)
class Block:
    """A console or Python block of a page, with the words of the hints above it."""

    kind: str
    code: str
    output: str | None
    hints: tuple[str, ...]


def read_blocks(text: str) -> list[Block]:
    """The blocks of a page that can be run."""
    blocks, hints = [], ()
    for match in BLOCK.finditer(text):
        if match["hint"]:
            hints = (*hints, *shlex.split(match["hint"]))
        else:
            if match["kind"] in ("console", "python") and not {"skip", "json"} & set(hints):
                blocks.append(Block(match["kind"], match["code"], match["output"], hints))
            hints = ()
    return blocks


def key_of(word: str) -> str:
    return word.partition("=")[0]


def replaced(words: list[str], others: list[str]) -> list[str]:
    """The words, with those that set the same key as another replaced by it, and then the rest: the last option wins."""
    new = {key_of(word): word for word in others}
    return [word if word.startswith("-") else new.pop(key_of(word), word) for word in words] + list(new.values())


def tiny_command(command: str, hints: tuple[str, ...]) -> list[str]:
    """The words of `moe ...` as it is run: the page's own, made small by the defaults here and by the page's hints."""
    words = shlex.split(command, comments=True)[1:]
    if words[0] not in ("train", "sweep", "bench", "sample"):
        return words
    added = [hint for hint in hints if not hint.startswith("-") or hint.startswith("--")]
    if words[0] in ("train", "sweep") and "--resume" not in words:
        removed = {hint[1:] for hint in hints if re.match(r"-\w", hint)} | {key_of(word) for word in words}
        removed |= {"data.path"} & removed or ({"data.path"} if "data" in removed else set())
        words += [word for word in TINY if key_of(word) not in removed]
    return replaced(words, added)


def run_block(block: Block, space: dict[str, Any]) -> None:
    """Runs each command, or the Python code, and compares exit codes and what is printed."""
    flags = {hint for hint in block.hints if re.match(r"run$|sweep$|slow$|exit=|output=", hint)}
    if block.kind == "python":
        with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("default")  # those of other libraries are no error here
            exec(block.code, space)  # noqa: S102  (our own file)
        if block.output is not None and "output=any" not in flags:
            assert block.output == printed.getvalue()
        return
    expected = next((int(flag[5:]) for flag in flags if flag.startswith("exit=")), 0)
    for line in block.code.splitlines():
        if line.startswith("$ moe "):
            words = tiny_command(line[2:], tuple(hint for hint in block.hints if hint not in flags))
            result = CliRunner().invoke(app, words)
            assert result.exit_code == expected, f"{line}\n{words}\n{result.output}\n{result.exception!r}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a folder with a text, and in it a finished run or sweep; each once for the pages of all processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(what: str, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
        folder.mkdir()
        (folder / "notes.txt").write_text(TEXT * 60)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for command in COMMANDS.get(what, ()):
                result = CliRunner().invoke(app, tiny_command(command, ()))
                assert result.exit_code == 0, result.output

    def prepare(what: str) -> Path:
        folder, made = shared / f"page-{what}", shared / f"page-{what}.made"
        with hold(shared / f"page-{what}.lock"):
            if not made.exists():
                make(what, folder)
                made.touch()
        return folder

    return prepare


QUICK_PAGES = ("README", "docs/howto/train", "docs/reference/python")


def cases() -> list[Any]:
    """Every page that has a block to run; the slow blocks of a page are a case of their own."""
    found = []
    for page, text in PAGES.items():
        blocks = read_blocks(text)
        for slow in (False, True):
            if any(("slow" in block.hints) == slow for block in blocks):
                marks = [] if page in QUICK_PAGES and not slow else [pytest.mark.slow]
                found.append(pytest.param(page, slow, id=f"{page}{', slow' if slow else ''}", marks=marks))
    return found


@pytest.mark.parametrize(("page", "slow"), cases())
def test_page(
    page: str, slow: bool, prepared: Any, shared_fork_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands and the Python of a page run in their order; only model, budget and evaluation are made small."""
    blocks = read_blocks(PAGES[page])
    what = next((hint for block in blocks for hint in block.hints if hint in ("run", "sweep")), "text")
    shutil.copytree(prepared(what), tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    if slow and any(block.kind == "python" for block in blocks):
        small = {"model__gpt": read_conf("model/gpt") | SMALL_MODEL, "data__python": SMALL_DATA}
        write(tmp_path / "conf", **{name: format_yaml(values) for name, values in small.items()})
    space: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng():
        try:
            for block in blocks:
                if ("slow" in block.hints) == slow:
                    run_block(block, space)
        finally:
            torch.set_default_dtype(torch.float32)


JSON_BLOCK = re.compile(r"<!-- test: json -->\n```console\n((?:\$ moe .*\n)+)```\n\n(?:[^|#<].*\n+)*?((?:\|.*\n)+)")
JSON_TABLE = re.compile(r"<!-- test: keys (\w+) -->\n\n(?:[^|#<].*\n+)*?((?:\|.*\n)+)")


def json_keys(value: Any, path: str = "") -> set[str]:
    """The paths of all keys of a JSON value; entries of a list share theirs."""
    if isinstance(value, list):
        return set().union(*(json_keys(each, f"{path}[]") for each in value))
    if not isinstance(value, dict):
        return set()
    paths = {f"{path}.{key}".lstrip(".") for key in value}
    return paths.union(*(json_keys(each, f"{path}.{key}".lstrip(".")) for key, each in value.items()))


def test_json_is_documented(
    prepared: Any, shared_fork_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key that a command prints with --json is in its table, or below a key that is, and no other key is."""
    shutil.copytree(prepared("sweep"), tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    blocks = JSON_BLOCK.findall(PAGES["docs/reference/json"])
    assert PAGES["docs/reference/json"].count("test: json") == len(blocks)
    for commands, rows in blocks:
        for command in commands.splitlines():
            result = CliRunner().invoke(app, tiny_command(command[2:], ()))
            assert result.exit_code == 0, f"{command}\n{result.output}"
        check_documented(commands, rows, json.loads(result.stdout))


def check_documented(name: str, rows: str, value: Any) -> None:
    """Compares the keys of a table with those of a value; what is below a documented key needs no row."""
    documented = {key for row in rows.splitlines()[2:] for key in re.findall(r"`([^`]+)`", row.split("|")[1])}
    printed = json_keys(value)
    whole = {key for key in documented if not any(re.match(rf"{re.escape(key)}[.[]", other) for other in documented)}
    below = {key for key in printed if any(re.match(rf"{re.escape(parent)}[.[]", key) for parent in whole)}
    above = {key for key in printed if any(re.match(rf"{re.escape(key)}[.[]", other) for other in documented)}
    assert (name, sorted(documented)) == (name, sorted(printed - below - above))


def test_json_of_bench_step_is_documented() -> None:
    """The keys of a result of `moe bench step --json` are those of its table."""
    result = StepBenchResult("moe", 1, Spread(2.0, 1.0, 3.0), Spread(1.0, 1.0, 1.0))
    benchmark = StepBenchmark(load_config([]).config, "cpu", 1, 3, "moe", [result], {})
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("step", rows["step"], step_to_dicts(benchmark))


def test_json_of_bench_optimizer_is_documented() -> None:
    """The keys of a result of `moe bench optimizer --json` are those of its table."""
    result = OptimizerBenchResult(8, 2, 1, *[Spread(1.0, 1.0, 1.0)] * 4)
    benchmark = OptimizerBenchmark(load_config([]).config, "cpu", 1, 3, [result])
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("optimizer", rows["optimizer"], benchmark.to_dicts())


def test_json_of_bench_sweep_is_documented() -> None:
    """The keys of `moe bench sweep --json` are those of its table."""
    benchmark = SweepBenchmark(["expert=8"], 2, 1, [SweepRound(3.0, 1.0, 2.0)])
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("sweep", rows["sweep"], benchmark.to_dict())


def test_json_of_pivot_is_documented(tmp_path: Path) -> None:
    """The keys of `moe report --pivot --format json` are those of its table."""
    for expert, k in ((4, 1), (8, 1), (8, 2)):
        complete(tmp_path, 1.8, expert=expert, k=k)
    result = CliRunner().invoke(app, ["report", "--pivot", "expert:k", "--format", "json", "--outputs", str(tmp_path)])
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("pivot", rows["pivot"], json.loads(result.stdout))


def test_json_of_bets_is_documented() -> None:
    """The keys of `moe scaling --bets --json` are those of its table, and those of a bet's file are among them."""
    values = ("d", "s", 1.0, "v", "t", "val_bpb", (0,), 2.0, 1.9, 2.1, 2.1, 0.8, "tokens", 1.0, 4.0, "m", (), None, ())
    record = bets_record([Outcome(Bet(*values, {}, {}), (0,), 2.0, True, 2.1, True)])
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("bets", rows["bets"], record)
    left_out = {entry.name for entry in fields(Bet)} - record["bets"][0].keys()
    assert {"configuration", "baseline"} == left_out


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_page_of_bets_shows_the_stored_ones(number: int, tmp_path: Path) -> None:
    """Each stored bet is a row with its outcome, and the record stands below; without bets the page says so."""
    values = (
        "d",
        "s",
        1.0,
        "v",
        "k=1|2",
        "val_bpb",
        (0,),
        2.0,
        1.9,
        2.1,
        2.1,
        0.8,
        "tokens",
        1.0,
        4.0,
        "m",
        (),
        None,
        (),
    )
    bets = [Outcome(Bet(*values, {}, {}), (0,), 2.0, True, 2.1, True)] * number
    (tmp_path / "bets.json").write_text(json.dumps(bets_record(bets)))
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    generate["bets_page"].__globals__["BETS_RECORD"] = str(tmp_path / "bets.json")
    text = generate["bets_page"]()
    assert number == text.count("| 1.900 to 2.100 | 2.000 | yes | 0.80 | yes |")
    assert ("No bet is recorded there yet." in text) == (number == 0)
    assert (f"{number} lie in their 80 % interval." in text) == (number > 0)


@pytest.mark.slow
def test_json_of_scaling_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of `moe scaling --json` are those of its table, here with runs of one budget."""
    monkeypatch.setattr("tests.report.scaling.test_command.STEPS", (400,))
    planted(tmp_path)
    result = scaling(tmp_path, "--law", "clark", "--json")
    assert result.exit_code == 0, result.output
    rows = dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))
    check_documented("scaling", rows["scaling"], json.loads(result.stdout))


@pytest.mark.slow
def test_tour(prepared: Any, shared_fork_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tour of the Python API runs from its first cell to its last; only its settings are made small."""
    shutil.copytree(prepared("text"), tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    script = (ROOT / "docs/tutorial/tour.py").read_text(encoding="utf-8")
    small, replaced = re.subn(r"^SETTINGS = .*$", f"SETTINGS = {TINY!r}", script, flags=re.M)
    assert 1 == replaced
    with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("default")  # those of other libraries are no error here
        exec(compile(small, "tour.py", "exec"), {"__name__": "tour"})  # noqa: S102  (our own file)
    assert "bits/byte" in printed.getvalue()
    assert "moe sweep" in printed.getvalue()


def test_hints_are_applied() -> None:
    """Hints replace words of the same key, add others, and take away words that make a training tiny."""
    words = tiny_command(
        "moe sweep model=lstm train.steps=300  # a note", ("-model.num_heads", "train.steps=2", "--seeds=2")
    )
    assert words[:3] == ["sweep", "model=lstm", "train.steps=2"]
    assert words[-1] == "--seeds=2"
    assert not [word for word in words if word.startswith("model.num_heads")]
    assert tiny_command("moe report", ("--seeds=2",)) == ["report"]


def test_every_command_is_run() -> None:
    """A page runs each command that `moe --help` lists."""
    run = {shlex.split(line)[2] for text in PAGES.values() for line in re.findall(r"^\$ moe .*", text, flags=re.M)}
    assert run == set(get_command(app).commands)


def test_links_and_pictures_exist() -> None:
    """Every relative link of every page leads to a file of the project, and every anchor to a heading."""
    broken = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")]:
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


def test_every_page_is_linked() -> None:
    """The index of docs/ links to every page of docs/."""
    index = ROOT / "docs/README.md"
    links = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", index.read_text())}
    assert set(ROOT.glob("docs/**/*.md")) - {index} <= links


def test_the_site_has_every_page(tmp_path: Path) -> None:
    """The pages of the site link to each other as on a code host, and its navigation lists each page once."""
    runpy.run_path(str(ROOT / "docs/build_site.py"))["stage"](tmp_path)
    pages = [path.relative_to(tmp_path / "pages").as_posix() for path in tmp_path.glob("pages/**/*.md")]
    settings = tomllib.loads((tmp_path / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = re.findall(r"[\w/.-]+\.md", str(settings["nav"]))
    assert sorted(pages) == sorted([*listed, "documentation.md"])
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)\s#]+)", (tmp_path / "pages" / page).read_text(encoding="utf-8")):
            assert (tmp_path / "pages" / page).parent.joinpath(target).is_file(), f"{page}: {target}"


def test_every_choice_is_documented() -> None:
    """Every file of conf/ begins with a line on what it is for."""
    composer = Composer()
    for group in GROUPS:
        for choice in composer.choices(group):
            assert composer.describe(group, choice), f"{group}/{choice}"


def test_generated_pages_are_current() -> None:
    """The reference is what docs/generate.py writes: after a change of the program, run `python docs/generate.py`."""
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    for name, text in generate["pages"]().items():
        assert (ROOT / "docs/reference" / name).read_text(encoding="utf-8") == text, name


@pytest.mark.slow
def test_the_routers_ten_lines_are_enough(tmp_path: Path) -> None:
    """A copy of the package with the page's lines in it trains and evaluates with the new router."""
    snippet = re.search(r"```python\n(.*?)```", PAGES["docs/howto/add-a-router"], flags=re.S)
    assert snippet
    parts = re.split(r"^# (moe_cli/\S+\.py): .*\n", snippet[1], flags=re.M)
    code = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name in ("moe_cli", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    conf = re.search(r"```yaml\n(.*?)```", PAGES["docs/howto/add-a-router"], flags=re.S)
    assert conf
    (tmp_path / "conf/router/greedy.yaml").write_text(conf[1])
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


EXAMPLE = ROOT / "docs/examples/moe-router-example"


def test_the_page_on_plug_ins_shows_the_example() -> None:
    """The page's own file has the router of the example package, and its entry point."""
    page = PAGES["docs/howto/write-a-plugin"]
    router = (EXAMPLE / "moe_router_example/router.py").read_text(encoding="utf-8")
    assert router.partition("    def route(")[2] in page
    entry_point = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8").partition("[project.entry-points")[2]
    assert f"[project.entry-points{entry_point}" in page


def test_the_file_of_the_page_keeps_its_promises(tmp_path: Path) -> None:
    """The code of `mine.py` runs as it stands, and passes the kit."""
    block = re.search(r"```python\n(.*?)```", PAGES["docs/howto/write-a-plugin"], flags=re.S)
    assert block
    (tmp_path / "mine.py").write_text(block[1], encoding="utf-8")
    check_router(runpy.run_path(str(tmp_path / "mine.py"))["plugin"])


@pytest.mark.slow
def test_the_example_package_is_built_installed_and_used(tmp_path: Path) -> None:
    """`pip install` into an empty folder; then training with its router, its own test, and the report without it."""
    site = tmp_path / "site"
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", *pip, "--target", str(site), str(EXAMPLE)], check=True)
    (tmp_path / "notes.txt").write_text(TEXT * 60)
    paths = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    train = [sys.executable, "-m", "moe_cli", "train", "router=sharp", "router.sharpness=3", *TINY]
    done = subprocess.run(train, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "sharp, balance switch" in done.stdout
    meta = json.loads(next((tmp_path / "outputs/runs").glob("*/meta.json")).read_text())
    assert {"router": {"sharp": "moe-router-example 0.1.0"}} == meta["plugins"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests")]
    done = subprocess.run(tests, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=100, check=False)
    assert "2 passed" in done.stdout, done.stdout
    report = [sys.executable, "-m", "moe_cli", "report"]
    without = {**paths, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(report, cwd=tmp_path, env=without, capture_output=True, text=True, timeout=100, check=False)
    assert "router sharp" in done.stdout, done.stderr
