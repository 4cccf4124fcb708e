"""moe explain: on the screen every token once, in its place, with the experts and weights of the Routing; errors in words."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.cli.explain_output import (
    PALETTE,
    SHOWN,
    UNEVEN,
    ExplainResult,
    explained_lines,
    format_token,
    format_weight,
    legend,
    metric_rows,
    sentences,
)
from moe_cli.config.model import BERTConfig
from moe_cli.config.routers import ExpertChoiceConfig, RandomConfig, ReluConfig, SoftConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EvalConfig
from moe_cli.metrics import BY_KEY, LOAD_DESCRIPTION, LOAD_RANGE
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.explain import Assignment, Explanation, LayerAssignments, TextToken
from tests.elided import Elided
from tests.runner import CliRunner
from tests.tiny import TINY, finish, tiny_config

ROOT = Path(__file__).parents[2]
TEXT = "ba né\t[bold]<b>\x1b[2J\\ 漢 \u202e\xa0."
Explain = Callable[..., Result]


@pytest.fixture
def explain(finished: Run) -> Explain:
    """`moe explain` of the run that tests share, as wide as COLUMNS says."""
    return lambda *words, columns=80, **more: CliRunner().invoke(
        app,
        ["explain", *map(str, words), "--outputs", str(finished.path.parents[1])],
        env={"COLUMNS": str(columns)},
        **more,
    )


def content(explain: Explain, *words: object) -> dict[str, Any]:
    result = explain("latest", *words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def blocks(screen: str) -> list[list[str]]:
    """The lines of each block of tokens: heads, then two for every choice."""
    found: list[list[str]] = []
    for part in screen.split("\n\n"):
        lines = part.splitlines()
        if len(lines) > 2 and lines[1].startswith("L") and set(lines[2]) <= set(" .0123456789"):
            found.append(lines)
    return found


def cells(line: str) -> list[str]:
    return line[2:].split()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_token_is_shown_once(explain: Explain, columns: int) -> None:
    """Whatever the width, heads in their order are the tokens, no line is wider, and nothing that a terminal obeys is left."""
    result = explain("latest", TEXT, columns=columns)
    assert result.exit_code == 0, result.output
    expected = [
        "b",
        "a",
        "␣",
        "n",
        "é",
        "+2",
        "\\t",
        *"[bold]<b>",
        "\\x1b",
        *"[2J",
        "\\\\",
        "␣",
        "漢",
        "+2",
        "+3",
        "␣",
        "\\u202e",
        "+2",
        "+3",
        "\\xa0",
        "+2",
        ".",
    ]
    assert expected == [head for block in blocks(result.stdout) for head in cells(block[0])]
    assert max(map(cell_len, result.stdout.splitlines())) <= columns
    assert result.stdout.replace("\n", "").isprintable()


def test_experts_and_weights_are_those_of_the_json(explain: Explain) -> None:
    """Row after row of a layer: the number of each token's expert, counted from 1, its weight, and an x where it was dropped."""
    words = (TEXT, "eval.capacity=0.5", "--layer", 2)
    layer = content(explain, *words)["layers"][0]
    found = blocks(explain("latest", *words).stdout)
    for row in range(2):
        choices = [each[row] for each in layer["choices"]]
        names = [f"{choice['expert'] + 1}{'' if choice['kept'] else 'x'}" for choice in choices]
        assert names == [cell for block in found for cell in cells(block[1 + 2 * row])]
        assert [format_weight(choice["weight"]) for choice in choices] == [
            cell for block in found for cell in cells(block[2 + 2 * row])
        ]
    assert any(not choice["kept"] for choices in layer["choices"] for choice in choices)
    assert 1 == layer["layer"]


def test_numbers_stand_below_their_token(explain: Explain) -> None:
    """The last character of a token, of its expert and of its weight are in one column."""
    for block in blocks(explain("latest", TEXT, columns=50).stdout):
        ends = [
            [found.end() for found in re.finditer(r"\S+", line.replace("漢", "漢.")) if found.start() > 1]
            for line in block
        ]
        assert all(ends[0] == each for each in ends), block


def test_json_says_all(explain: Explain) -> None:
    """Tokens whose texts are the text; for each layer as many choices as tokens, and weights that sum to one."""
    found = content(explain, TEXT)
    assert TEXT == "".join(token["text"] for token in found["tokens"])
    assert list(TEXT.encode()) == [token["id"] for token in found["tokens"]]
    assert (2, None, "bytes", 16) == (found["k"], found["capacity"], found["tokenizer"], found["window"])
    for layer in found["layers"]:
        assert len(TEXT.encode()) == len(layer["choices"])
        assert [1] * len(TEXT.encode()) == pytest.approx(
            [sum(each["weight"] for each in choices) for choices in layer["choices"]]
        )


def test_text_from_standard_input(explain: Explain) -> None:
    """`-` reads it, line ends included; what is no UTF-8 is refused."""
    result = explain("latest", "-", "--json", input="ba\n")
    assert "ba\n" == "".join(token["text"] for token in json.loads(result.stdout)["tokens"])
    result = explain("latest", "-", input=b"ba\xff")
    assert (2, True) == (result.exit_code, result.stderr.startswith("error: standard input "))


def test_checkpoints(explain: Explain, finished: Run) -> None:
    """Another step is another model: the one that is asked for."""
    steps = sorted(int(path.name.split("_")[-1]) for path in (finished.path / "checkpoints").iterdir() if path.is_dir())
    first, last = (content(explain, "babade", "--checkpoint", step) for step in (steps[0], steps[-1]))
    assert (steps[0], steps[-1]) == (first["step"], last["step"])
    assert first["layers"] != last["layers"]
    assert last == content(explain, "babade")


WRONG = {
    ("latest", "some", "text"): "'text' is no setting. A text of several words stands in quotes: moe explain RUN \"...\"",
    ("latest", "a", "k=1"): "'k' is ... This command takes eval.k, eval.capacity and eval.drop.",
    ("latest", "a", "eval.k=1,2"): "eval.k has 2 values: moe explain takes one.",
    ("latest", "a", "--layer", "0"): "--layer 0: RUN has sparse layers 1 to 2.",
    ("latest", "a", "--layer", "3"): "--layer 3: RUN has sparse layers 1 to 2.",
    ("latest", "a", "--checkpoint", "5"): "RUN ... latest, 6, 4.",
    ("latest", "a", "-o", "no/such.html"): "no folder no: make it, or name another.",
    ("latest", "a", "-o", "a.html", "--json"): "--json prints, --output writes a page: give one of them.",
    ("latest", "a" * 16_385): "the text has 16,385 tokens: 16,384 are the most. Give a part of it.",
    ("absent", "a"): "... 'absent' in OUTPUTS. ...",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:30].encode("ascii", "replace").decode())
def test_wrong_request(explain: Explain, finished: Run, words: tuple[str, ...]) -> None:
    """The message is exactly that of the table, nothing goes to standard output, and the exit code is 2."""
    result = explain(*words)
    message = result.stderr.replace(str(finished.path.parents[1]), "OUTPUTS").replace(finished.id, "RUN")
    assert (2, "", Elided(f"error: {WRONG[words]}\n")) == (result.exit_code, result.stdout, message)


def refused(run: Run, outputs: Path) -> list[str]:
    result = CliRunner().invoke(app, ["explain", run.id, "Z", "--outputs", str(outputs)])
    assert result.exit_code == 2
    return result.stderr.splitlines()


def test_runs_without_experts_or_text(text_file: Path, tmp_path: Path) -> None:
    """`moe explain` refuses dense runs, image runs, and characters outside the corpus, each with its reason."""
    dense = create_run(tmp_path, "runs", tiny_config(text_file, expert=1, k=None, router=None, balance=None))
    result = f"error: {dense.id} is a dense model (expert=1): every token goes through the same network."
    assert [result] == refused(dense, tmp_path)
    vit = create_run(tmp_path, "runs", tiny_config(text_file, **TINY["vit"]))
    result = f"error: {vit.id} is a vit, which reads no plain text: moe explain takes runs of gpt, bert, lstm."
    assert [result] == refused(vit, tmp_path)
    chars = finish(tiny_config(text_file, data={"tokenizer": "chars"}), tmp_path)
    assert [Elided("error: 'Z' ... 17 characters ...")] == refused(chars, tmp_path)


def explained(
    config: RunConfig, tokens: Sequence[str], choices: Sequence[Sequence[Assignment]], size: int = 4, **changes: Any
) -> ExplainResult:
    """A text of a run that never was: `choices` are those of each token, in each sparse layer."""
    layers = tuple(
        LayerAssignments(layer, block, tuple(map(tuple, choices)), (1.0,) * size, dict.fromkeys(SHOWN, 0.5))
        for layer, block in enumerate(config.sparse_layers)
    )
    found = Explanation(16, tuple(TextToken(0, text) for text in tokens), layers)
    return replace(ExplainResult("run", 6, config, config.eval, "bytes", found), **changes)


def choice(expert: int, weight: float = 0.5, kept: bool = True) -> Assignment:
    return Assignment(expert, weight, kept)


def test_many_and_missing_choices(text_file: Path) -> None:
    """A token without expert has a dash; of more experts than are shown a line says how many are left out; weights keep their width."""
    config = tiny_config(text_file)
    many = [choice(expert, weight) for expert, weight in enumerate((12.4, 1.06, 0.996, 0.994, 0.004) + (0.0,) * 6)]
    lines = [line.plain for line in explained_lines(explained(config, "ab", [many, []]), 80)]
    start = lines.index("     a b")
    expected = ["     a b", "L1   1 -", "    12", "     2", "   1.1", "L2   1 -"]
    assert expected == lines[start : start + 6]
    assert "Up to 9 weaker experts per token are left out: --layer 1 shows more." in lines
    lines = [line.plain for line in explained_lines(explained(config, "ab", [many, []], shown=1), 80)]
    assert "Up to 3 weaker experts per token are left out: --json has all." in lines
    assert ["12", "1.1", "1.0", ".99", ".00"] == [format_weight(each.weight) for each in many[:5]]


@pytest.mark.parametrize(
    ("changes", "piece"),
    [
        ({"model": {"moe_layer_freq": 2}}, "L1 is layer 2 of 2; 1 of these is dense: one network for all tokens."),
        (
            {"model": {"shared_experts": 2}},
            "In addition 2 shared experts of each layer answer for every token: never chosen, not shown.",
        ),
        ({"router": TopKConfig(null_experts=2)}, "E5 to E6 compute nothing (null experts)."),
        ({"router": ReluConfig()}, "All experts with a score above zero are used; their weights need not sum to 1."),
        ({"router": RandomConfig()}, "Experts are drawn at random, here from a fixed seed."),
        (
            {**TINY["bert"], "router": SoftConfig()},
            "No expert is chosen: all process mixtures of all tokens, and a weight is a share of the output.",
        ),
        (
            {**TINY["bert"], "router": ExpertChoiceConfig()},
            "Each expert chooses its tokens with the highest scores: a token may have many experts, or none.",
        ),
        ({**TINY["bert"], "router": SoftConfig()}, "as at evaluation (router soft). It"),
        (
            {**TINY["bert"], "router": ExpertChoiceConfig(), "capacity": 1.5},
            "(router expert_choice, k=2 on average, capacity 1.5)",
        ),
        ({"router": ReluConfig()}, "(router relu, k=2 aimed at, dropless)"),
        ({"eval": EvalConfig(k=1)}, "(router topk, k=1, dropless)"),
        (TINY["bert"], "Each token saw the whole text, unmasked."),
        ({}, "Each token saw itself and those before it."),
        ({"eval": EvalConfig(capacity=0.5)}, "capacity 0.5"),
    ],
)
def test_parts_of_the_model_that_are_not_shown_are_named(text_file: Path, changes: dict[str, Any], piece: str) -> None:
    """Dense layers, shared and null experts, routers that do not choose k, what a token saw, the policy."""
    config = tiny_config(text_file, balance=None, **changes)
    result = " ".join(sentences(explained(config, "a", [[choice(0)]], 4)))
    assert piece in result
    assert "The text is longer" not in result
    assert isinstance(config.model, BERTConfig) == ("whole text" in result)
    assert (config.router.name in UNEVEN) != (", K is " in " ".join(legend(explained(config, "a", [[choice(0)]]))))  # type: ignore[union-attr]


def test_windows_and_drops_are_said(text_file: Path) -> None:
    """Each window of a text longer than the context begins on a new line, and a dropped assignment is explained."""
    result = explained(tiny_config(text_file), "a" * 17, [[choice(0, kept=False)]] * 17)
    assert "2 forward passes of this checkpoint" in sentences(result)[0]
    assert "The text is longer than the context of 16: 2 windows, each read without the others." in sentences(result)
    assert "x marks a dropped assignment: the expert was full, and the token gets no output of it." in sentences(result)
    lines = [line.plain for line in explained_lines(result, 200)]
    assert ["window 1", "window 2"] == [line for line in lines if line.startswith("window")]
    assert [16, 1] == [len(cells(line)) for line in lines if set(line) == {" ", "a"}]


def test_measures_are_explained_in_the_words_of_the_registry(text_file: Path) -> None:
    """The screen shows the range and the description of every metric next to its values."""
    result = explained(tiny_config(text_file), "a", [[choice(0)]])
    screen = [line.plain for line in explained_lines(result, 400)]
    assert f"load, {LOAD_RANGE}: {LOAD_DESCRIPTION}." in screen
    for metric in (BY_KEY[name] for name in SHOWN):
        assert f"{metric.label}, {metric.range}: {metric.description}." in screen
    assert (
        ["layer", "MaxVio", "entropy", "dropped"],
        [["L1", "+50 %", "0.50", "50 %"], ["L2", "+50 %", "0.50", "50 %"]],
    ) == metric_rows(result)
    assert any("Here E is 4, K is 2 and E / K is 2." in line for line in screen)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_palette_is_the_pages_and_readable() -> None:
    """The colours equal those of the page's light theme, and white has a contrast of at least 4.5 on each."""
    css = (ROOT / "moe_cli/report/html/assets/page.css").read_text(encoding="utf-8").split("dark")[0]
    assert list(PALETTE) == [re.search(rf"--c{index}: (#\w+);", css)[1] for index in range(10)]  # type: ignore[index]
    assert min(1.05 / (luminance(colour) + 0.05) for colour in PALETTE) >= 4.5


def test_colour_never_says_more(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal experts are coloured, with NO_COLOR they are not, and the text is that of a pipe."""
    from rich.console import Console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def screen(**env: str) -> str:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        shown = Terminal()
        result = explained(tiny_config(ROOT / "README.md"), "ab", [[choice(0)], [choice(1)]])
        from moe_cli.cli.console import print_lines

        print_lines(Console(file=shown, width=80, color_system="truecolor"), explained_lines(result, 80))
        return shown.getvalue()

    coloured = screen(TERM="xterm")
    assert "48;2;11;98;181" in coloured
    assert "38;2;255;255;255" in coloured
    assert "38;2;" not in screen(NO_COLOR="1")
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    result = explained(tiny_config(ROOT / "README.md"), "ab", [[choice(0)], [choice(1)]])
    assert [line.plain for line in explained_lines(result, 80)] == plain.splitlines()
    assert "\x1b" not in explain("latest", "ba").stdout


def test_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the terminal has no other characters, a space is SP, and loads are shaded in ASCII."""
    assert ["SP", "␣"] == [format_token(TextToken(32, " "), ascii_only) for ascii_only in (True, False)]
    result = explained(tiny_config(ROOT / "README.md"), " a", [[choice(0)], [choice(1)]])
    assert all(line.plain.isascii() for line in explained_lines(result, 80, ascii_only=True))


def test_help_names_everything() -> None:
    """The help explains every option and argument."""
    shown = " ".join(CliRunner().invoke(app, ["explain", "--help"]).stdout.split())
    for word in (
        "--layer N",
        "--output",
        "--json",
        "--checkpoint WHICH",
        "- for standard input",
        "eval.k and eval.capacity",
    ):
        assert word in shown
