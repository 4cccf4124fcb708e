"""Heat maps: cells say the numbers, lines keep to the width, and colour is never needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.report.expert_usage import ExpertUsage, read_expert_usage
from moe_cli.report.render.expert_usage import ASCII_SHADES, SHADES, expert_usage_lines, heat_map
from tests.report.folders import complete


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """Returns a function that makes the usage of a run with two layers of `size` experts and hostile names."""

    def make(size: int) -> ExpertUsage:
        run = complete(tmp_path, 1.8, expert=max(size, 2), k=2)
        lines = []
        for step in (10, 20):
            for layer in (0, 1):
                load = [1 + (index * (layer + 1)) % 5 for index in range(size)]
                lines.append(
                    {
                        "step": step,
                        "layer": layer,
                        "tokens_per_expert": load,
                        "whole_split": step == 20,
                        "kept_per_expert": load,
                        "routing_entropy": 0.5,
                        "saturation": {"10": 0.5, "20": 1.0},
                        "co_activation": [[2] * size] * size,
                        "experts_by_domain": {"\x1b[31mred\nline": load, "[bold]code[/]": load[::-1]},
                        "top_tokens": [[[1, 3, 4], [2, 1, 2]]] * size,
                        "token_texts": {"1": "\x1b]0;x\x07", "2": "[red]"},
                    }
                )
        (run.path / "routing.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        return read_expert_usage(run)

    return make


def test_cells_say_their_numbers() -> None:
    """A block by quarter of the most, then the number: nothing is blank but nothing."""
    head, line = heat_map([("L1", (0.0, 0.1, 0.6, 1.2, 1.9, 5.0))], 2.0, 80, SHADES, "{:.2f}")
    assert ["E1", "E2", "E3", "E4", "E5", "E6"] == head.plain.split()
    assert ["L1", "0.00", "░0.10", "▒0.60", "▓1.20", "█1.90", "█5.00"] == line.plain.split()
    assert "".join(each.rstrip()[-1:] for each in head.plain.split()) == "123456"


def test_without_room_a_block_each_and_a_legend() -> None:
    """One column an expert, in order; beyond that it says how many are not seen."""
    rows = [("L1", [0.0, 0.1, 0.6, 1.2, 1.9] * 4)]
    line, *legend = heat_map(rows, 2.0, 40, SHADES, "{:.2f}")
    assert "L1 " + " ░▒▓█" * 4 == line.plain
    assert "E1 to E20 from left to right" in " ".join(each.plain.strip() for each in legend)
    line, *legend = heat_map(rows, 2.0, 20, SHADES, "{:.2f}")
    assert 20 == len(line.plain)
    assert "E1 to E17 of 20" in " ".join(each.plain.strip() for each in legend)


@pytest.mark.parametrize("size", [2, 16, 70])
@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("plain", [False, True])
def test_lines_keep_to_the_width(found: Any, size: int, width: int, plain: bool) -> None:
    """Whatever the number of experts; nothing of a name can move the cursor, and ASCII is ASCII."""
    lines = [each.plain for each in expert_usage_lines(found(size), None, width, plain)]
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert plain == all(line.isascii() for line in lines)
    text = "\n".join(lines)
    assert set(ASCII_SHADES if plain else SHADES) & set(text)


def test_the_layer_asked_for_is_shown(found: Any) -> None:
    """Counted from 1; without a wish the most uneven one, and it says how to see others."""
    usage = found(8)
    worst = max(usage.layers, key=lambda each: each.max_violation).layer + 1
    text = "\n".join(each.plain for each in expert_usage_lines(usage, None, 120))
    assert f"L{worst} is the most uneven layer. Others: --layer 1 to 2" in text
    for layer in (1, 2):
        text = "\n".join(each.plain for each in expert_usage_lines(usage, layer, 120))
        assert f"L{layer} domains:" in text
        assert f"L{layer} chosen together:" in text
        assert f"L{3 - layer} domains:" not in text
        assert "75 %" in text


@pytest.mark.parametrize(
    ("task", "k", "count"), [("images", 2, 2), ("causal_lm", 2, 2), ("causal_lm", 2, 3), ("images", 1, 2)]
)
def test_captions_say_what_is_counted(tmp_path: Path, task: str, k: int, count: int) -> None:
    """Patches and classes of images; the most that a share can be, where there is such a limit; what has settled."""
    run = complete(tmp_path, 1.8, expert=4, k=k)
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "k": k, "task": {"name": task}}))
    line = {
        "layer": 0,
        "tokens_per_expert": [1, 1, 1, 1],
        "saturation": {"10": 0.5, "20": 1.0},
        "experts_by_domain": {"a": [1, 1, 0, 0], "b": [0, 0, 1, 1]},
        "top_tokens": [[[1, count, 4]]] * 4,
        "token_texts": {"1": "3:3"},
    }
    lines = [json.dumps({**line, "step": step, "whole_split": step == 20}) for step in (10, 20)]
    (run.path / "routing.jsonl").write_text("\n".join(lines))
    text = " ".join(" ".join(each.plain for each in expert_usage_lines(read_expert_usage(run), None, 120)).split())
    assert (task == "images") == ("L1 domains (classes): %" in text) == ("L1 patches (row:column) that choose" in text)
    assert (k == 2 and count == 2) == ("choices: at most 50 %, because each token chooses 2 experts" in text)
    assert "as routed at the end: share of choices already equal to the final ones" in text
