"""Does a model of tokens keep the promises of one? B sequences, L positions, V tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.compose import load_config
from moe_cli.config.model import ModelConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_unchecked
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import MoeError
from moe_cli.models.registry import make_model
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.plugins import Plugin
from moe_cli.testing.promise import equal, expected_to_run, randomise, require

B, L, V, EXPERTS = 3, 16, 40, 4
SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 16, "d_ff": 32, "context_length": L}
SIZES |= {"d_expert": 12, "dropout": 0.0, "dispatch": "loop"}


@dataclass(frozen=True)
class _Case:
    """A model under test: its configuration, with experts and without."""

    name: str
    config: RunConfig

    def model(self, training: bool = False, **changes: Any) -> nn.Module:
        with expected_to_run(self.name, "building it"):
            return make_model(replace(self.config, **changes), V).train(training)

    @cached_property
    def tokens(self) -> Tensor:
        return torch.randint(V, (B, L), generator=torch.Generator().manual_seed(0))

    def random_model(self, training: bool = False) -> nn.Module:
        """Returns the model in float64 with every weight at random: a fresh head is often zero and hides all else."""
        model = self.model(training)
        randomise(model)
        return model.double()

    def forward(self, model: nn.Module, tokens: Tensor, **options: Any) -> tuple[Tensor, list[Routing]]:
        with expected_to_run(self.name, f"forward({', '.join(['tokens', *options])})"):
            logits, routings = model(tokens, **options)
        return logits, routings


def check_model(model: Plugin | ModelConfig | str) -> None:
    """Checks a model of tokens: shapes, gradients, evaluation, causality, padding, documents, seeds and costs.

    Args:
        model: a plug-in, the settings of a model, or a name.

    Raises:
        AssertionError: the first promise that is broken.
    """
    case = _case(model)
    for check in CHECKS:
        check(case)


def _case(model: Any) -> _Case:
    name = model if isinstance(model, str) else model.name
    overrides = [f"expert={EXPERTS}", "k=2", "match=none", "balance=none", "router=topk", "data.path=.", "optim=adamw"]
    try:
        if isinstance(model, Plugin):
            assert model.config is not None, f"{name}: it is the plug-in of a logger, not of a model."
            model = model.config()
        settings = load_config([*overrides, f"model={name}"]).config.model if isinstance(model, str) else model
        base = load_config([*overrides, f"model={'gpt' if settings.causal else 'bert'}"]).config
        heads = {key: None for key in ("num_heads", "num_kv_heads", "d_head") if hasattr(settings, key)}
        small = replace_unchecked(settings, **SIZES, **heads)
        return _Case(name, resolve(replace_unchecked(base, model=small)).config)
    except MoeError as error:
        raise AssertionError(f"{name}: its settings cannot be resolved: {error}") from None


def check_logits(case: _Case) -> None:
    """Logits of every token and position, finite, and a routing of each layer with experts."""
    model = case.random_model()
    logits, routings = case.forward(model, case.tokens)
    require(logits.shape == (B, L, V), case.name, f"logits are {tuple(logits.shape)}, not [B, L, V] = {(B, L, V)}.")
    require(bool(logits.isfinite().all()), case.name, "a logit is not finite.")
    sparse = len(case.config.sparse_layers)
    require(len(routings) == sparse, case.name, f"{len(routings)} routings of {sparse} layers with experts.")
    short, _ = case.forward(model, case.tokens[:1, :5])
    require(short.shape == (1, 5, V), case.name, "a shorter sequence gives logits of another length.")


def check_gradients(case: _Case) -> None:
    """Every trained parameter gets a finite gradient."""
    model = case.random_model(training=True)
    logits, _ = case.forward(model, case.tokens)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        require(grad is not None and bool(grad.any()), case.name, f"no gradient reaches {name}: it cannot learn.")
        require(grad is None or bool(grad.isfinite().all()), case.name, f"the gradient of {name} is not finite.")


def check_evaluation(case: _Case) -> None:
    """Evaluation twice gives the same logits, whatever the state of torch's generator."""
    model, answers = case.random_model(), []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            answers.append(case.forward(model, case.tokens)[0])
    require(equal(*answers), case.name, "evaluation is not deterministic: it draws numbers or keeps a state.")


def check_batch(case: _Case) -> None:
    """The logits of a sequence do not depend on the other sequences of the batch."""
    model = case.random_model()
    whole, alone = (case.forward(model, tokens)[0] for tokens in (case.tokens, case.tokens[:1]))
    require(equal(whole[:1], alone), case.name, "the logits of a sequence depend on other sequences.")


def check_causality(case: _Case) -> None:
    """No logits depend on later tokens, with a capacity too; a model that sees them must say causal = False."""
    if not case.config.model.causal:
        return
    model = case.random_model()
    for policy in (RoutingPolicy(), RoutingPolicy(capacity_factor=0.5)):
        before = case.forward(model, case.tokens, policy=policy)[0]
        for length in (1, L // 2, L - 1):
            tokens = case.tokens.clone()
            tokens[:, length:] = (tokens[:, length:] + 1) % V
            after = case.forward(model, tokens, policy=policy)[0]
            require(equal(before[:, :length], after[:, :length]), case.name, "logits depend on later tokens.")


def check_policy(case: _Case) -> None:
    """The policy of a forward pass reaches every layer with experts."""
    model = case.random_model()
    _, routings = case.forward(model, case.tokens, policy=RoutingPolicy(top_k=1))
    is_one = all(len(routing.expert_ids) == B * L for routing in routings)
    require(is_one, case.name, "policy=RoutingPolicy(top_k=1) does not reach the layers with experts.")


def check_padding(case: _Case) -> None:
    """Padding at the end of a sequence changes no other logits, and is not routed."""
    model, length = case.random_model(), L // 2
    mask = (torch.arange(L) < length).expand(B, L)
    logits, routings = case.forward(model, case.tokens.masked_fill(~mask, 1), mask=mask)
    expected, _ = case.forward(model, case.tokens[:, :length])
    require(equal(expected, logits[:, :length]), case.name, "padding changes the logits of other tokens.")
    is_routed = any(routing.num_tokens != B * length for routing in routings)
    require(not is_routed, case.name, "padding is routed: it takes the place of tokens, and is counted.")


def check_seed(case: _Case) -> None:
    """Equal seeds give equal weights, whatever torch's own generator; another seed gives others."""
    drawn = []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            drawn.append([parameter.detach() for parameter in case.model(seed=seed).parameters()])
    same = [all(torch.equal(*pair) for pair in zip(drawn[0], other, strict=True)) for other in drawn[1:]]
    require(same[0], case.name, "reset_parameters(seed) does not draw all weights from its seed.")
    require(not same[1], case.name, "reset_parameters(seed) draws the same weights for every seed.")


def check_costs(case: _Case) -> None:
    """The stated parameters are those that are counted, and so are the FLOPs within 2 %, where torch counts them."""
    model = case.random_model()
    with expected_to_run(case.name, "estimate_cost"):
        cost = estimate_cost(case.config, V)
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    require(counted == cost.num_params, case.name, f"{cost.num_params} parameters are stated, {counted} are counted.")
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return  # torch does not count the products of fused recurrent layers
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        case.forward(model, case.tokens)
    flops, total = cost.forward_flops_per_token * B * L, counter.get_total_flops()
    require(abs(total - flops) <= 0.02 * flops, case.name, f"{flops} FLOPs are stated, and torch counts {total}.")


CHECKS: tuple[Callable[[_Case], None], ...] = (
    check_logits,
    check_gradients,
    check_evaluation,
    check_batch,
    check_causality,
    check_policy,
    check_padding,
    check_seed,
    check_costs,
)
