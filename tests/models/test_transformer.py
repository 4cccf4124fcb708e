"""Transformers over tokens: who sees whom, uniform at first, experts where they belong. B sequences, L positions, V tokens."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_cli.config.balances import NoBalance
from moe_cli.config.routers import RandomConfig, SwitchConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import ConfigError
from moe_cli.execution.trained_model import load_trained
from moe_cli.models.blocks import make_norm
from moe_cli.models.registry import make_model
from moe_cli.models.transformer import Transformer
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.training.generate import SamplingParams, sample
from tests.tiny import TINY, finish, randomise, tiny_config

V, L = 11, 9
ROUTERS: dict[str, dict[str, Any]] = {
    "topk": {"router": TopKConfig()},
    "switch": {"router": SwitchConfig(jitter=0.0), "k": 1},
    "dense": {"expert": 1, "k": 1},
}


BERT = TINY["bert"]


def config(**changes: Any) -> RunConfig:
    return tiny_config(Path("text"), **changes)


def model_of(**changes: Any) -> Transformer:
    """A float64 model with every weight at random."""
    return randomise(make_model(config(**changes), V)).double()  # type: ignore[return-value]


def tokens(batch: int = 3) -> Tensor:
    return torch.randint(V, (batch, L), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", ROUTERS)
def test_no_output_sees_a_later_token(router: str, training: bool) -> None:
    """Changing token t changes no logits before t, and does change those at t; dropless, for every causal router."""
    model = model_of(**ROUTERS[router]).train(training)
    x = tokens()
    before = model(x)[0]
    for t in range(L):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after = model(changed)[0]
        torch.testing.assert_close(before[:, :t], after[:, :t], rtol=1e-10, atol=1e-10)
        assert ((before[:, t] - after[:, t]).abs().amax(-1) > 1e-6).all()


def answers(model: Transformer, changed: int, **given: Any) -> Tensor:
    """[L], how much the logits of each position of one sequence answer to a change of one token."""
    x = tokens(1)
    other = x.clone()
    other[0, changed] = (other[0, changed] + 1) % V
    return (model(x, **given)[0] - model(other, **given)[0]).abs().amax(-1)[0]


@pytest.mark.parametrize("router", ROUTERS)
def test_an_encoder_sees_all(router: str) -> None:
    """Every token of a sequence moves the logits at every position."""
    model = model_of(**{**BERT, **ROUTERS[router]})
    assert all((answers(model, t) > 1e-6).all() for t in range(L))


@pytest.mark.parametrize("kv_lora_rank", [None, 6])
def test_a_window_is_all_that_a_position_sees(kv_lora_rank: int | None) -> None:
    """One block sees `window` positions, itself the last; two see as far as twice that less one."""
    for num_layers, reach in ((1, 3), (2, 5)):
        model = model_of(model={"num_layers": num_layers, "sliding_window": 3, "kv_lora_rank": kv_lora_rank})
        for t in range(L):
            assert list(range(t, min(L, t + reach))) == (answers(model, t) > 1e-9).nonzero().flatten().tolist()


def test_a_window_of_an_encoder_has_two_sides() -> None:
    """window=2 is the position and its neighbours."""
    model = model_of(**{**BERT, "model": replace(BERT["model"], num_layers=1, sliding_window=2)})
    assert [2, 3, 4] == (answers(model, 3) > 1e-9).nonzero().flatten().tolist()


@pytest.mark.parametrize("family", [{}, {"model": {"ngrams": 3}}, BERT])
def test_padding_is_seen_by_no_token_and_routed_nowhere(family: dict[str, Any]) -> None:
    """The logits of a padded batch are those of each sequence alone, and no expert counts a padded place."""
    model = model_of(**family)
    x = tokens()
    lengths = [L, 5, 2]
    mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    logits, routings = model(x, mask)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(model(x[row : row + 1, :length])[0][0], logits[row, :length], rtol=1e-9, atol=1e-9)
    assert torch.isfinite(logits).all()
    assert [sum(lengths)] * 2 == [routing.num_tokens for routing in routings]


@pytest.mark.parametrize("family", [{"model": {"position_encoding": "rope"}}, {"model": {"ngrams": 3}}, BERT])
def test_documents_of_one_window_do_not_see_each_other(family: dict[str, Any]) -> None:
    """A change of one document moves no logits of another; within a document all is as before."""
    model = model_of(**family)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    for t in range(L):
        moved = answers(model, t, documents=documents) > 1e-9
        assert not moved[documents[0] != documents[0, t]].any()
        assert moved[t]
    # Rotary positions are relative, so a document in the middle has the logits that it has alone.
    x = tokens(1)
    alone = model(x[:, 3:7])[0]
    torch.testing.assert_close(alone, model(x, documents=documents)[0][:, 3:7], rtol=1e-5, atol=1e-5)


def test_dropout_of_attention_is_its_own_where_it_is_set() -> None:
    """attention_dropout alone makes training uncertain, and 0 takes the attention out of `dropout`."""
    for changes, uncertain in (({"attention_dropout": 0.5}, True), ({"dropout": 0.0, "attention_dropout": 0.0}, False)):
        model = model_of(model=changes)
        torch.manual_seed(0)
        assert uncertain == (not torch.equal(model(tokens())[0], model(tokens())[0]))
    assert 0.0 == model_of(model={"dropout": 0.3, "attention_dropout": 0.0}).blocks[0].attention.dropout
    assert 0.3 == model_of(model={"dropout": 0.3}).blocks[0].attention.dropout


@pytest.mark.parametrize("router", ROUTERS)
def test_a_sequence_does_not_see_its_batch(router: str) -> None:
    """Dropless, each sequence alone has the logits that it has in a batch."""
    model = model_of(**ROUTERS[router])
    x = tokens()
    alone = torch.cat([model(row[None])[0] for row in x])
    torch.testing.assert_close(alone, model(x)[0], rtol=1e-10, atol=1e-10)


def test_ngrams_start_at_zero_with_any_initialisation() -> None:
    """The tables of n-grams are zero with and without model.init_std, so that unseen n-grams add nothing."""
    for init_std in (None, 0.02):
        model = make_model(config(model={"ngrams": 3, "init_std": init_std}), V)
        assert not model.ngrams.weight.any()


@pytest.mark.parametrize("ngrams", [1, 3])
def test_a_new_model_guesses_uniformly(ngrams: int) -> None:
    """The first loss is exactly ln V, whatever the tokens: head and residual branches start at zero."""
    model = make_model(config(model={"ngrams": ngrams}), V)
    logits = model(tokens())[0]
    assert math.log(V) == pytest.approx(F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).item(), rel=1e-6)
    for layer in model.blocks:
        assert not layer.attention.out.weight.any()
        assert not layer.ffn.experts.w_out.any()
        assert layer.ffn.experts.w_in.any()


def test_a_tied_head_is_the_embedding() -> None:
    """Tied, the logits are products with the embedding, and V * D parameters are saved."""
    tied, untied = (make_model(config(model={"tie_embeddings": tie}), V) for tie in (True, False))
    assert tied.head is None
    counts = [sum(param.numel() for param in model.parameters()) for model in (tied, untied)]
    assert V * 16 == counts[1] - counts[0]
    x = tokens()
    # With silent branches the embedding goes straight to the last norm.
    logits = F.rms_norm(tied.embedding(x), (16,)) @ tied.embedding.weight.T
    torch.testing.assert_close(logits, tied(x)[0])


@pytest.mark.parametrize(
    ("every", "first", "sparse"),
    [
        (1, 0, [0, 1, 2, 3]),
        (2, 0, [1, 3]),
        (3, 0, [2]),
        (4, 0, [3]),
        (1, 1, [1, 2, 3]),
        (2, 1, [1, 3]),
        (2, 2, [3]),
        (1, 3, [3]),
    ],
)
def test_which_blocks_have_experts(every: int, first: int, sparse: list[int]) -> None:
    """The last of every `moe_layer_freq`, none of the `first_k_dense`; each gives a routing, and cost's count agrees."""
    asked = config(model={"num_layers": 4, "moe_layer_freq": every, "first_k_dense": first})
    model = make_model(asked, V)
    assert sparse == [i for i, block in enumerate(model.blocks) if isinstance(block.ffn, MoELayer)]
    assert sparse == list(asked.sparse_layers)
    assert len(sparse) == len(moe_layers(model)) == len(model(tokens())[1])


def test_learned_positions_are_added_to_the_embedding() -> None:
    """The logits of silent branches are those of the norm of token plus position."""
    model = make_model(config(model={"position_encoding": "learned"}), V)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    x = tokens()
    summed = model.embedding.weight[x] + model.positions.weight[torch.arange(x.shape[1])]
    torch.testing.assert_close(model(x)[0], F.rms_norm(summed, (16,)) @ model.head.weight.T)


def test_a_cap_bounds_the_logits() -> None:
    """c tanh(logits / c): the same order, never beyond c."""
    plain, capped = (randomise(make_model(config(model={"logit_softcap": cap}), V)) for cap in (None, 2.0))
    logits, bounded = plain(tokens())[0], capped(tokens())[0]
    torch.testing.assert_close(bounded, 2 * torch.tanh(logits / 2))
    assert logits.abs().max() > 2 > bounded.abs().max()


def test_weights_as_in_gpt_2() -> None:
    """Standard deviation 0.02, that of a branch's last matrix over sqrt(2 layers); experts by expert_init_scale."""
    sizes = {
        "d_model": 128,
        "d_ff": 256,
        "d_expert": 256,
        "num_layers": 2,
        "first_k_dense": 1,
        "position_encoding": "learned",
    }
    model = make_model(config(model={**sizes, "init_std": 0.02, "expert_init_scale": 0.25}), 512)
    stds = {name: param.std().item() for name, param in model.named_parameters() if param.ndim > 1}
    expected = {name: 0.02 for name in stds if ".router." not in name}
    expected |= {name: 0.01 for name in expected if name.endswith(("out.weight", "w_out"))}
    expected |= {name: expected[name] / 2 for name in expected if ".experts." in name}
    assert expected == {name: pytest.approx(stds[name], rel=0.05) for name in expected}
    assert 11 == len(expected)


def test_layer_norm_is_the_formula() -> None:
    """Mean and variance taken out, scaled, no bias."""
    norm = make_norm(config(model={"norm": "layer"}).model)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(norm(x), centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt())
    assert 1 == len(list(norm.parameters()))


def test_a_dense_model_routes_nothing() -> None:
    """expert=1 has no router and no routing."""
    model = make_model(config(expert=1, k=1), V)
    assert ([], []) == (moe_layers(model), model(tokens())[1])


def test_a_routing_covers_every_token_of_the_batch() -> None:
    """Each layer asks K experts for each of the B * L tokens."""
    for routing in model_of()(tokens())[1]:
        assert (3 * L, 4) == tuple(routing.probs.shape)
        assert 2 * 3 * L == len(routing.expert_ids)


def test_qk_norm_reaches_the_attention() -> None:
    """The option changes what the same weights answer."""
    x = tokens()
    assert not torch.allclose(model_of(model={"qk_norm": True})(x)[0], model_of(model={"qk_norm": False})(x)[0])


@pytest.mark.parametrize(
    "model", [{"ffn_type": "glu"}, {"activation": "gelu"}, {"shared_experts": 1}, {"rope_base": 10.0}]
)
def test_options_reach_the_blocks(model: dict[str, Any]) -> None:
    """Another kind of expert, activation, shared expert or base changes what the model answers."""
    assert not torch.allclose(model_of()(tokens())[0], model_of(model=model)(tokens())[0])


def test_dropout_acts_in_training_alone() -> None:
    """Dropout also falls on the embedding; at evaluation the model is certain."""
    model = model_of(model={"dropout": 0.3})
    torch.manual_seed(0)
    assert not torch.equal(model(tokens())[0], model(tokens())[0])
    assert not torch.equal(model.embedding_dropout(torch.ones(99)), torch.ones(99))
    model.eval()
    assert torch.equal(model(tokens())[0], model(tokens())[0])


def test_the_seed_alone_decides_the_weights() -> None:
    """The same seed gives the same weights however random numbers stand; another seed gives others."""
    states = []
    for noise, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(noise)
        states.append(make_model(config(seed=seed), V).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["embedding.weight"], states[2]["embedding.weight"])


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("router", [*ROUTERS, "random"])
def test_one_batch_can_be_learned_by_heart(router: str) -> None:
    """A few dozen steps on one batch bring the loss near zero: the gradient reaches what it must."""
    torch.manual_seed(0)
    model = make_model(config(**ROUTERS.get(router, {"router": RandomConfig(), "balance": NoBalance()})), V)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    # The next token is a function of the position and the sequence: nothing to memorise but the batch.
    x = tokens(2)
    for _ in range(60):
        loss = F.cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_model_may_have_more_tokens_than_its_data(text_file: Path, tmp_path: Path) -> None:
    """model.vocab_size is the number of rows; rows without a token are never drawn; too few rows are refused."""
    config = tiny_config(text_file, model={"vocab_size": 300}, train={"steps": 2})
    run = finish(config, tmp_path)
    trained = load_trained(run, tmp_path)
    assert (300, 16) == trained.model.embedding.weight.shape == trained.model.head.weight.shape
    assert estimate_cost(config, 300).num_params == (run.summary() or {})["params"]
    drawn = list(sample(trained.model, [1], 80, 16, SamplingParams(50.0), seed=0, vocab_size=256))
    assert max(drawn) < 256 <= max(sample(trained.model, [1], 80, 16, SamplingParams(50.0), seed=0))
    with pytest.raises(ConfigError, match=r"model.vocab_size=200 is less than the 256 tokens of the data"):
        finish(tiny_config(text_file, model={"vocab_size": 200}), tmp_path)
