"""The whole layer against formulas that use neither Routing nor a back end. T tokens, E experts, K chosen, D width."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_cli
from moe_cli.config.capacity import expert_capacity
from moe_cli.config.routers import RandomConfig, RouterConfig, SoftConfig, SwitchConfig, TopKConfig
from moe_cli.errors import ConfigError
from moe_cli.moe.backends.dispatch import BACKENDS
from moe_cli.moe.experts import FeedForward
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.moe.routing_metrics import dropped_fraction
from moe_cli.moe.sparse_expert_model import SparseExpertModel
from moe_cli.moe.sparse_layer import moe_layers
from tests.moe.formulas import FFN_TYPES, network, top_k_weights

E, D, F = 6, 5, 7
every_ffn_type = pytest.mark.parametrize("ffn_type", FFN_TYPES)
# In float64, which grouped_mm does not have.
every_backend = pytest.mark.parametrize("dispatch", [name for name in BACKENDS if name != "grouped_mm"])


def make_layer(top_k: int = 2, **options: Any) -> MoELayer:
    """A float64 layer with a gate strong enough to choose unevenly."""
    torch.manual_seed(0)
    layer = MoELayer(D, options.pop("num_experts", E), top_k, F, **options).double()
    for name, weight in layer.router.named_parameters():
        assert "gate.weight" == name
        torch.nn.init.normal_(weight)
    return layer


def tokens(num_tokens: int = 20) -> Tensor:
    return torch.randn(num_tokens, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def formula(layer: MoELayer, x: Tensor, renormalise: bool) -> Tensor:
    """The layer without capacity, in five lines: every expert answers every token, most weights are zero."""
    ffn_type, activation = layer.experts.ffn_type, layer.experts.activation
    weights = top_k_weights(x, layer.router.gate.weight, layer.top_k, renormalise)
    matrices = zip(layer.experts.w_in, layer.experts.w_out, strict=True)
    answers = torch.stack([network(x, w_in, w_out, ffn_type, activation) for w_in, w_out in matrices], dim=1)
    return torch.einsum("te,ted->td", weights, answers)


def gradients(y: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    return dict(zip(inputs, torch.autograd.grad(y, list(inputs.values()), cotangent), strict=True))


@every_ffn_type
@pytest.mark.parametrize(
    ("router", "top_k", "renormalise"),
    [
        ("topk", 1, False),
        ("topk", 2, True),
        (TopKConfig(renormalise=False), 2, False),
        ("topk", 4, True),
        ("topk", E, True),
        (SwitchConfig(jitter=0.0), 1, False),
    ],
)
def test_the_layer_equals_the_formula(router: str | RouterConfig, top_k: int, renormalise: bool, ffn_type: str) -> None:
    """Output and the gradient of the input and of every parameter equal the dense five-line formula's."""
    layer, x = make_layer(top_k, router=router, ffn_type=ffn_type), tokens().requires_grad_()
    y, expected = layer(x)[0], formula(layer, x, renormalise)
    assert torch.allclose(expected, y, atol=1e-10)
    inputs = {"x": x, **dict(layer.named_parameters())}
    actual = gradients(y, inputs)
    for name, gradient in gradients(expected, inputs).items():
        assert torch.allclose(gradient, actual[name], atol=1e-10), name


@pytest.mark.usefixtures("unchecked_shapes")
def test_gradcheck() -> None:
    """On a tiny layer with shared experts and drops every gradient equals finite differences."""
    layer = make_layer(2, num_experts=3, shared_experts=1, capacity_factor=1.0)
    names = [name for name, _ in layer.named_parameters()]

    def answer(x: Tensor, *weights: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return y

    inputs = (tokens(4).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(answer, inputs, fast_mode=True)


@every_ffn_type
def test_one_expert_is_the_dense_network(ffn_type: str) -> None:
    """With E = 1 the layer is a plain feed-forward network."""
    layer = make_layer(1, num_experts=1, ffn_type=ffn_type)
    dense = FeedForward(D, F, ffn_type=ffn_type, activation=layer.experts.activation).double()
    dense.load_state_dict({"w_in": layer.experts.w_in[0], "w_out": layer.experts.w_out[0]})
    assert torch.allclose(dense(tokens()), layer(tokens())[0], atol=1e-12)


def test_all_experts_chosen_is_their_weighted_sum() -> None:
    """With K = E every expert answers, weighted with its softmax probability."""
    layer, x = make_layer(E), tokens()
    probs = (x @ layer.router.gate.weight.T).softmax(-1)
    expected = sum(probs[:, e, None] * layer.experts.forward_one(e, x) for e in range(E))
    assert torch.allclose(expected, layer(x)[0], atol=1e-12)


def test_permuted_tokens_give_permuted_answers() -> None:
    """Without a capacity a token's answer does not depend on where it stands, nor on its neighbours."""
    layer, x = make_layer(2), tokens()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(layer(x)[0][order], layer(x[order])[0], atol=1e-12)
    assert torch.allclose(layer(x)[0][:1], layer(x[:1])[0], atol=1e-12)


@pytest.mark.parametrize("drop", ["position", "probability"])
def test_a_capacity_for_all_is_dropless(drop: str) -> None:
    """A factor of E leaves room for every token at one expert: the answer is the dropless one."""
    layer, x = make_layer(2, drop=drop), tokens()
    expected = layer(x)[0]
    layer.capacity_factor = float(E)
    y, routing = layer(x)
    assert routing.kept.all()
    assert torch.allclose(expected, y, atol=1e-12)


@pytest.mark.parametrize("drop", ["position", "probability"])
@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_capacity_is_never_exceeded(top_k: int, factor: float, drop: str) -> None:
    """In training no expert keeps more than C assignments, and an expert asked for more keeps exactly C."""
    layer, x = make_layer(top_k, capacity_factor=factor, drop=drop), tokens(64)
    routing = layer(x)[1]
    capacity = expert_capacity(64, E, top_k, factor)
    assert torch.equal(routing.tokens_per_expert.clamp(max=capacity), routing.kept_per_expert)
    assert dropped_fraction(routing) > 0


@pytest.mark.parametrize("shared", [0, 2])
def test_a_dropped_token_gets_what_is_shared(shared: int) -> None:
    """A token that found no room gets zero from the routed experts: the residual path carries it."""
    layer, x = make_layer(1, capacity_factor=0.5, shared_experts=shared), tokens()
    y, routing = layer(x)
    lost = routing.token_ids[~routing.kept]
    assert len(lost)
    nothing = torch.zeros_like(x) if layer.shared_experts is None else layer.shared_experts(x)
    assert torch.allclose(nothing[lost], y[lost], atol=1e-12)


def test_drop_is_passed_on() -> None:
    """The two rules keep different tokens, and by probability the surest stay."""
    x = tokens(64)
    kept = {}
    for drop in ("position", "probability"):
        routing = make_layer(1, capacity_factor=0.5, drop=drop)(x)[1]
        kept[drop] = routing.weights[routing.kept].sum().item()
    assert kept["probability"] > kept["position"]


@every_ffn_type
def test_shared_experts_see_every_token(ffn_type: str) -> None:
    """n shared experts are one network of width n * d_expert whose answer is added, unweighted."""
    layer, x = make_layer(2, shared_experts=2, ffn_type=ffn_type), tokens()
    shared = layer.shared_experts
    assert (D, 2 * F) == tuple(shared.w_out.shape)
    expected = formula(layer, x, True) + network(x, shared.w_in, shared.w_out, ffn_type, layer.experts.activation)
    assert torch.allclose(expected, layer(x)[0], atol=1e-12)


def test_shared_experts_have_a_width_of_their_own() -> None:
    """One shared expert of twice the width is two of the usual one: output and gradients are equal bit by bit."""
    results = []
    for options in ({"shared_experts": 2}, {"shared_experts": 1, "d_shared": 2 * F}):
        layer, x = make_layer(2, **options), tokens().requires_grad_()
        y = layer(x)[0]
        results.append([y, *gradients(y, {"x": x, **dict(layer.named_parameters())}).values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


WIDTHS = (4, 8, 4, 12, 20, 8)


@every_ffn_type
@every_backend
@pytest.mark.parametrize("capacity", [None, 0.5])
def test_unequal_experts_equal_the_formula(dispatch: str, ffn_type: str, capacity: float | None) -> None:
    """Output and gradients of blocks are those of whole networks of each width, with drops too, for every back end."""
    torch.manual_seed(0)
    layer = MoELayer(D, E, 2, WIDTHS, ffn_type=ffn_type, dispatch=dispatch, capacity_factor=capacity).double()
    torch.nn.init.normal_(layer.router.gate.weight)
    x = tokens().requires_grad_()
    y, routing = layer(x)[0], layer.route(x)  # a graph of its own
    parts = zip(
        layer.experts.w_in.split(layer.experts.blocks), layer.experts.w_out.split(layer.experts.blocks), strict=True
    )
    answers = []
    for blocks_in, blocks_out in parts:
        gates_and_ups = [block.chunk(2) if ffn_type == "glu" else (block,) for block in blocks_in]
        w_in = torch.cat([torch.cat(rows) for rows in zip(*gates_and_ups, strict=True)])
        answers.append(network(x, w_in, torch.cat(list(blocks_out), 1), ffn_type, layer.experts.activation))
    weights = torch.zeros(len(x), E, dtype=x.dtype)
    weights = weights.index_put((routing.token_ids, routing.expert_ids), routing.weights * routing.kept)
    expected = torch.einsum("te,ted->td", weights, torch.stack(answers, 1))
    torch.testing.assert_close(expected, y)
    inputs = {"x": x, **dict(layer.named_parameters())}
    torch.testing.assert_close(gradients(expected, inputs), gradients(y, inputs))


@every_ffn_type
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("widths", [(16, 32, 16, 48), (4, 8, 4, 12)])
def test_the_grouped_product_equals_the_reference_for_unequal_experts(
    widths: tuple[int, ...], dropout: float, ffn_type: str
) -> None:
    """Output and gradients agree in float32, its widest precision, with drops and with the same dropout masks."""
    results = []
    for dispatch in ("reference", "grouped_mm"):
        torch.manual_seed(0)
        layer = MoELayer(
            16, 4, 2, widths, ffn_type=ffn_type, dispatch=dispatch, capacity_factor=0.75, expert_dropout=dropout
        )
        torch.nn.init.normal_(layer.router.gate.weight)
        x = torch.randn(37, 16).requires_grad_()
        y = layer(x)[0]
        results.append({"y": y, **gradients(y, {"x": x, **dict(layer.named_parameters())})})
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@every_backend
@pytest.mark.parametrize("slots", [1, 3])
def test_soft_mixtures_go_through_unequal_experts(dispatch: str, slots: int) -> None:
    """Every back end gives what `reference` gives."""
    results = []
    for name in ("reference", dispatch):
        torch.manual_seed(0)
        layer = make_sparse_layer(8, 3, 3, (4, 8, 12), router=SoftConfig(slots=slots), dispatch=name).double()
        x = torch.randn(2, 5, 8, dtype=torch.float64).requires_grad_()
        y = layer(x)[0]
        results.append({"y": y, **gradients(y, {"x": x, **dict(layer.named_parameters())})})
    torch.testing.assert_close(*results)


def test_an_expert_starts_at_its_own_width() -> None:
    """The deviation of an expert's second matrix is 1 / sqrt(its width), that of its first 1 / sqrt(D)."""
    layer = MoELayer(200, 3, 1, (100, 200, 400), router="switch")
    layer.reset_parameters(torch.Generator().manual_seed(0))
    widths = [100, 200, 400]
    for width, w_in, w_out in zip(
        widths,
        layer.experts.w_in.split(layer.experts.blocks),
        layer.experts.w_out.split(layer.experts.blocks),
        strict=True,
    ):
        assert width == w_out.shape[0] * w_out.shape[2]
        assert width**-0.5 == pytest.approx(w_out.std().item(), rel=0.03)
        assert 200**-0.5 == pytest.approx(w_in.std().item(), rel=0.03)


def test_evaluation_is_dropless_by_default() -> None:
    """A capacity binds in training; at evaluation every assignment is kept."""
    layer, x = make_layer(2, capacity_factor=0.25), tokens()
    assert not layer.train()(x)[1].kept.all()
    assert layer.eval()(x)[1].kept.all()


def test_a_policy_sets_k_and_capacity_of_one_pass() -> None:
    """A pass with the policy uses its K and capacity; the next without it those of the layer."""
    layer, x = make_layer(2).eval(), tokens(64)
    routing = layer(x, policy=RoutingPolicy(1, 0.5))[1]
    assert 64 == len(routing.token_ids)
    assert expert_capacity(64, E, 1, 0.5) == routing.kept_per_expert.max()
    assert 64 * 2 == layer(x)[1].kept.sum()


def test_a_policy_sets_the_rule_of_dropping() -> None:
    """By probability the weakest of each expert go, by position the last, as in training by default."""
    layer, x = make_layer(1, drop="position").eval(), tokens(64)
    by_position = layer(x, policy=RoutingPolicy(None, 0.5))[1]
    by_probability = layer(x, policy=RoutingPolicy(None, 0.5, "probability"))[1]
    for routing, order in ((by_position, -by_position.token_ids.double()), (by_probability, by_probability.weights)):
        for expert in range(E):
            own = routing.expert_ids == expert
            stay, go = order[own & routing.kept], order[own & ~routing.kept]
            assert not len(go) or stay.min() >= go.max()
    assert not torch.equal(by_position.kept, by_probability.kept)


def test_a_policy_without_k_keeps_each_layers_own() -> None:
    """None for K leaves the trained K; None for the capacity drops nothing."""
    for layer, expected in ((make_layer(2, capacity_factor=0.5), 40), (make_layer(3), 60)):
        assert expected == layer.eval()(tokens(), policy=RoutingPolicy())[1].kept.sum()


@pytest.mark.parametrize("router", ["topk", "expert_choice"])
@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_capacity_without_meaning_is_refused(router: str, factor: float) -> None:
    """In training and at evaluation, also where the experts choose: 0 must not mean "as trained"."""
    with pytest.raises(ConfigError, match=r"^capacity_factor="):
        MoELayer(D, E, 2, F, router=router, capacity_factor=factor)
    with pytest.raises(ConfigError, match=r"^capacity_factor="):
        RoutingPolicy(capacity_factor=factor)


@pytest.mark.parametrize("top_k", [0, -1, E + 1])
def test_a_policy_chooses_some_of_the_experts(top_k: int) -> None:
    """0 must not mean "as trained"."""
    with pytest.raises(ConfigError, match=rf"^top_k={top_k} must be between 1 and {E}\.$"):
        make_layer(2)(tokens(), policy=RoutingPolicy(top_k))


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (2, 1, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    """The leading shape comes back, and all tokens are routed together in their order."""
    layer = make_layer(2)
    x = torch.randn(*shape, D, dtype=torch.float64)
    y, routing = layer(x)
    assert x.shape == y.shape
    assert torch.allclose(layer(x.reshape(-1, D))[0], y.view(-1, D))
    assert x.numel() // D == routing.num_tokens


@pytest.mark.parametrize("options", [{}, {"capacity_factor": 1.0}, {"shared_experts": 1}, {"router": "random"}])
def test_no_tokens(options: dict[str, Any]) -> None:
    """An empty batch gives an empty answer and an empty record."""
    layer = make_layer(2, **options)
    y, routing = layer(tokens(0))
    assert (0, D) == tuple(y.shape)
    assert 0 == len(routing.kept)
    assert (0, E) == tuple(routing.probs.shape)


@every_backend
def test_no_tokens_no_gradient(dispatch: str) -> None:
    """Backward through an empty batch leaves a zero gradient, or none."""
    layer = make_layer(2, dispatch=dispatch, shared_experts=1)
    layer(tokens(0).requires_grad_())[0].sum().backward()
    assert all(weight.grad is None or (weight.grad == 0).all() for weight in layer.parameters())


def test_gate_stays_float32_under_autocast() -> None:
    """Under bfloat16 autocast the record is float32 and the choices are those without autocast."""
    layer, x = make_layer(2).float(), tokens().float()
    _, expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = layer(x)
    assert torch.bfloat16 == y.dtype
    assert torch.float32 == routing.logits.dtype == routing.weights.dtype
    assert torch.equal(expected.expert_ids, routing.expert_ids)
    assert torch.equal(expected.logits, routing.logits)


def test_the_random_layer_is_an_average_of_two_experts() -> None:
    """With the random router each token gets the plain mean of the K experts on its record."""
    layer, x = make_layer(2, router=RandomConfig()), tokens()
    y, routing = layer(x)
    answers = torch.stack([layer.experts.forward_one(e, x) for e in range(E)])
    chosen = routing.expert_ids.view(2, len(x))
    expected = (answers[chosen[0], range(len(x))] + answers[chosen[1], range(len(x))]) / 2
    assert torch.allclose(expected, y, atol=1e-12)


@pytest.mark.parametrize(("ffn_type", "activation"), [("glu", "silu"), ("mlp", "gelu")])
def test_the_activation_follows_the_kind(ffn_type: str, activation: str) -> None:
    """Unless it is given, a gated network uses SiLU and a plain one GELU."""
    assert activation == make_layer(ffn_type=ffn_type).experts.activation
    assert "relu2" == make_layer(ffn_type=ffn_type, activation="relu2", shared_experts=1).shared_experts.activation


def test_initial_weights_depend_on_the_generator_alone() -> None:
    """The same generator gives the same layer; out_scale=0 gives one that answers nothing."""
    layer, twin = make_layer(2, shared_experts=1), make_layer(3, shared_experts=1)
    for each in (layer, twin):
        each.reset_parameters(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))
    layer.reset_parameters(torch.Generator().manual_seed(5), out_scale=0.0)
    assert (layer(tokens())[0] == 0).all()


def test_moe_layers_come_first_to_last() -> None:
    """The layers of a model are found in their order, however deep, and nothing else is."""
    first, second = make_layer(1), make_layer(2)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ModuleList([first]), second)
    assert [first, second] == moe_layers(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 7}, "top_k=7 must be between 1 and num_experts=6."),
        ({"top_k": 0}, "top_k=0 must be between 1 and num_experts=6."),
        (
            {"router": "tokp"},
            "router='tokp' is not ",
        ),
        ({"router": "switch"}, "k=2: router=switch "),
        (
            {"router": TopKConfig(renormalise=True), "top_k": 1},
            "k=1 with router.renormalise=true ",
        ),
        ({"drop": "chance"}, "drop='chance' is not "),
        ({"ffn_type": "conv"}, "ffn_type='conv' is not "),
        ({"activation": "tanh"}, "activation='tanh' is not "),
        ({"dispatch": "fast"}, "dispatch='fast' is not "),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0 must be "),
    ],
)
def test_what_the_layer_refuses(options: dict[str, Any], message: str) -> None:
    """A name or number that cannot be is refused when the layer is made, in one sentence."""
    with pytest.raises(ConfigError) as error:
        MoELayer(D, E, d_expert=F, **{"top_k": 2, **options})
    assert str(error.value).startswith(message)


def test_the_layer_is_public() -> None:
    """`from moe_cli import MoELayer, SparseExpertModel` gives these classes."""
    assert MoELayer is moe_cli.MoELayer
    assert SparseExpertModel is moe_cli.SparseExpertModel


def test_the_representation_names_the_sizes() -> None:
    """Numbers of experts, widths and K are printed, as torch does for its own layers."""
    text = repr(MoELayer(d_model=16, num_experts=4, top_k=2, d_expert=32))
    for part in ("top_k=2, capacity_factor=None", "LinearGate(d_model=16, num_experts=4)", "16 -> 32 -> 16, glu silu"):
        assert part in text
