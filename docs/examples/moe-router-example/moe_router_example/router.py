"""The code of router=sharp. T tokens, E experts, K chosen per token."""

from moe_cli.moe.routers.router import GatedRouter
from moe_cli.moe.routing import routing_from_top_k
from moe_router_example import SharpConfig


class SharpRouter(GatedRouter):
    """Selects the K largest of a softmax; its weights are a sharper softmax over them."""

    config: SharpConfig

    def route(self, tokens, token_ids, policy):
        logits, probs = self.scores(tokens)
        experts = self.select_experts(probs, policy)
        weights = (self.config.sharpness * logits.gather(1, experts)).softmax(-1)
        return routing_from_top_k(logits, probs, experts, weights)
