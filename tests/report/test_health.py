"""How experts were used, from a run's folder: shares, not counts; and as heat maps of any width."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from moe_cli.cli.app import app
from moe_cli.report.health import LayerHealth, health
from moe_cli.report.heat import health_lines, heat_map
from moe_cli.store import Run
from tests.report.folders import complete
from tests.report.test_longframes import layer_record, write_lines

PAIRS = [[10, 4, 6, 0], [4, 8, 4, 0], [6, 4, 10, 0], [0, 0, 0, 0]]
TOKENS = [[[97, 5, 9]], [[98, 3, 4], [10, 1, 2]], [], [[300, 1, 0]]]
TABLES = {
    "whole_split": True, "routing_entropy": 0.75, "saturation": {"50": 0.4, "100": 0.9}, "co_activation": PAIRS,
    "experts_by_domain": {"code": [8, 1, 1, 0], "prose": [1, 4, 5, 0]}, "top_tokens": TOKENS,
    "token_texts": {"97": "a", "98": "\x1b[2J<b>", "10": "\n"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two layers at two evaluations and at the end; in the second, expert 4 is dead and a capacity dropped a fifth."""
    made = complete(tmp_path, 1.9, results={"dropped_fraction": 0.2}, expert=4, k=2)
    records: list[dict[str, Any]] = []
    for layer in (0, 1):
        records += [layer_record(step, layer, [40 + 10 * layer, 20, 20, 20]) for step in (50, 100)]
        records.append({**layer_record(100, layer, [10, 8, 10, 0] if layer else [7, 7, 7, 7], **TABLES),
                        "kept_per_expert": [8, 6, 8.4, 0] if layer else [7, 7, 7, 7]})  # fmt: skip
    write_lines(made, "routing.jsonl", *records)
    return made


def show(run: Run, *words: str, width: int = 100, **environment: str) -> Result:
    env = {"COLUMNS": str(width), "LC_ALL": "C.UTF-8", **environment}
    return CliRunner().invoke(
        app, ["runs", "health", run.id, *words, "--outputs", str(run.path.parent.parent)], env=env
    )


def test_shares_of_the_last_record(run: Run) -> None:
    """Load over a fair share, dead experts, drops, entropy, and the way there over training."""
    even, uneven = health(run).layers
    assert ((1.0,) * 4, (), 0.0) == (even.load, even.dead, even.dropped)
    assert (10 / 7, 8 / 7, 10 / 7, 0.0) == pytest.approx(uneven.load)
    assert ((3,), 3 / 7) == (uneven.dead, pytest.approx(uneven.worst))
    assert (pytest.approx(1 - 22.4 / 28), 0.75, True) == (uneven.dropped, uneven.entropy, uneven.whole_split)
    assert ((50, 0.4), (100, 0.9)) == uneven.saturation
    assert (50, pytest.approx(50 / 27.5 - 1)) == uneven.max_violation[0]
    assert 0.2 == health(run).dropped


def test_tables_are_shares(run: Run) -> None:
    """Of the tokens of an expert those that chose another too; of a domain's assignments those of each expert."""
    layer = health(run).layers[1]
    assert (0.4, 0.6) == layer.co_activation[0][1:3]
    assert (0.0,) * 4 == layer.co_activation[3]
    assert {"code": (0.8, 0.1, 0.1, 0.0), "prose": (0.1, 0.4, 0.5, 0.0)} == layer.by_domain
    assert ("a", 5, 9) == (layer.top_tokens[0][0].text, layer.top_tokens[0][0].times, layer.top_tokens[0][0].total)
    assert [1, 2, 0, 1] == [len(tokens) for tokens in layer.top_tokens]


@pytest.mark.parametrize("width", [64, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_maps_fit_the_width(run: Run, width: int, ascii_only: bool) -> None:
    """No line is wider, and all that was recorded is said: load, dead, drops, entropy, saturation, domains, pairs, tokens."""
    lines = [line.plain for line in health_lines(health(run), None, width, ascii_only)]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in (
        "load: 1 is a fair share",
        "+43 %",
        "E4",
        "20 %",
        "0.75",
        "domains",
        "chosen together",
        "tokens that choose",
    ):
        assert words in " ".join(text.split()), words
    if ascii_only:
        assert text.isascii()
    assert "L2" in text
    assert "\x1b" not in text


def test_cells_are_darker_for_more() -> None:
    """Five shades from nothing to the most, numbers where there is room, else blocks alone, cut off with a word."""
    cells = [0.0, 0.1, 0.6, 1.2, 2.0]
    wide = [line.plain for line in heat_map([("L1", cells)], 2.0, 60, " ░▒▓█", "{:.2f}")]
    assert [" 0.00", "░0.10", "▒0.60", "▓1.20", "█2.00"] == re.findall(r"[ ░▒▓█]\d\.\d\d", wide[1])
    narrow = [line.plain for line in heat_map([("L1", cells)], 2.0, 20, " ░▒▓█", "{:.2f}")]
    assert "L1  ░▒▓█" == narrow[0]
    many = " ".join(line.plain for line in heat_map([("L1", [1.0] * 64)], 2.0, 40, " ░▒▓█"))
    assert "of 64: a wider window shows more" in " ".join(many.split())


def test_the_most_uneven_layer_is_shown_or_that_asked_for(run: Run) -> None:
    """Its tables; a layer that is not there is refused with the numbers of those that are."""
    assert "L2 is the most uneven layer. Others: --layer 1 to 2" in show(run).stdout
    assert "L1 domains" in show(run, "--layer", "1").stdout
    refused = show(run, "--layer", "3")
    assert (2, True) == (refused.exit_code, "has sparse layers 1 to 2" in refused.stderr)
    assert show(run, LC_ALL="C").stdout.isascii()


def test_json_says_the_same(run: Run) -> None:
    """All layers, for programs."""
    content = json.loads(show(run, "--json").stdout)
    assert health(run).layers[1].load == tuple(content["layers"][1]["load"])


def test_a_dense_run_and_one_without_records(tmp_path: Path) -> None:
    """There is nothing to look at, and it is said why."""
    dense, new = complete(tmp_path, 1.9, expert=1), complete(tmp_path, 1.9, expert=4)
    assert "is a dense model: it has no experts to look at" in show(dense).stderr
    assert "has no record of its experts" in show(new).stderr


@pytest.mark.parametrize(
    "line",
    [
        '{"layer": "x", "tokens_per_expert": [1, 2]}', '{"layer": 0, "step": 1, "tokens_per_expert": []}', "[]", "null",
        '{"layer": 0, "step": 1, "tokens_per_expert": [1e999, -1]}', '{"layer": 1e99, "step": -5, "tokens_per_expert": [1]}',
        '{"layer": 0, "step": 1, "tokens_per_expert": [1, 2], "co_activation": [[1]], "top_tokens": 5, "saturation": [1]}',
        '{"layer": 0, "step": 1, "tokens_per_expert": [0, 0], "experts_by_domain": {"a": [0, 0], "b": "c"}, "kept_per_expert": 3}',
    ],
)  # fmt: skip
def test_hostile_records_stop_nothing(tmp_path: Path, line: str) -> None:
    """Whatever stands in routing.jsonl, the answer is a report or a sentence, never a crash."""
    made = complete(tmp_path, 1.9, expert=4)
    (made.path / "routing.jsonl").write_text(line + "\n")
    result = show(made)
    assert result.exit_code in (0, 2)
    assert "Traceback" not in result.output
    assert all(isinstance(layer, LayerHealth) for layer in health(made).layers)
