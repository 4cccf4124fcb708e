"""The recurrent language model against a loop over time steps. B sequences, L positions, V tokens, D width."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.config.compose import load_config
from moe_cli.models.decoding_cache import LayerCache
from moe_cli.models.lstm import LSTMModel, make_lstm, reset_lstm, run_lstm
from moe_cli.models.registry import make_model
from moe_cli.moe.sparse_layer import moe_layers
from tests.tiny import TINY, randomise, tiny_config

V, L = 11, 9


def model_of(**changes: Any) -> LSTMModel:
    """A float64 model in evaluation mode with every weight at random."""
    sizes = changes.pop("model", {})
    config = tiny_config(Path("text"), **{**TINY["lstm"], "model": replace(TINY["lstm"]["model"], **sizes), **changes})
    return randomise(make_model(config, V)).double().eval()  # type: ignore[return-value]


def tokens(batch: int = 3) -> Tensor:
    return torch.randint(V, (batch, L), generator=torch.Generator().manual_seed(2))


def by_steps(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """The cell of Hochreiter and Schmidhuber with forget gates, one time step after the other; gates in torch's order."""
    h = c = torch.zeros(len(x), lstm.hidden_size, dtype=x.dtype)
    out = []
    for step in x.unbind(1):
        gates = F.linear(step, lstm.weight_ih_l0, lstm.bias_ih_l0) + F.linear(h, lstm.weight_hh_l0, lstm.bias_hh_l0)
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("sparse", [{}, {"expert": 1, "k": 1}])
def test_the_model_is_its_formula(sigmoid: bool, sparse: dict[str, Any]) -> None:
    """The model is the embedding, alternating LSTM and feed-forward, and a last LSTM, all residual, then the head."""
    model = model_of(model={"sigmoid": sigmoid}, **sparse)
    x = model.embedding.weight[tokens()]
    for block in model.blocks:
        x = x + by_steps(block.lstm, x)
        y = block.ffn(x)
        y = y if sparse else y[0]
        x = x + (y.sigmoid() if sigmoid else y)
    x = x + by_steps(model.lstm, x)
    torch.testing.assert_close(model(tokens())[0], x @ model.head.weight.T, rtol=1e-9, atol=1e-9)


def test_experts_take_all_time_steps_together() -> None:
    """Each layer routes B * L tokens at once, and one LSTM stands on each side of it."""
    model = model_of()
    routings = model(tokens())[1]
    assert [3 * L] * 2 == [routing.num_tokens for routing in routings]
    assert 3 == sum(isinstance(module, nn.LSTM) for module in model.modules())


def test_no_output_sees_a_later_token() -> None:
    """Changing token t changes no logits before t, and does change those at t and after."""
    model = model_of()
    x = tokens()
    before = model(x)[0]
    for t in range(L):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        moved = (model(changed)[0] - before).abs().amax(-1)
        assert (moved[:, :t] < 1e-12).all()
        assert (moved[:, t:] > 1e-9).all()


def test_padding_behind_the_tokens_is_routed_nowhere() -> None:
    """The logits of a padded batch are those of each sequence alone, and no expert counts a padded place."""
    model = model_of()
    x, lengths = tokens(), [L, 5, 2]
    mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    logits, routings = model(x, mask)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(model(x[row : row + 1, :length])[0][0], logits[row, :length], rtol=1e-9, atol=1e-9)
    assert [sum(lengths)] * 2 == [routing.num_tokens for routing in routings]


def test_a_new_model_guesses_uniformly_and_remembers() -> None:
    """The first loss is ln V; forget gates are open by a bias of 1, and other biases are 0."""
    model = make_model(tiny_config(Path("text"), **TINY["lstm"]), V)
    logits = model(tokens())[0]
    assert math.log(V) == pytest.approx(F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).item(), rel=1e-6)
    lstm = make_lstm(6)
    reset_lstm(lstm, torch.Generator().manual_seed(0))
    assert [0.0] * 6 + [1.0] * 6 + [0.0] * 12 == (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist()
    assert lstm.weight_hh_l0.abs().max() <= 6**-0.5


@pytest.mark.usefixtures("unchecked_shapes")
def test_one_batch_can_be_learned_by_heart() -> None:
    """Some dozen steps on one batch bring the loss near zero."""
    torch.manual_seed(0)
    model = make_model(tiny_config(Path("text"), **TINY["lstm"]), V)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x = tokens(2)
    for _ in range(80):
        loss = F.cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert all(layer.router.gate.weight.grad.abs().sum() > 0 for layer in moe_layers(model))


def test_what_comes_with_the_model() -> None:
    """Noisy top-k with importance and load losses, unless something else is chosen; a dense one has neither."""
    plain = load_config(["model=lstm"]).config
    assert ("noisy_topk", "importance+load") == (plain.router.name, plain.balance.name)
    mine = load_config(["model=lstm", "router=switch", "balance=switch"]).config
    assert ("switch", "switch") == (mine.router.name, mine.balance.name)
    half = load_config(["model=lstm", "balance=switch"]).config
    assert ("noisy_topk", "switch") == (half.router.name, half.balance.name)
    assert load_config(["model=lstm", "expert=1"]).config.router is None


def test_an_lstm_is_float32_where_bfloat16_cannot_be_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast it computes what it computes without, from and into a cached state too."""
    monkeypatch.setattr("moe_cli.models.lstm.cpu_has_bfloat16", lambda: False)
    lstm, x = make_lstm(6), torch.randn(2, 4, 6)
    narrow, wide = LayerCache(), LayerCache()
    with torch.autocast("cpu", torch.bfloat16):
        parts = [run_lstm(lstm, x, None), *(run_lstm(lstm, part, narrow) for part in (x[:, :2], x[:, 2:]))]
    expected = [run_lstm(lstm, x, None), *(run_lstm(lstm, part, wide) for part in (x[:, :2], x[:, 2:]))]
    assert all(torch.equal(one, other) for one, other in zip(expected, parts, strict=True))
