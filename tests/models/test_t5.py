"""The encoder-decoder transformer: who sees whom, where experts are, and T5 as transformers has it. L read, M written, V tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_cli.config.compose import load_config
from moe_cli.config.routers import ExpertChoiceConfig, SoftConfig, SwitchConfig
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.models.t5 import T5, relative_position_bucket
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.sparse_layer import moe_layers
from tests.elided import Elided
from tests.tiny import TINY, randomise, tiny_config

V, L, M = 13, 9, 5
T5_TINY = TINY["t5"]


def model_of(**changes: Any) -> T5:
    """A float64 model with every weight at random."""
    sizes = changes.pop("model", {})
    config = tiny_config(Path("text"), **{**T5_TINY, "model": replace(T5_TINY["model"], **sizes), **changes})
    return randomise(make_model(config, V)).double().eval()  # type: ignore[return-value]


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    read, written = (torch.randint(V, (2, length), generator=generator) for length in (L, M))
    return read, written


ROUTERS: dict[str, dict[str, Any]] = {
    "topk": {},
    "switch": {"router": SwitchConfig(), "k": 1},
    "dense": {"expert": 1, "k": 1},
}


@pytest.mark.parametrize("router", ROUTERS)
def test_the_decoder_sees_no_later_token_and_the_encoder_all(router: str) -> None:
    """A token that is written moves the logits from its place on; one that is read moves all of them."""
    model = model_of(**ROUTERS[router])
    read, written = tokens()
    before = model(read, written)[0]
    for place in range(M):
        other = written.clone()
        other[:, place] = (other[:, place] + 1) % V
        moved = (model(read, other)[0] - before).abs().amax(-1) > 1e-9
        assert torch.equal((torch.arange(M) >= place).expand(2, -1), moved)
    for place in range(L):
        other = read.clone()
        other[:, place] = (other[:, place] + 1) % V
        assert ((model(other, written)[0] - before).abs().amax(-1) > 1e-9).all()


def test_every_position_of_the_encoder_sees_all() -> None:
    """The encoder's output at every position changes with any input token."""
    model = model_of()
    read, _ = tokens()
    encode = lambda shown: model._run_stack(shown, model.encoder_bias, None, None)[0]  # noqa: E731
    for place in range(L):
        other = read.clone()
        other[:, place] = (other[:, place] + 1) % V
        assert ((encode(other) - encode(read)).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize(
    ("sizes", "sparse"),
    [
        ({"num_layers": 4, "moe_layer_freq": 2}, [1, 3]),
        ({"num_layers": 4, "moe_layer_freq": 1}, [0, 1, 2, 3]),
        ({"num_layers": 8, "moe_layer_freq": 2, "first_k_dense": 2}, [3, 7]),
        ({"num_layers": 6, "moe_layer_freq": 2}, [1, 4]),
    ],
)
def test_experts_are_in_both_stacks_alike(sizes: dict[str, int], sparse: list[int]) -> None:
    """The last layer of every `moe_layer_freq` of each stack; the encoder's routings come first, each of its own tokens."""
    model = model_of(model=sizes)
    assert sparse == [layer for layer, block in enumerate(model.blocks) if isinstance(block.ffn, MoELayer)]
    half = len(sparse) // 2
    assert [2 * L] * half + [2 * M] * half == [each.num_tokens for each in model(*tokens())[1]]


def test_buckets_of_distances_by_hand() -> None:
    """8 buckets for two sides, 4 each: 0 and 1 alone, 2 and 3, from 4 on; later keys have the upper half. 8 for one
    side: 0 to 3 alone, then by the logarithm up to 32.
    """
    away = torch.tensor([[-9, -4, -3, -1, 0, 1, 2, 5, 40]])
    assert [3, 3, 2, 1, 0, 5, 6, 7, 7] == relative_position_bucket(away, 8, 8, both_sides=True)[0].tolist()
    away = torch.tensor([[-100, -32, -19, -18, -7, -6, -4, -3, 0, 3]])
    # 4 + 4 ln(d / 4) / ln 8: 6.998 for 18.99, so that 7 begins at 19.03; 5 begins at 6.73.
    assert [7, 7, 6, 6, 5, 4, 4, 3, 0, 0] == relative_position_bucket(away, 8, 32, both_sides=False)[0].tolist()


def test_it_starts_as_the_uniform_guess() -> None:
    """The loss of a fresh model is ln V, and none of its branches says anything."""
    model = make_model(tiny_config(Path("text"), **T5_TINY), V)
    assert torch.equal(model(*tokens())[0], torch.zeros(2, M, V))


def their_weights(model: T5) -> dict[str, Tensor]:
    """Those of a dense tied model by the names that transformers has for them."""
    ours = dict(model.named_parameters())
    weights = dict.fromkeys(("shared.weight", "lm_head.weight"), ours["embedding.weight"])
    for stack, norm in (("encoder", "encoder_norm"), ("decoder", "norm")):
        distances = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[distances] = ours[f"{stack}_bias.positions.weight"]
        weights[f"{stack}.embed_tokens.weight"] = ours["embedding.weight"]
        weights[f"{stack}.final_layer_norm.weight"] = ours[f"{norm}.weight"]
    for number in range(len(model.blocks)):
        stack, here = ("decoder" if number >= model.layers_per_stack else "encoder"), f"blocks.{number}."
        there = f"{stack}.block.{number % model.layers_per_stack}.layer."
        parts = [("attention", "SelfAttention"), ("cross_attention", "EncDecAttention")][: 1 + (stack == "decoder")]
        for place, (own, other) in enumerate(parts):
            k, v = ours[f"{here}{own}.kv.weight"].chunk(2)
            q, out = ours[f"{here}{own}.q.weight"], ours[f"{here}{own}.out.weight"]
            # They do not divide scores by sqrt(W).
            each = {"q": q / model.blocks[0].attention.d_head ** 0.5, "k": k, "v": v, "o": out}
            weights |= {f"{there}{place}.{other}.{name}.weight": weight for name, weight in each.items()}
        norms = ["attention_norm", "cross_norm", "ffn_norm"] if stack == "decoder" else ["attention_norm", "ffn_norm"]
        weights |= {
            f"{there}{place}.layer_norm.weight": ours[f"{here}{norm}.weight"] for place, norm in enumerate(norms)
        }
        for name in ("i", "o"):
            weight = ours[here + ("ffn.w_in" if name == "i" else "ffn.w_out")]
            weights[f"{there}{len(parts)}.DenseReluDense.w{name}.weight"] = weight
    return weights


@pytest.mark.peers
def test_it_is_t5() -> None:
    """Logits of transformers' T5 with the same weights; its norms compute in float32."""
    from transformers import T5Config as PeerConfig
    from transformers import T5ForConditionalGeneration

    sizes = {
        "activation": "relu",
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6,
        "tie_embeddings": True,
    }
    model = model_of(expert=1, k=1, model=sizes)
    peer = (
        T5ForConditionalGeneration(
            PeerConfig(
                vocab_size=V,
                d_model=16,
                d_kv=4,
                d_ff=32,
                num_layers=2,
                num_heads=4,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=6,
                dropout_rate=0.0,
                feed_forward_proj="relu",
                tie_word_embeddings=False,  # here: do not scale what comes before the head, which is tied all the same
            )
        )
        .double()
        .eval()
    )
    peer.load_state_dict(their_weights(model))
    read, written = tokens()
    theirs = peer(input_ids=read, decoder_input_ids=written).logits
    torch.testing.assert_close(model(read, written)[0], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("router", [ExpertChoiceConfig(), SoftConfig()])
def test_routers_that_look_ahead_are_refused(router: Any) -> None:
    """The decoder is causal."""
    with pytest.raises(ConfigError, match="looks at later tokens to place earlier ones"):
        model_of(router=router)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.num_layers=3"], "model.num_layers=3 is odd: encoder and decoder have half of the layers each."),
        (
            ["model.num_layers=2"],
            "model.moe_layer_freq=2 ... model.num_layers=2 over 2 stacks: ...",
        ),
        (
            ["model.relative_attention_num_buckets=6"],
            "model.relative_attention_num_buckets=6 must be a multiple of 4: each direction has half of them.",
        ),
        (
            ["model.relative_attention_max_distance=16"],
            "model.relative_attention_max_distance=16 must be above half of model.relative_attention_num_buckets=32: each near distance has a bucket.",
        ),
        (
            ["task.num_sentinels=5"],
            "task.num_sentinels=5 is too few: windows of model.context_length=128 have 6 spans, and the end needs one. "
            "Use task.num_sentinels=7",
        ),
        (["task=causal_lm"], "model=t5 cannot do task=causal_lm. Use model=gpt or lstm, or task=span_corruption"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    """Settings that cannot be, and what to do."""
    with pytest.raises(ConfigError) as error:
        load_config(["model=t5", *words])
    assert Elided(message) == str(error.value)


@pytest.mark.parametrize("wanted", [["model=t5"], ["task=span_corruption"]])
def test_model_and_task_bring_each_other_along(wanted: list[str]) -> None:
    """One of them is enough."""
    config = load_config(wanted).config
    assert ("t5", "span_corruption", "python") == (config.model.name, config.task.name, config.data.name)


@pytest.mark.usefixtures("unchecked_shapes")
def test_one_batch_can_be_learned_by_heart() -> None:
    """A hundred steps on one batch leave next to no loss."""
    torch.manual_seed(0)
    model = make_model(tiny_config(Path("text"), **T5_TINY), V)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    read, written = tokens()
    for _ in range(100):
        loss = F.cross_entropy(model(read, written)[0].flatten(0, 1), written.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert 2 == len(moe_layers(model))
