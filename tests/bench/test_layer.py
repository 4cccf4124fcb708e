"""moe bench layer without its clock: who takes part, with which weights, and what is said about them."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import pytest
import torch
from torch import Tensor, nn

from moe_cli.bench.candidates import Candidate, Shape, SkipCandidate, make_dense, make_layer, our_builders
from moe_cli.bench.layer import _inputs, make_grid, run_layer_benchmark, to_dicts
from moe_cli.bench.peers import FAMILIES, IMPLEMENTATIONS, MAX_COPY_BYTES, peer_builders
from moe_cli.bench.spread import spread
from moe_cli.bench.tables import layer_heading, layer_table, milliseconds, skipped_lines
from moe_cli.bench.timing import MIN_ROUNDS, interleave, ratios, saved_bytes, skip_reason
from moe_cli.cli.app import app
from moe_cli.errors import ConfigError
from tests.runner import CliRunner

pytestmark = pytest.mark.peers
SHAPE = Shape(tokens=24, experts=4, k=2, d_model=16, d_expert=8)
TINY = ["--tokens", "24", "--experts", "4", "--d-model", "16", "--d-expert", "8", "--seconds", "0"]
GATES = ("gate", "router", "classifier")
SOFTMAX = [
    f"transformers {family}, {name}" for family in FAMILIES if family != "DeepSeek-V3" for name in IMPLEMENTATIONS
]


def builders(shape: Shape) -> dict[str, Callable[[], Candidate]]:
    return {**our_builders(shape, ["auto", "loop", "einsum", "reference"]), **peer_builders(shape)}


def installed(shape: Shape) -> list[str]:
    return [name for name in builders(shape) if not name.startswith(("st-moe", "mixture-of"))]


@pytest.mark.parametrize("k", [1, 2])
def test_everybody_has_the_same_active_flops(k: int) -> None:
    """E experts of 3 D F numbers each, gated or not: the dense network's FLOPs per row, T K rows."""
    shape = replace(SHAPE, k=k)
    dense = make_dense(shape)
    assert shape.expert_params == sum(param.numel() for param in dense.module.parameters())
    for name in installed(shape):
        if (name, k) == ("transformers Switch", 2):  # it sends each token to one expert
            continue
        candidate = builders(shape)[name]()
        numbers = sum(
            param.numel()
            for path, param in candidate.module.named_parameters()
            if not any(gate in path.split(".") for gate in GATES)
        )
        output = candidate.forward(_inputs(shape, 0, "cpu").x[: candidate.rows])
        assert (name, shape.experts * shape.expert_params) == (name, numbers)
        assert (shape.tokens, shape.tokens * k) == (candidate.rows, dense.rows)
        assert (shape.tokens, shape.d_model) == tuple(output.shape)


def test_the_same_weights_give_the_same_answers() -> None:
    """Our layer, the loop and every softmax router of transformers agree, so they do the same work."""
    x = _inputs(SHAPE, 0, "cpu").x[: SHAPE.tokens]
    expected = make_layer(SHAPE)(x)[0]
    for name in ("loop of nn.Linear", "moe, einsum", "moe, reference", *SOFTMAX):
        assert torch.allclose(expected, builders(SHAPE)[name]().forward(x), atol=1e-5), name


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_deepseek_is_its_routed_experts_alone(name: str) -> None:
    """The sigmoid router's answer is the sum over chosen experts, weighted by renormalised sigmoids."""
    candidate = builders(SHAPE)[f"transformers DeepSeek-V3, {name}"]()
    layer, x = make_layer(SHAPE), _inputs(SHAPE, 0, "cpu").x[: SHAPE.tokens]
    scores = torch.sigmoid(x @ layer.router.gate.weight.T)
    weights = scores * (scores >= scores.sort(-1).values[:, -SHAPE.k, None])
    weights = weights / weights.sum(-1, keepdim=True)
    expected = sum(weights[:, i, None] * layer.experts.forward_one(i, x) for i in range(SHAPE.experts))
    assert torch.allclose(expected, candidate.forward(x), atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_back_end_asked_for_is_the_one_that_runs(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks the implementation up by the name that the candidate has."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    asked = []
    original = type(ALL_EXPERTS_FUNCTIONS).get_interface
    monkeypatch.setattr(
        type(ALL_EXPERTS_FUNCTIONS),
        "get_interface",
        lambda self, name, default: asked.append(name) or original(self, name, default),
    )
    candidate = builders(SHAPE)[f"transformers Mixtral, {implementation}"]()
    candidate.forward(_inputs(SHAPE, 0, "cpu").x[: SHAPE.tokens])
    assert [implementation] == asked


def linear_pair(width: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, width, bias=False), nn.Linear(width, 2, bias=False)), torch.randn(
        5, 3, requires_grad=True
    )


def test_saved_bytes_of_a_known_case() -> None:
    """Two linear maps keep the input, both weights and what lies between; only the last is counted, once."""
    model, x = linear_pair(7)
    assert 5 * 7 * 4 == saved_bytes(lambda: model(x), x, *model.parameters())
    assert 5 * 7 * 4 + 5 * 3 * 4 == saved_bytes(lambda: model(x), *model.parameters())


def test_saved_bytes_count_a_storage_once() -> None:
    """A tensor kept twice, or a view of it, is one storage; nothing is kept without gradients."""
    x = torch.randn(8, requires_grad=True)

    def twice() -> Tensor:
        y = x * 2  # keeps nothing but a number
        return y * y.view(2, 4).view(8)

    assert 8 * 4 == saved_bytes(twice, x)
    with torch.no_grad():
        assert 0 == saved_bytes(twice, x)


def test_the_loop_keeps_what_it_says() -> None:
    """grouped keeps the first product [R, 2F], the weights and the sorting; the gate its own; x counts as input."""
    shape = replace(SHAPE, k=1)
    layer, x = make_layer(shape, "loop"), _inputs(shape, 0, "cpu").x.requires_grad_()
    routing = layer.route(x)
    rows = shape.tokens
    indices = 8 * (rows + rows + rows + shape.tokens)
    expected = 4 * rows * 2 * shape.d_expert + 4 * rows + indices
    from moe_cli.moe.backends.loop import loop

    weights = routing.weights.detach().requires_grad_()
    routing = replace(routing, weights=weights)
    assert expected == saved_bytes(lambda: loop(layer.experts, x, routing), x, *layer.parameters())


class Clock:
    """Says how late it is; moves on by what the calls add."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_everybody_is_called_once_a_round_on_the_same_fresh_input() -> None:
    """Rounds go on until the time is up; the input is the round's own, and who begins changes."""
    clock, calls = Clock(), []

    def call(name: str, seconds: float) -> Callable[[int], None]:
        def run(value: int) -> None:
            calls.append((value, name))
            clock.now += seconds

        return run

    times = interleave({"a": call("a", 1.0), "b": call("b", 2.0)}, lambda number: 10 * number, 14.0, clock)
    assert {"a": [1.0] * 5, "b": [2.0] * 5} == times
    assert [(0, "a"), (0, "b"), (10, "b"), (10, "a"), (20, "a"), (20, "b")] == calls[:6]
    assert {0, 10, 20, 30, 40} == {value for value, _ in calls}


def test_there_are_always_a_few_rounds() -> None:
    """Without any time every candidate is still measured MIN_ROUNDS times."""
    assert MIN_ROUNDS == len(interleave({"a": lambda value: None}, lambda number: number, 0.0, Clock())["a"])


def test_a_ratio_is_taken_round_by_round() -> None:
    """A slowdown of both in one round leaves their ratio unchanged."""
    assert spread([0.5, 0.5, 0.5]) == ratios([1.0, 10.0, 2.0], [2.0, 20.0, 4.0])
    assert (2.0, 1.0, 9.0) == tuple(vars(spread([9.0, 1.0, 2.0])).values())


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    """A missing package, a refusal and a failure each give one line; the rest is measured."""

    def missing() -> Candidate:
        raise ModuleNotFoundError("No module named 'some_peer'")

    def failing() -> Candidate:
        raise RuntimeError("first line\nsecond line")

    def refusing() -> Candidate:
        raise SkipCandidate("will not")

    def breaking() -> Candidate:
        return replace(make_dense(SHAPE), forward=lambda x: x.sum())

    found = {"gone": missing, "broken": failing, "unwilling": refusing, "wrong": breaking}
    match = run_layer_benchmark(SHAPE, [], 0.0, builders={**our_builders(SHAPE, ["loop"]), **found})
    assert ["moe, loop", "loop of nn.Linear"] == [score.name for score in match.results]
    assert {"gone", "broken", "unwilling", "wrong"} == match.skipped.keys()
    assert ["not installed", "failed: RuntimeError: first line", "will not"] == list(match.skipped.values())[:3]
    assert ["left out: a; c: not installed", "left out: b: will not"] == skipped_lines(
        {"a": "not installed", "b": "will not", "c": "not installed"}
    )
    assert "failed: ValueError: " == skip_reason(ValueError())


@pytest.mark.parametrize("name", ["st-moe-pytorch", "mixture-of-experts"])
def test_a_library_that_is_not_there_is_skipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a peer whose package cannot be imported says that it is not installed."""
    import sys

    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    with pytest.raises(ModuleNotFoundError) as error:
        peer_builders(SHAPE)[name]()
    assert "not installed" == skip_reason(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("transformers Switch", {}, "sends each token to one expert, here k=2"),
        (
            "transformers Switch",
            {"k": 1, "d_expert": 7},
            "has two matrices per expert: equal FLOPs need an even d_expert",
        ),
        ("transformers Mixtral, batched_mm", {"tokens": 2**20}, "would copy 3.22 GB of weights"),
        (
            "transformers OLMoE, eager",
            {"experts": 2**14},
            "would write 412 GB of gradients: all experts' for each expert",
        ),
    ],
)
def test_who_cannot_serve_a_shape_says_so(name: str, changes: dict[str, int], expected: str) -> None:
    """Shapes outside a library's reach, or beyond sensible memory, are refused before anything is allocated."""
    with pytest.raises(SkipCandidate) as error:
        peer_builders(replace(SHAPE, **changes))[name]()
    assert expected == skip_reason(error.value)
    assert 2**30 == MAX_COPY_BYTES


def test_a_grid_is_every_combination_that_can_be_built() -> None:
    """Axes multiply; more choices than experts are passed over, and nothing left is an error."""
    axes = {
        "tokens": [8],
        "experts": [2, 4],
        "k": [1, 4],
        "d_model": [4],
        "d_expert": [4],
        "dtype": ["float32"],
        "threads": [1],
    }
    assert [(2, 1), (4, 1), (4, 4)] == [(shape.experts, shape.k) for shape in make_grid(axes)]
    with pytest.raises(ConfigError, match="nothing to measure"):
        make_grid({**axes, "k": [5]})


def test_the_threads_are_given_back() -> None:
    """A shape is measured with its own number of threads, and afterwards the old number holds."""
    before, seen = torch.get_num_threads(), []

    def spying() -> Candidate:
        dense = make_dense(SHAPE)
        return replace(dense, forward=lambda x: seen.append(torch.get_num_threads()) or dense.forward(x))

    run_layer_benchmark(replace(SHAPE, threads=before + 1), [], 0.0, builders={"spy": spying})
    assert {before + 1} == set(seen)
    assert before == torch.get_num_threads()


def test_the_table_says_it_all_within_80_columns() -> None:
    """The heading names shape and rows per expert; a line per candidate, the best first, none wider than 80."""
    result = CliRunner().invoke(app, ["bench", "layer", *TINY], env={"COLUMNS": "80"})
    assert 0 == result.exit_code, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "24 tokens   4 experts, 2 chosen   d_model 16   d_expert 8" == lines[0]
    assert lines[1].startswith("  rows per expert  12, the busiest ")
    assert ["layer", "efficiency", "min", "-", "max", "ms", "saved", "MiB"] == lines[4].split()
    rows = [line for line in takewhile(lambda line: not line.startswith("left out"), lines[5:]) if line.strip()]
    measured = [float(line[len(max(installed(SHAPE), key=len)) :].split()[0]) for line in rows]
    assert sorted(measured, reverse=True) == measured
    assert {"moe, auto", "loop of nn.Linear", *SOFTMAX} <= {line.split("  ")[0] for line in rows}
    assert "left out: transformers Switch: sends each token to one expert, here k=2" in lines


def test_json_is_a_list_of_plain_objects() -> None:
    """One object per candidate and shape, the dense network included; notes stay off standard output."""
    result = CliRunner().invoke(app, ["bench", "layer", *TINY, "--k", "1,2", "--dispatch", "loop,einsum", "--json"])
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    keys = {
        "candidate",
        "tokens",
        "experts",
        "k",
        "d_model",
        "d_expert",
        "dtype",
        "threads",
        "device",
        "rows_per_expert",
        "largest_load",
        "rounds",
        "seconds",
        "seconds_min",
        "seconds_max",
        "efficiency",
        "efficiency_min",
        "efficiency_max",
        "saved_bytes",
    }
    assert {frozenset(keys)} == {frozenset(entry) for entry in found}
    assert {1: 6.0, 2: 12.0} == {entry["k"]: entry["rows_per_expert"] for entry in found}
    for k in (1, 2):
        names = [entry["candidate"] for entry in found if entry["k"] == k]
        assert {"dense", "moe, loop", "loop of nn.Linear"} <= set(names)
        assert (k == 1) == ("transformers Switch" in names)
    assert {1.0} == {entry["efficiency"] for entry in found if entry["candidate"] == "dense"}
    assert "left out: " in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_records_hold_what_was_measured(dtype: str) -> None:
    """Every number of a record is the match's; the spread encloses the median, and the busiest expert the mean."""
    match = run_layer_benchmark(
        replace(SHAPE, dtype=dtype), ["loop"], 0.0, builders=our_builders(replace(SHAPE, dtype=dtype), ["loop"])
    )
    for entry, score in zip(to_dicts(match), [match.dense, *match.results], strict=True):
        assert (score.name, score.seconds.median, score.saved_bytes) == (
            entry["candidate"],
            entry["seconds"],
            entry["saved_bytes"],
        )
        assert entry["efficiency_min"] <= entry["efficiency"] <= entry["efficiency_max"]
        assert entry["seconds_min"] <= entry["seconds"] <= entry["seconds_max"]
        assert (MIN_ROUNDS, dtype) == (entry["rounds"], entry["dtype"])
    assert SHAPE.rows_per_expert <= match.largest_load <= SHAPE.tokens
    assert layer_table(match).row_count == 2
    assert dtype in layer_heading(match)[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--experts", "8,x"],
            "--experts 8,x: give whole numbers from 1 to 65536, such as --experts 8 or --experts 8,64",
        ),
        (["--d-model", "0"], "--d-model 0: give whole numbers from 1 to 65536, such as --d-model 8 or --d-model 8,64"),
        (["--dtype", "half"], "--dtype half: give some of: float32, bfloat16."),
        (["--dispatch", "fast"], "--dispatch fast: give some of: auto, loop, grouped_mm, einsum, reference."),
        (["--k", "9", "--experts", "4"], "nothing to measure: --k is more than --experts everywhere."),
    ],
)
def test_wrong_options_are_named(words: list[str], expected: str) -> None:
    """One line, exit code 2."""
    result = CliRunner().invoke(app, ["bench", "layer", *words])
    assert (2, f"error: {expected}\n") == (result.exit_code, result.stderr)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.00123456, "1.23"), (0.0123456, "12.3"), (0.123456, "123"), (0.009999, "10.0")]
)
def test_milliseconds_have_three_digits(seconds: float, expected: str) -> None:
    """From microseconds to seconds."""
    assert expected == milliseconds(seconds)
