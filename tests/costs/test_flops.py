"""FLOPs against torch's counter: of whole training steps, and of sparse layers with every router and option."""

import dataclasses
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.balances import NoBalance
from moe_cli.config.layer_costs import TRAINING_PASSES, layer_kinds, sparse_forward_flops
from moe_cli.config.model import BERTConfig, GPTConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.routers import NOT_CAUSAL, RouterConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import ConfigError
from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.models.blocks import sparse_layer_from_config
from moe_cli.models.registry import make_model
from moe_cli.moe.routers.registry import ROUTERS
from moe_cli.moe.routers.router import GatedRouter
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import create_run
from moe_cli.runs.recorder import Recorder
from moe_cli.tasks.registry import make_task
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.trainer import Trainer
from tests.costs.test_model import without_onednn
from tests.tiny import TINY, tiny_config

V = 40
FAMILIES: dict[str, dict[str, Any]] = {"gpt": {}, **TINY}
OPTIMIZERS = {
    "muon": MuonConfig(),
    "muon, sparse": MuonConfig(skip_idle_experts=True, ema_decay=0.9),
    "adamw": AdamWConfig(),
    "adamw, sparse": AdamWConfig(skip_idle_experts=True),
    "sgd": SGDConfig(),
}
BIDIRECTIONAL = {"model": BERTConfig(**dataclasses.asdict(TINY["bert"]["model"])), "task": MaskedLM()}
LARGE_PATCHES = {**TINY["vit"], "model": replace(TINY["vit"]["model"], num_layers=1, patch_size=4, d_ff=8)}


@pytest.fixture
def even_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates compute, and then answer so that tokens choose all experts, null ones too, in turn."""
    logits = GatedRouter.logits

    def in_turn(self: GatedRouter, x: Tensor) -> Tensor:
        scores = logits(self, x)
        places = torch.arange(len(x))[:, None] * self.top_k + torch.arange(self.top_k)
        return 0 * scores + torch.full_like(scores, -50.0).scatter(1, places % self.num_experts, 50.0)

    monkeypatch.setattr(GatedRouter, "logits", in_turn)


def step_flops(config: RunConfig, outputs: Path) -> tuple[int, int]:
    """FLOPs of one real training step, all of it and the optimizer's part, as torch counts them.

    Torch counts products of matrices, and no fused recurrent layers, attention or grouped products of a CPU.
    """
    corpus = load_run_data(config, outputs)
    model, recorder = (
        make_model(config, model_vocab_size(config, corpus)),
        Recorder(create_run(outputs, "runs", config)),
    )
    optimizers = make_optimizers(config.optim, model)
    training = Trainer(
        config,
        DistributedModel(config.launch, model),
        make_task(config, corpus),
        optimizers,
        recorder,
        1,
        lambda view: None,
    )
    for layer in moe_layers(training.model):
        layer.dispatch = "loop"
    own = 0
    step = training.optimizers.step

    def counted(*args: Any) -> float:
        nonlocal own
        with FlopCounterMode(display=False) as counter:
            factor = step(*args)
        own = counter.get_total_flops()
        return factor

    training.optimizers.step = counted  # type: ignore[method-assign]
    with sdpa_kernel(SDPBackend.MATH), without_onednn(), FlopCounterMode(display=False) as counter:
        training.step()
    return counter.get_total_flops(), own


def check_step(config: RunConfig, outputs: Path) -> None:
    costs = estimate_cost(config, model_vocab_size(config, load_run_data(config, outputs)))
    total, own = step_flops(config, outputs)
    assert total == pytest.approx(costs.flops_per_step, rel=0.02)
    assert own == pytest.approx(costs.optimizer_flops_per_step, rel=0.02)
    assert (own > 0) == isinstance(config.optim, MuonConfig)


@pytest.mark.parametrize(
    ("family", "optim", "dense"),
    [
        *((family, "muon", dense) for family in FAMILIES for dense in (False, True)),
        *(("gpt", optim, False) for optim in OPTIMIZERS if optim != "muon"),
        ("mmoe", "adamw, sparse", False),
    ],
)
def test_a_whole_training_step_costs_what_torch_counts(
    family: str, optim: str, dense: bool, text_file: Path, tmp_path: Path
) -> None:
    """Forward, backward and optimizer of two batches of every family are within 2 % of the price, and so is the optimizer alone."""
    changes = {**FAMILIES[family], "optim": OPTIMIZERS[optim], "train": {"grad_accumulation": 2}}
    config = tiny_config(text_file, **changes, **({"expert": 1, "k": 1} if dense else {}))
    check_step(config, tmp_path)


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.name)
@pytest.mark.usefixtures("even_load")
def test_a_training_step_with_every_router_costs_what_torch_counts(
    router: type[RouterConfig], text_file: Path, tmp_path: Path
) -> None:
    """A whole step with the router's own defaults, at even load."""
    family = BIDIRECTIONAL if issubclass(router, NOT_CAUSAL) else {}
    k = 1 if router.name == "switch" else 2
    check_step(tiny_config(text_file, router=router(), k=k, balance=NoBalance(), **family), tmp_path)


@pytest.mark.usefixtures("even_load")
def test_experts_that_are_not_asked_cost_the_optimizer_nothing(text_file: Path, tmp_path: Path) -> None:
    """With optim.skip_idle_experts the cost of Muon counts only the 16 of 32 experts that 16 tokens use."""
    optim = MuonConfig(skip_idle_experts=True, expert_period=1)
    config = tiny_config(text_file, expert=32, k=1, optim=optim, train={"batch_size": 1})
    all_of_them = estimate_cost(replace(config, optim=MuonConfig(expert_period=1)), V).optimizer_flops_per_step
    assert estimate_cost(config, V).optimizer_flops_per_step < 0.75 * all_of_them
    check_step(config, tmp_path)


def test_products_with_pixels_have_no_gradient_for_the_pixels(text_file: Path, tmp_path: Path) -> None:
    """With large patches and one narrow layer, training is less than three forward passes by more than 2 %."""
    config = tiny_config(text_file, **LARGE_PATCHES)
    costs = estimate_cost(config, 10)
    assert costs.model_flops_per_token < 0.98 * 3 * costs.forward_flops_per_token
    check_step(config, tmp_path)


# How a number that a router's configuration has may be set. Choices and switches are read off the type.
NUMBERS: dict[str, tuple[Any, ...]] = {
    "init_scale": (1.0, 3.0),
    "temperature": (0.5, 1.0, 2.0),
    "null_experts": (0, 0, 1, 3),
    "jitter": (0.0, 0.1),
    "scale": (1.0, 2.5),
    "groups": (1, 2, 4),
    "top_groups": (1, 2),
    "iterations": (1, 10),
    "l1": (1e-8,),
    "l1_rate": (1.2,),
    "slots": (1, 4, 32),
}
DRAWS = 24


def options_of(router: type[RouterConfig]) -> dict[str, tuple[Any, ...]]:
    """Every option of a router with the values it may take; a KeyError for one that is not known here."""
    found = {}
    hints = get_type_hints(router)
    for name in (field.name for field in dataclasses.fields(router)):
        kind = hints[name]
        if name != "name":
            choices = [
                each for part in (kind, *get_args(kind)) if get_origin(part) is Literal for each in get_args(part)
            ]
            choices += [None, False, True] if bool in get_args(kind) and NoneType in get_args(kind) else []
            choices += [False, True] if kind is bool else []
            found[name] = tuple(choices) or NUMBERS[name]
    return found


def draw_config(router: type[RouterConfig], draw: random.Random) -> RunConfig:
    """A sparse layer with this router, each of its options and those of the layer at random. Raises ConfigError."""
    options = {name: draw.choice(values) for name, values in options_of(router).items()}
    shared = draw.choice([0, 0, 1, 2])
    sizes = {
        "num_layers": 1,
        "num_heads": 1,
        "d_model": draw.choice([16, 40]),
        "d_ff": 32,
        "d_expert": draw.choice([5, 24]),
        "context_length": 32,
        "ffn_type": draw.choice(["glu", "mlp"]),
        "activation": draw.choice(["silu", "relu2"]),
        "shared_experts": shared,
        "shared_gate": shared > 0 and draw.choice([False, True]),
        "expert_dropout": draw.choice([0.0, 0.2]),
    }
    family = {"model": BERTConfig(**sizes), "task": MaskedLM()} if issubclass(router, NOT_CAUSAL) else {}
    # Where even load cannot be arranged, capacities are far from it: everything is full, or nothing.
    capacity = None if options.get("groups", 1) > 1 else draw.choice([None, 0.25, 0.5, 2.0])
    return tiny_config(
        Path("text"),
        expert=draw.choice([4, 6, 8]),
        k=draw.choice([1, 2, 3]),
        router=router(**options),
        capacity=capacity,
        drop=draw.choice(["position", "probability", "random", "causal"]),
        renormalise_after_drop=draw.choice([False, True]),
        balance=NoBalance(),
        train={"batch_size": 12},
        **{"model": GPTConfig(**sizes), **family},
    )


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.name)
@pytest.mark.usefixtures("even_load")
def test_every_router_and_option_is_priced_as_torch_counts_it(router: type[RouterConfig]) -> None:
    """At random settings and even load a sparse layer's forward pass is within 2 % of its price, and training is three of them."""
    draw = random.Random(router.name)
    seen = defaultdict(set)
    for _ in range(DRAWS):
        config = None
        while config is None:
            try:
                config = draw_config(router, draw)
            except ConfigError:
                continue
        layer = sparse_layer_from_config(replace(config, model=replace(config.model, dispatch="loop")), 384)
        x = torch.randn(12, 32, config.model.d_model, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            y, _ = layer(x, torch.arange(384).view(12, 32))
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        price = 384 * sparse_forward_flops(config, layer_kinds(config)[0], layer.experts.w_out.shape[2])
        assert forward == pytest.approx(price, rel=0.02), (
            config.router,
            config.model,
            config.expert,
            config.k,
            config.capacity,
        )
        assert forward + counter.get_total_flops() == pytest.approx(TRAINING_PASSES * price, rel=0.02), config
        for name in options_of(router):
            seen[name].add(getattr(config.router, name))
    left_open = {"renormalise": {None}}  # resolved
    assert {name: set(values) - left_open.get(name, set()) for name, values in options_of(router).items()} == seen


def test_every_field_of_a_router_is_an_option(text_file: Path) -> None:
    """No router has a setting that the draws leave out."""
    for router in ROUTERS:
        assert {field.name for field in dataclasses.fields(router)} - {"name"} == set(options_of(router))
