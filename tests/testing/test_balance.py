"""The kit for balancing losses: it passes what is built in, and names each planted fault."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_cli.config.balances import SwitchBalance
from moe_cli.moe.balance import LOSSES, load_balancing_loss
from moe_cli.moe.routing import Routing
from moe_cli.testing import check_balance

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.mark.parametrize("name", ["switch", *LOSSES])
def test_every_loss_passes(name: str) -> None:
    check_balance(name)


def test_settings_and_functions_pass() -> None:
    check_balance(SwitchBalance(scope="sequence"))
    check_balance(lambda routing, config: load_balancing_loss(routing))


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(AssertionError, match="loss_free: it is no loss"):
        check_balance("loss_free")


def rewarded(routing: Routing, config: None) -> Tensor:
    return -load_balancing_loss(routing)


def detached(routing: Routing, config: None) -> Tensor:
    return load_balancing_loss(routing).detach()


def only_counted(routing: Routing, config: None) -> Tensor:
    return routing.tokens_per_expert.double().var() + 0 * routing.probs.sum()


def per_expert(routing: Routing, config: None) -> Tensor:
    return routing.probs.mean(0)


def after_drops(routing: Routing, config: None) -> Tensor:
    share = routing.kept_per_expert / max(1, len(routing.kept))
    return (share * routing.probs.sum(0)).sum() / max(1, routing.num_tokens)


def changes_the_record(routing: Routing, config: None) -> Tensor:
    loss = load_balancing_loss(routing)
    routing.kept[:1] = False
    return loss


def by_place(routing: Routing, config: None) -> Tensor:
    places = torch.arange(routing.num_tokens).unsqueeze(1)
    return load_balancing_loss(routing) + (places * routing.probs.square()).mean(0).sum()


def by_number(routing: Routing, config: None) -> Tensor:
    return load_balancing_loss(routing) + routing.probs[:, :1].square().sum()


def not_for_none(routing: Routing, config: None) -> Tensor:
    counts = routing.tokens_per_expert / routing.num_tokens
    return (counts * routing.probs.mean(0)).sum()


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (rewarded, "less than even load"),
        (detached, "the loss has no gradient"),
        (only_counted, "no gradient reaches the gate"),
        (per_expert, "the loss is no scalar tensor"),
        (after_drops, "the loss counts kept assignments"),
        (changes_the_record, "the loss changes the record"),
        (by_place, "depends on the order of the tokens"),
        (by_number, "depends on the numbers of the experts"),
        (not_for_none, "the loss of 0 tokens is nan"),
    ],
)
def test_a_fault_is_named(loss: Callable[..., Tensor], sentence: str) -> None:
    """One fault, one sentence that begins with the name of the function."""
    with pytest.raises(AssertionError) as error:
        check_balance(loss)
    assert str(error.value).startswith(f"{loss.__name__}: ")
    assert sentence in str(error.value)
