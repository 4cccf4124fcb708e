"""`explain` gives the Routing of a plain forward pass, and each character of the text belongs to one token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_cli.config.capacity import expert_capacity
from moe_cli.config.routers import ReluConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EvalConfig
from moe_cli.data.tokenizers import ByteTokenizer, CharTokenizer
from moe_cli.models.registry import make_model
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.moe.routing_metrics import dropped_fraction, routing_entropy
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.training.explain import Explanation, LayerAssignments, TextToken, explain, text_tokens, token_choices
from tests.tiny import TINY, randomise, tiny_config

V = 40
SHORT, LONG = 13, 37  # tokens, with a context of 16


def model_of(path: Path, family: str, **changes: Any) -> tuple[RunConfig, nn.Module]:
    config = tiny_config(path, **{**TINY.get(family, {}), **changes})
    return config, randomise(make_model(config, V)).eval()


def tokens(number: int) -> list[TextToken]:
    ids = np.random.default_rng(0).integers(0, V, number).tolist()
    return [TextToken(each, "a") for each in ids]


def explanation_of(config: RunConfig, model: nn.Module, text: list[TextToken], policy: EvalConfig) -> Explanation:
    return explain(model, text, config.sparse_layers, config.model.context_length, policy, "float32")


def direct(model: nn.Module, text: list[TextToken], policy: EvalConfig, window: int) -> list[list[Routing]]:
    """The routings of each window's forward pass."""
    routing_policy = RoutingPolicy(policy.k, policy.capacity)
    with torch.no_grad():
        return [
            model(part[None], policy=routing_policy)[1]
            for part in torch.tensor([each.id for each in text]).split(window)
        ]


def table(routing: Routing, values: Tensor) -> Tensor:
    """Returns values of the assignments as a matrix of tokens by experts."""
    result = torch.zeros(routing.num_tokens, routing.num_experts, dtype=values.dtype)
    result[routing.token_ids, routing.expert_ids] = values
    return result


def explained_tables(layer: LayerAssignments, num_experts: int) -> tuple[Tensor, Tensor]:
    """Returns the weights in an explanation, and the mask of kept assignments."""
    weights = torch.zeros(len(layer.choices), num_experts)
    kept = torch.zeros(len(layer.choices), num_experts, dtype=torch.bool)
    for token, choices in enumerate(layer.choices):
        for choice in choices:
            weights[token, choice.expert], kept[token, choice.expert] = choice.weight, choice.kept
    return weights, kept


@pytest.mark.parametrize("policy", [EvalConfig(), EvalConfig(k=1, capacity=0.5)], ids=["dropless", "limited"])
@pytest.mark.parametrize("number", [SHORT, LONG])
@pytest.mark.parametrize("family", ["gpt", "bert", "lstm"])
def test_the_explanation_is_the_routing(text_file: Path, family: str, number: int, policy: EvalConfig) -> None:
    """Weights, drops and numbers of choices equal those of a direct forward pass of every window."""
    config, model = model_of(text_file, family)
    text = tokens(number)
    found = explanation_of(config, model, text, policy)
    passes = direct(model, text, policy, 16)
    assert len(passes) == -(-number // 16)
    assert len(moe_layers(model)) == len(found.layers)
    for layer in found.layers:
        routings = [each[layer.layer] for each in passes]
        weights, kept = explained_tables(layer, 4)
        expected = torch.cat([table(each, each.weights) for each in routings])
        # torch's LSTM rounds the last digit by where its memory lies.
        assert torch.equal(expected, weights) or (family == "lstm" and torch.allclose(expected, weights, atol=3e-7))
        assert torch.equal(torch.cat([table(each, each.kept) for each in routings]), kept)
        assert number * (policy.k or 2) == sum(map(len, layer.choices))


@pytest.mark.parametrize("capacity", [None, 0.5])
def test_measures_are_those_of_the_text(text_file: Path, capacity: float | None) -> None:
    """Load, MaxVio, entropy and drops equal the measures of the one Routing; the load's mean is 1; no expert has more than its room."""
    config, model = model_of(text_file, "gpt")
    policy = EvalConfig(capacity=capacity)
    found = explanation_of(config, model, tokens(SHORT), policy)
    for layer, routing in zip(found.layers, direct(model, tokens(SHORT), policy, 16)[0], strict=True):
        load = routing.tokens_per_expert
        assert (load / load.double().mean()).tolist() == pytest.approx(list(layer.load))
        assert 4 == pytest.approx(sum(layer.load))
        expected = max_violation(load.tolist()), routing_entropy(routing.probs), dropped_fraction(routing).item()
        names = ("max_violation", "routing_entropy", "dropped_fraction")
        assert expected == pytest.approx(tuple(layer.measures[name] for name in names))
        assert (capacity is not None) == (layer.measures["dropped_fraction"] > 0)
        room = SHORT if capacity is None else expert_capacity(SHORT, 4, 2, capacity)
        kept = explained_tables(layer, 4)[1]
        assert kept.sum(0).max() <= room


def test_a_text_without_chosen_experts(text_file: Path) -> None:
    """Where no score is above zero nothing is chosen, nothing dropped, and no load is anything but zero."""
    config, model = model_of(text_file, "gpt", router=ReluConfig())
    for layer in moe_layers(model):
        nn.init.zeros_(layer.router.gate.weight)
    layer = explanation_of(config, model, tokens(SHORT), EvalConfig()).layers[0]
    assert ((),) * SHORT == layer.choices
    assert (0.0,) * 4 == layer.load
    assert 0 == layer.measures["dropped_fraction"] == layer.measures["max_violation"]


def test_layers_have_their_place(text_file: Path) -> None:
    """A sparse layer after a dense one is the first of its kind and the second of all."""
    config, model = model_of(text_file, "gpt", model={"moe_layer_freq": 2})
    assert [(0, 1)] == [
        (each.layer, each.block) for each in explanation_of(config, model, tokens(SHORT), EvalConfig()).layers
    ]


def test_the_model_is_left_as_it_was(text_file: Path) -> None:
    """A model in training stays so, and random numbers go on as they would have."""
    config, model = model_of(text_file, "gpt")
    model.train()
    before = torch.get_rng_state()
    explanation_of(config, model, tokens(SHORT), EvalConfig(k=1, capacity=0.5))
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_the_best_choice_comes_first() -> None:
    """Kept ones before dropped ones, then by weight, then by number."""
    experts, weights = torch.tensor([3, 0, 2, 1]), torch.tensor([0.5, 0.9, 0.2, 0.5])
    kept = torch.tensor([True, False, True, True])
    empty = torch.zeros(2, 4)
    first, second = token_choices(Routing(empty, empty, torch.zeros(4, dtype=torch.int64), experts, weights, kept))
    assert [1, 3, 2, 0] == [choice.expert for choice in first]
    assert () == second


ALPHABET = "abé€𝄞 \n\0"


@given(text=st.text(ALPHABET, min_size=1), tokenizer=st.sampled_from([ByteTokenizer(), CharTokenizer(ALPHABET)]))
def test_every_character_is_in_one_token(text: str, tokenizer: Any) -> None:
    """Tokens are the tokenizer's; their texts are the text; a character is whole in its first token, and the others count on."""
    found = text_tokens(text, tokenizer)
    assert tokenizer.encode(text).tolist() == [each.id for each in found]
    assert text == "".join(each.text for each in found)
    if tokenizer.name == "bytes":
        parts = [part for char in text for part in range(1, 1 + len(char.encode()))]
        assert parts == [each.part for each in found]
    else:
        assert list(text) == [each.text for each in found]


class Pieces:
    """A tokenizer that cuts bytes at given places, as one that was learned does."""

    def __init__(self, *widths: int) -> None:
        self.widths = widths

    def encode(self, text: str) -> Any:
        assert sum(self.widths) == len(text.encode())
        return np.arange(len(self.widths))

    def bytes_per_token(self) -> Any:
        return np.array(self.widths)


def test_tokens_that_begin_within_a_character() -> None:
    """A token has the characters that begin in it, whatever else it holds."""
    assert [("ab", 1), ("é", 1), ("c", 1)] == [(each.text, each.part) for each in text_tokens("abéc", Pieces(2, 1, 2))]
    assert [("€", 1), ("", 2), ("d", 1)] == [(each.text, each.part) for each in text_tokens("€d", Pieces(1, 1, 2))]
