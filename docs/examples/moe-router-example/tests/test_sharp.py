"""The router keeps every promise of a router, and with a sharpness of 1 it is topk."""

import torch
from moe_router_example import SharpConfig
from moe_router_example.router import SharpRouter

from moe_cli import MoELayer
from moe_cli.testing import check_router


def test_the_router_keeps_its_promises():
    check_router(SharpRouter)
    check_router(SharpRouter, SharpConfig(score="cosine", sharpness=5.0))


def test_with_sharpness_one_it_is_topk():
    layer, topk = (MoELayer(8, 4, 2, 6, router=router) for router in (SharpConfig(sharpness=1.0), "topk"))
    topk.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8)
    assert torch.allclose(layer(x)[0], topk(x)[0])
