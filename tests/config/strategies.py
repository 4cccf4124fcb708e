"""Configurations that hold together, for properties that are true of all of them."""

from typing import get_args

from hypothesis import assume
from hypothesis import strategies as st

from moe_cli.config import balances, optim, routers, schema, training
from moe_cli.config.data import PackagedCorpusConfig, TextFilesConfig, TokenFilesConfig
from moe_cli.config.model import GPTConfig
from moe_cli.config.resolve import resolve
from moe_cli.errors import ConfigError

ROUTERS = (
    routers.TopKConfig(),
    routers.TopKConfig(renormalise=False),
    routers.SwitchConfig(jitter=0.1),
    routers.RandomConfig(),
    None,
)
BALANCES = (
    balances.SwitchBalance(),
    balances.WeightedBalance(name="z", weight=0.5),
    balances.LossFreeBalance(),
    balances.QuantileBalance(),
    balances.SwitchBalance(weight=0.001, scope="global"),
    balances.CombinedBalance(
        "switch+z", switch=balances.SwitchBalance(scope="sequence"), z=balances.WeightedBalance(name="z")
    ),
    balances.NoBalance(),
    None,
)
OPTIMIZERS = (
    optim.MuonConfig(),
    optim.MuonConfig(schedule="cosine", warmup_fraction=0.1, grad_clip=None),
    optim.AdamWConfig(schedule="constant"),
    optim.AdamWConfig(schedule="wsd", decay_fraction=0.3, min_lr_ratio=0.0),
)


@st.composite
def configs(draw: st.DrawFn) -> schema.RunConfig:
    """A valid configuration as a user may leave it, with much of it open."""
    model = GPTConfig(
        d_ff=draw(st.integers(256, 2048)),
        ffn_type=draw(st.sampled_from(["glu", "mlp"])),
        shared_experts=draw(st.integers(0, 2)),
        moe_layer_freq=draw(st.integers(1, 4)),
    )
    budget = draw(
        st.sampled_from([{}, {"steps": 7}, {"tokens": 1000}, {"flops": 1e12}, {"model_flops": 1e12}, {"minutes": 0.5}])
    )
    data = draw(
        st.sampled_from(
            [
                PackagedCorpusConfig(name="python"),
                TextFilesConfig(path="/text/a.txt"),
                TokenFilesConfig(path="/tokens", vocab_size=50_257),
            ]
        )
    )
    try:
        config = schema.RunConfig(
            expert=draw(st.sampled_from([1, 2, 8, 64])),
            k=draw(st.sampled_from([None, 1, 2, 6])),
            capacity=draw(st.sampled_from([None, 0.5, 1.25])),
            drop=draw(st.sampled_from([None, "position", "probability"])),
            match=draw(st.sampled_from(get_args(schema.Match))),
            seed=draw(st.integers(0, 5)),
            model=model,
            router=draw(st.sampled_from(ROUTERS)),
            balance=draw(st.sampled_from(BALANCES)),
            data=data,
            optim=draw(st.sampled_from(OPTIMIZERS)),
            train=training.TrainConfig(**budget),
            eval=training.EvalConfig(k=draw(st.sampled_from([None, 1])), capacity=draw(st.sampled_from([None, 1.0]))),
        )
        resolve(config)
    except ConfigError:
        assume(False)
    return config
