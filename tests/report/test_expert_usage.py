"""Expert health from a run folder: closed forms of what routing.jsonl tells, and what damage leaves of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.report.expert_usage import ExpertUsage, read_expert_usage
from tests.report.folders import complete


def routed(tmp_path: Path, *records: Any) -> ExpertUsage:
    """The health of a run with these lines in routing.jsonl."""
    run = complete(tmp_path, 1.8, expert=4, k=2)
    (run.path / "routing.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return read_expert_usage(run)


def record(**changes: Any) -> dict[str, Any]:
    return {"step": 10, "layer": 0, "tokens_per_expert": [6, 2, 0, 0], **changes}


def test_load_is_relative_to_a_fair_share(tmp_path: Path) -> None:
    """The fair share of 8 assignments over 4 experts is 2: 6 are three times that, MaxVio is 2, and 0 is dead."""
    [layer] = routed(tmp_path, record()).layers
    assert (3.0, 1.0, 0.0, 0.0) == layer.load
    assert 2.0 == layer.max_violation
    assert (2, 3) == layer.dead


def test_training_is_followed_by_the_whole_split(tmp_path: Path) -> None:
    """MaxVio over training in the order of steps, and load from the evaluation of the whole split, whichever line is first."""
    whole = record(step=20, tokens_per_expert=[3, 3, 1, 1], whole_split=True)
    [layer] = routed(tmp_path, whole, record(step=20, tokens_per_expert=[8, 0, 0, 0]), record(step=10)).layers
    assert ((10, 2.0), (20, 0.5)) == layer.max_violation_over_time
    assert [(10, 3.0), (20, 4.0), (20, 1.5)] == [(step, load[0]) for step, load in layer.load_over_time]
    assert layer.whole_split
    assert 20 == layer.step


def test_drops_entropy_and_saturation(tmp_path: Path) -> None:
    """The share of assignments not kept, the entropy as recorded, and saturation in the order of steps, not of text."""
    [layer] = routed(
        tmp_path, record(kept_per_expert=[4, 2, 0, 0], routing_entropy=0.7, saturation={"100": 0.9, "20": 0.4})
    ).layers
    assert 0.25 == layer.dropped
    assert 0.7 == layer.entropy
    assert ((20, 0.4), (100, 0.9)) == layer.saturation


def test_tables_are_shares(tmp_path: Path) -> None:
    """Co-activation of the row's own tokens, domains of their own assignments; a domain without any is left out, and so
    is the only one, which the load shows.
    """
    pairs = [[6, 3, 0, 0], [3, 4, 1, 0], [0, 1, 2, 1], [0, 0, 0, 0]]
    domains = {"code": [1, 3, 0, 0], "none": [0, 0, 0, 0], "prose": [0, 0, 1, 1]}
    [layer] = routed(tmp_path, record(co_activation=pairs, experts_by_domain=domains)).layers
    assert (1.0, 0.5, 0.0, 0.0) == layer.co_activation[0]
    assert (0.75, 1.0, 0.25, 0.0) == layer.co_activation[1]
    assert (0.0, 0.0, 0.0, 0.0) == layer.co_activation[3]
    assert {"code": (0.25, 0.75, 0.0, 0.0), "prose": (0.0, 0.0, 0.5, 0.5)} == dict(layer.by_domain)
    [alone] = routed(tmp_path, record(experts_by_domain={**domains, "prose": [0, 0, 0, 0]})).layers
    assert {} == alone.by_domain


def test_top_tokens_have_their_text(tmp_path: Path) -> None:
    """Top tokens have their recorded text or None, and damaged entries are left out."""
    table: list[Any] = [[[7, 3, 4], [8, 1, 2]], [["x", 1, 1], [9, True, 1], [9, 1]], [], "no"]
    [layer] = routed(tmp_path, record(top_tokens=table, token_texts={"7": "def", "8": 5})).layers
    assert [(7, "def", 3, 4), (8, None, 1, 2)] == [
        (each.token, each.text, each.count, each.total) for each in layer.top_tokens[0]
    ]
    assert ((), (), ()) == layer.top_tokens[1:]


@pytest.mark.parametrize(
    "damage",
    [
        {"layer": "0"},
        {"layer": -1},
        {"step": True},
        {"step": 1e300},
        {"tokens_per_expert": []},
        {"tokens_per_expert": [1, None]},
        {"tokens_per_expert": [float("nan"), 1]},
        {"tokens_per_expert": "many"},
        {"tokens_per_expert": [-1, 2]},
        {"tokens_per_expert": [10**400, 2]},
    ],
)
def test_damaged_lines_are_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    """They neither crash nor count."""
    assert () == routed(tmp_path, {**record(), **damage}).layers
    assert 1 == len(routed(tmp_path, {**record(), **damage}, record()).layers)


@pytest.mark.parametrize(
    "damage",
    [
        {"co_activation": [[1]]},
        {"co_activation": "x"},
        {"experts_by_domain": [1]},
        {"experts_by_domain": {"a": [1]}},
        {"top_tokens": 3},
        {"token_texts": 3, "top_tokens": [[[1, 1, 1]], [], [], []]},
        {"saturation": {"x": 1, "5": "y"}},
        {"kept_per_expert": [None]},
        {"routing_entropy": "high"},
    ],
)
def test_damaged_tables_leave_the_load(tmp_path: Path, damage: dict[str, Any]) -> None:
    """Damaged tables count as not recorded, and the load stays."""
    [layer] = routed(tmp_path, record(**damage)).layers
    assert (3.0, 1.0, 0.0, 0.0) == layer.load
    assert (None, None, (), ()) == (layer.dropped, layer.entropy, layer.saturation, layer.co_activation)
    assert {} == dict(layer.by_domain)
