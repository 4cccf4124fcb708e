"""The kit for routers: it passes what is built in, and names the fault of each router with one planted fault."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.routers import PluginRouter, TokenChoiceConfig, TopKConfig
from moe_cli.moe.routers.registry import ROUTER_CONFIGS
from moe_cli.moe.routers.router import GatedRouter, Router, top_indices
from moe_cli.moe.routing import Routing, routing_from_top_k
from moe_cli.plugins import Plugin
from moe_cli.testing import check_router

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.mark.parametrize("name", ROUTER_CONFIGS)
def test_every_router_passes(name: str) -> None:
    check_router(name)


@pytest.mark.parametrize("score", ["cosine", "mlp", "activation"])
def test_every_score_passes(score: Any) -> None:
    check_router(TopKConfig(score=score))
    check_router(TopKConfig(score="linear", null_experts=2))


@dataclass(frozen=True)
class SoundConfig(PluginRouter, TokenChoiceConfig):
    name: str = "kit_sound"
    bias_methods: ClassVar[tuple[str, ...]] = ("loss_free",)


class Sound(GatedRouter):
    """A router without a fault; those below change one thing each."""

    config: SoundConfig

    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        logits, probs = self.scores(tokens)
        chosen = self.select_experts(probs, policy)
        return routing_from_top_k(logits, probs, chosen, probs.gather(1, chosen))


plugin = Plugin(build=Sound, config=SoundConfig, conf="defaults: [_scores, _self_]\nname: kit_sound\n")


def test_a_plug_in_and_its_class_pass() -> None:
    check_router(plugin)
    check_router(Sound)
    check_router(Sound, SoundConfig(temperature=2.0))


class WithoutSettings(Sound):
    config: Any


class NoRouter(nn.Module):
    def __init__(self, *arguments: Any) -> None:
        super().__init__()


class ReturnsTheLogits(Sound):
    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        return super().route(tokens, token_ids, policy).logits  # type: ignore[return-value]


class SameExpertTwice(Sound):
    def select_experts(self, scores: Tensor, policy: Any) -> Tensor:
        return top_indices(scores, 1).expand(-1, policy.top_k or self.top_k)


class IgnoresTheNumber(Sound):
    def select_experts(self, scores: Tensor, policy: Any) -> Tensor:
        return top_indices(scores + self.expert_bias, self.top_k)


class DropsItself(Sound):
    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        routing = super().route(tokens, token_ids, policy)
        return replace(routing, kept=routing.weights > 0.3, is_dropless=False)


class WrongExpert(Sound):
    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        routing = super().route(tokens, token_ids, policy)
        return replace(routing, expert_ids=routing.expert_ids + 1)


class NotFinite(Sound):
    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        routing = super().route(tokens, token_ids, policy)
        return replace(routing, weights=routing.weights / 0)


class Detached(Sound):
    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        routing = super().route(tokens, token_ids, policy)
        return replace(routing, weights=routing.weights.detach())


class ByPlace(Sound):
    def logits(self, tokens: Tensor) -> Tensor:
        return super().logits(tokens) + torch.arange(len(tokens)).unsqueeze(1) * torch.arange(self.num_experts)


class Noisy(Sound):
    def logits(self, tokens: Tensor) -> Tensor:
        logits = super().logits(tokens)
        return logits + torch.randn_like(logits)


class Remembers(Sound):
    calls = 0

    def logits(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return super().logits(tokens) * self.calls


class Centred(Sound):
    def logits(self, tokens: Tensor) -> Tensor:
        logits = super().logits(tokens)
        return logits - logits.mean(0) if len(logits) else logits


class Overfull(Sound):
    fills_capacity = True


class SaysDropless(Sound):
    fills_capacity = True

    def route(self, tokens: Tensor, token_ids: Tensor | None, policy: Any) -> Routing:
        routing = super().route(tokens, token_ids, policy)
        first = torch.arange(len(routing.kept)) < 4
        return replace(routing, kept=first, is_dropless=True) if policy.capacity_factor else routing


class InFours(Sound):
    def logits(self, tokens: Tensor) -> Tensor:
        return super().logits(tokens.view(-1, 4, tokens.shape[1]).flatten(0, 1))


class OwnSeed(Sound):
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(None)


class WithoutBias(Sound):
    def select_experts(self, scores: Tensor, policy: Any) -> Tensor:
        return top_indices(scores, policy.top_k or self.top_k)


class MoreParameters(Sound):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale = nn.Parameter(torch.ones(self.num_experts))

    def logits(self, tokens: Tensor) -> Tensor:
        return super().logits(tokens) * self.scale


class MoreProducts(Sound):
    def logits(self, tokens: Tensor) -> Tensor:
        return super().logits(tokens) + (tokens @ tokens.T).sum(1, keepdim=True) * 0


@pytest.mark.parametrize(
    ("router", "sentence"),
    [
        (SameExpertTwice, "a token has the same expert twice"),
        (ReturnsTheLogits, "it returns Tensor, not Routing"),
        (IgnoresTheNumber, "a token has 2 experts with top_k=1"),
        (DropsItself, "it drops assignments itself"),
        (WrongExpert, "a token or an expert that does not exist"),
        (NotFinite, "a weight is not finite"),
        (Detached, "no gradient reaches gate.weight: it cannot learn"),
        (ByPlace, "depends on its place among the tokens"),
        (Noisy, "evaluation is not deterministic"),
        (Remembers, "evaluation is not deterministic"),
        (Centred, "depends on later tokens: say causal = False"),
        (Overfull, "tokens with a capacity of 6"),
        (SaysDropless, "training with a capacity raises AssertionError: is_dropless contradicts kept"),
        (InFours, "padding raises RuntimeError"),
        (OwnSeed, "reset_parameters does not draw its weights from the generator"),
        (WithoutBias, "the choice does not follow expert_bias"),
        (MoreParameters, "gate_params says 32 parameters, and there are 36"),
        (MoreProducts, "gate_flops says 1536 for 24 tokens, and torch counts 10752"),
    ],
)
def test_a_fault_is_named(router: type[Router], sentence: str) -> None:
    """One fault, one sentence that begins with the name of the class."""
    with pytest.raises(AssertionError) as error:
        check_router(router)
    assert str(error.value).startswith(f"{router.__name__}: ")
    assert sentence in str(error.value)


def test_what_is_no_router_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"kit_none: it is no subclass of moe_cli\.moe\.routers\.router\.Router"):
        check_router(Plugin(build=NoRouter, config=NoneConfig, conf="name: kit_none"))
    with pytest.raises(AssertionError, match="its settings are not known"):
        check_router(WithoutSettings)


@dataclass(frozen=True)
class NoneConfig(PluginRouter):
    name: str = field(default="kit_none")


def test_an_unknown_name_is_an_assertion_error() -> None:
    """A test framework shows it as a failed check, as for balancing losses and models."""
    with pytest.raises(AssertionError, match="router='nosuch' is not one of"):
        check_router("nosuch")
