"""Does a balancing loss keep the promises of one? T tokens, E experts, K chosen experts per token."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moe_cli.config.balances import BalanceConfig
from moe_cli.config.build import build
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import read_choice
from moe_cli.errors import ConfigError
from moe_cli.moe.balance import auxiliary_losses
from moe_cli.moe.routing import Routing, routing_from_top_k
from moe_cli.plugins import Plugin
from moe_cli.testing.promise import equal, expected_to_run, random_tokens, require

T, E, K = 24, 4, 2


@dataclass(frozen=True)
class _Case:
    """A loss under test; `compute` computes it from the routing of one layer."""

    name: str
    compute: Callable[[Routing], Tensor]

    def loss(self, routing: Routing) -> Tensor:
        with expected_to_run(self.name, f"the loss of {routing.num_tokens} tokens and {routing.num_experts} experts"):
            loss = self.compute(routing)
        require(isinstance(loss, Tensor) and loss.ndim == 0, self.name, "the loss is no scalar tensor.")
        require(bool(loss.isfinite()), self.name, f"the loss of {routing.num_tokens} tokens is {loss.item()}.")
        return loss


def check_balance(
    balance: Plugin | Callable[..., Tensor] | BalanceConfig | str, config: BalanceConfig | None = None
) -> None:
    """Checks a balancing loss: its gradient, the order of tokens and experts, drops, and that collapse costs more.

    Args:
        balance: a plug-in, a function `loss(routing, config)`, the settings of a method, or a name.
        config: the settings; None means the defaults.

    Raises:
        AssertionError: the first promise that is broken.
    """
    case = _case(balance, config)
    for check in CHECKS:
        check(case)


def _case(balance: Any, config: BalanceConfig | None) -> _Case:
    name = balance if isinstance(balance, str) else getattr(balance, "name", "") or getattr(balance, "__name__", "")
    if isinstance(balance, Plugin):
        code = balance.code()
        settings = config or (balance.config() if balance.config else None)
        return _Case(name, lambda routing: code(routing, config=settings))
    if callable(balance):
        return _Case(name, lambda routing: balance(routing, config=config))
    settings = config or (_named(balance) if isinstance(balance, str) else balance)
    if not auxiliary_losses(settings, [_routing(random_tokens(T, E))]):
        raise AssertionError(f"{name}: it is no loss.")
    return _Case(name, lambda routing: torch.stack(list(auxiliary_losses(settings, [routing]).values())).sum())


def _named(name: str) -> BalanceConfig:
    try:
        values = read_choice("balance", name)
    except OSError:
        values = {"name": name}
    try:
        balance: BalanceConfig = RunConfig(balance=build_balance(values)).balance  # type: ignore[assignment]
    except ConfigError as error:
        raise AssertionError(f"{name}: {error}") from None
    return balance


def build_balance(values: dict[str, Any]) -> Any:
    return build(RunConfig, {"balance": values}).balance


def _routing(logits: Tensor) -> Routing:
    """Returns the routing of a top-k router with weights that sum to 1; with noise, as router=noisy_topk has it."""
    top_k = min(K, logits.shape[1])
    expert_ids = logits.detach().argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    noise = torch.ones_like(logits)
    return routing_from_top_k(
        logits,
        logits.softmax(-1),
        expert_ids,
        logits.gather(1, expert_ids).softmax(-1),
        clean_logits=logits,
        noise_std=noise,
    )


def check_gradient(case: _Case) -> None:
    """The loss has a finite gradient for the gate's logits, and is the same twice."""
    logits = random_tokens(T, E).requires_grad_()
    loss = case.loss(_routing(logits))
    require(loss.requires_grad, case.name, "the loss has no gradient: it was computed from detached values.")
    loss.backward()
    grad = logits.grad
    require(grad is not None and bool(grad.any()), case.name, "no gradient reaches the gate: the loss teaches nothing.")
    require(grad is None or bool(grad.isfinite().all()), case.name, "the gradient is not finite.")
    require(equal(loss, case.loss(_routing(logits))), case.name, "the loss is not the same twice.")


def check_record_is_kept(case: _Case) -> None:
    """The loss changes no tensor of the record, which the layer and the metrics read too."""
    logits = random_tokens(T, E)
    routing = _routing(logits)
    before = [tensor.clone() for tensor in (routing.probs, routing.weights, routing.expert_ids, routing.kept)]
    case.loss(routing)
    after = (routing.probs, routing.weights, routing.expert_ids, routing.kept)
    is_same = all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
    require(is_same and torch.equal(logits, routing.logits), case.name, "the loss changes the record of the routing.")


def check_order(case: _Case) -> None:
    """Neither the order of tokens nor the numbers of experts matter."""
    logits, draw = random_tokens(T, E), torch.Generator().manual_seed(3)
    loss = case.loss(_routing(logits))
    tokens = case.loss(_routing(logits[torch.randperm(T, generator=draw)]))
    require(equal(loss, tokens), case.name, "the loss depends on the order of the tokens.")
    experts = case.loss(_routing(logits[:, torch.tensor([2, 3, 1, 0])]))
    require(equal(loss, experts), case.name, "the loss depends on the numbers of the experts.")


def check_drops(case: _Case) -> None:
    """Load is counted before drops: what a full expert drops still counts."""
    routing = _routing(random_tokens(T, E))
    half = torch.arange(len(routing.kept)) % 2 == 0
    kept = case.loss(replace(routing, kept=half, is_dropless=False))
    require(equal(case.loss(routing), kept), case.name, "the loss counts kept assignments, not all of them.")


def check_collapse(case: _Case) -> None:
    """All tokens on the same experts cost at least as much as tokens that are even, with equal certainty."""
    certain = torch.full((T, E), -8.0, dtype=torch.float64)
    places = torch.arange(T)[:, None] * K + torch.arange(K)
    even = case.loss(_routing(certain.scatter(1, places % E, 8.0)))
    collapsed = case.loss(_routing(certain.scatter(1, torch.arange(K).expand(T, K), 8.0)))
    is_larger = float(collapsed) >= float(even) - 1e-6
    require(is_larger, case.name, f"collapse costs {float(collapsed):.4g}, less than even load, {float(even):.4g}.")


def check_small_batches(case: _Case) -> None:
    """No tokens, one token and one expert give a finite loss."""
    for tokens, experts in ((0, E), (1, E), (T, 1)):
        case.loss(_routing(random_tokens(tokens, experts)))


CHECKS: tuple[Callable[[_Case], None], ...] = (
    check_gradient,
    check_record_is_kept,
    check_order,
    check_drops,
    check_collapse,
    check_small_batches,
)
