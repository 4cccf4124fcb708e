"""`resolve` fills in open settings, sets aside settings without effect, and gives a configuration one identity."""

import dataclasses
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moe_cli.config import balances, routers
from moe_cli.config.compose import load_config
from moe_cli.config.data import TextFilesConfig
from moe_cli.config.matching import matched_d_expert
from moe_cli.config.model import BERTConfig, GPTConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import SwitchConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.config.training import BUDGETS, DEFAULT_STEPS, EXECUTION_KEYS, EvalConfig, TrainConfig, is_execution
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import ConfigError
from tests.config.strategies import configs

TOPK, SWITCH, RANDOM = routers.TopKConfig(), routers.SwitchConfig(), routers.RandomConfig()


@given(configs())
def test_resolving_twice_changes_nothing(config: RunConfig) -> None:
    """A resolved configuration is its own resolution, so that a stored run resolves to itself."""
    once = resolve(config)
    assert once.config == resolve(once.config).config
    assert once.config.digest == resolve(once.config).config.digest


@given(configs())
def test_nothing_that_can_be_derived_is_left_open(config: RunConfig) -> None:
    """After resolution K, the budget and, with experts, router, balance and expert width are decided."""
    resolved = resolve(config).config
    assert resolved.k is not None
    assert 1 == sum(getattr(resolved.train, budget) is not None for budget in BUDGETS)
    for of_experts in (resolved.router, resolved.balance, resolved.model.d_expert):
        assert resolved.dense == (of_experts is None)
    never = isinstance(resolved.router, routers.SoftConfig | routers.ExpertChoiceConfig)
    assert (resolved.capacity is None or never) == (resolved.drop is None)


@pytest.mark.parametrize(
    ("router", "k", "given", "notes"),
    [
        (TOPK, 2, [], []),
        (
            TOPK,
            2,
            ["model.expert_init_scale"],
            ["copies the experts' first weights: model.expert_init_scale ignored."],
        ),
        (SWITCH, 1, [], ["router=switch k=1: the weights of a token's experts do not sum to 1"]),
        (TOPK, 1, [], ["router=topk k=1: the weights of a token's experts do not sum to 1"]),
        (routers.SoftConfig(), 2, [], ["router=soft k=2: the weights of a token's experts do not sum to 1"]),
    ],
)
def test_upcycling_says_what_it_changes(router: Any, k: int, given: list[str], notes: list[str]) -> None:
    """The scale of first weights that are copied has no effect; a model that starts as another function says so."""
    model = BERTConfig(expert_init_scale=0.1 if given else 1.0)
    train = TrainConfig(upcycle_from="bert-dense")
    config = RunConfig(router=router, k=k, match="none", model=model, task=MaskedLM(), train=train)
    resolved = resolve(config, given)
    found = [note for note in resolved.notes if "upcycle" in note]
    assert len(notes) == len(found)
    assert all(expected in note for expected, note in zip(notes, found, strict=True))
    assert 1.0 == resolved.config.model.expert_init_scale


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "there is no train.upcycle_from"), ({"expert": 1}, "expert=1 is dense")],
)
def test_noise_without_copies_is_ignored(changes: dict[str, Any], expected: str) -> None:
    """Noise and dropped units change the copies of upcycling; without any they leave neither digest nor weights."""
    keys = ["train.upcycle_noise", "train.upcycle_drop"]
    config = RunConfig(train=TrainConfig(upcycle_noise=0.1, upcycle_drop=0.5), **changes)
    resolved = resolve(config, keys)
    assert f"{expected}: train.upcycle_drop, train.upcycle_noise ignored." in resolved.notes
    assert resolve(RunConfig(**changes)).config == resolved.config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RunConfig(), 2),
        (RunConfig(expert=1), 1),
        (RunConfig(expert=2), 2),
        (RunConfig(router=SWITCH), 1),
        (RunConfig(k=3), 3),
    ],
)
def test_k_left_open(config: RunConfig, expected: int) -> None:
    """K is 2 unless there are fewer experts or the router takes one."""
    assert expected == resolve(config).config.k


@pytest.mark.parametrize(("k", "expected"), [(1, False), (2, True), (None, True)])
def test_renormalise_left_open(k: int | None, expected: bool) -> None:
    """Weights are renormalised unless K is 1, where it would leave the gate without a gradient."""
    assert expected == resolve(RunConfig(k=k)).config.router.renormalise


def test_a_dense_model_keeps_nothing_of_the_experts() -> None:
    """With expert=1 all settings of experts are removed, so that all such runs are one."""
    plain = resolve(RunConfig(expert=1)).config
    model = GPTConfig(shared_experts=1, moe_layer_freq=2, dispatch="reference", d_expert=9)
    busy = RunConfig(
        expert=1,
        k=1,
        capacity=1.0,
        drop="probability",
        match="none",
        router=SWITCH,
        balance=balances.WeightedBalance(name="z"),
        model=model,
        optim=MuonConfig(skip_idle_experts=True),
        eval=EvalConfig(k=1, capacity=1.0),
    )
    assert plain == resolve(busy).config


def test_a_random_router_has_nothing_to_balance() -> None:
    """With router=random the balance is none whatever was set."""
    assert balances.NoBalance() == resolve(RunConfig(router=RANDOM)).config.balance


def test_a_drop_rule_without_a_capacity_is_no_difference() -> None:
    """Without a capacity both rules are the same run; with one, position is the default."""
    assert resolve(RunConfig()).config == resolve(RunConfig(drop="probability")).config
    assert "position" == resolve(RunConfig(capacity=1.0)).config.drop


@pytest.mark.parametrize(
    ("config", "given", "note"),
    [
        (RunConfig(expert=1), ["router", "expert"], "expert=1 is dense: router ignored."),
        (
            RunConfig(expert=1),
            ["model.d_expert", "balance.weight", "eval.k", "seed"],
            "expert=1 is dense: balance.weight, eval.k, model.d_expert ignored.",
        ),
        (RunConfig(expert=1), ["match"], "expert=1 is dense: match ignored."),
        (
            RunConfig(expert=1, optim=AdamWConfig(skip_idle_experts=True)),
            ["optim.skip_idle_experts"],
            "expert=1 is dense: optim.skip_idle_experts ignored.",
        ),
        (
            RunConfig(match="none", model=GPTConfig(d_expert=32)),
            ["match", "model.d_expert", "model.d_ff"],
            "match=none leaves the width of experts to model.d_expert: model.d_ff ignored.",
        ),
        (RunConfig(router=RANDOM), ["balance"], "router=random learns no choice: balance ignored."),
        (RunConfig(drop="position"), ["drop"], "training drops nothing without a capacity: drop ignored."),
        (
            RunConfig(optim=MuonConfig(schedule="cosine", decay_fraction=0.1)),
            ["optim.decay_fraction"],
            "optim.schedule=cosine has no plateau: optim.decay_fraction ignored.",
        ),
        (
            RunConfig(optim=AdamWConfig(schedule="constant", min_lr_ratio=0.1)),
            ["optim.min_lr_ratio"],
            "optim.schedule=constant has no decay: optim.min_lr_ratio ignored.",
        ),
    ],
)
def test_what_was_typed_in_vain_is_said(config: RunConfig, given: list[str], note: str) -> None:
    """A setting without effect that the user asked for is named in a note; one of conf/ is not."""
    assert (note,) == resolve(config, user_keys=given).notes
    assert () == resolve(config).notes


def test_balance_none_with_a_random_router_needs_no_note() -> None:
    """balance=none with a random router gives no note."""
    assert () == resolve(RunConfig(router=RANDOM, balance=balances.NoBalance()), user_keys=["balance"]).notes


@pytest.mark.parametrize(
    ("schedule", "decay", "min_lr_ratio"),
    [("wsd", 0.6, 0.02), ("cosine", None, 0.02), ("linear", None, 0.02), ("constant", None, None)],
)
def test_the_schedule_is_filled_in(schedule: Any, decay: float | None, min_lr_ratio: float | None) -> None:
    """Each schedule gets the shares it needs and none that it ignores."""
    optim = resolve(RunConfig(optim=MuonConfig(schedule=schedule))).config.optim
    assert (decay, min_lr_ratio) == (optim.decay_fraction, optim.min_lr_ratio)


def test_shares_that_a_schedule_ignores_are_no_difference() -> None:
    """A decay without a plateau and a final rate that is never reached are removed: such runs are one."""
    plain, idle = AdamWConfig(schedule="cosine"), AdamWConfig(schedule="cosine", decay_fraction=0.1)
    assert resolve(RunConfig(optim=plain)).config == resolve(RunConfig(optim=idle)).config
    plain, idle = AdamWConfig(schedule="constant"), AdamWConfig(schedule="constant", min_lr_ratio=0.1)
    assert resolve(RunConfig(optim=plain)).config == resolve(RunConfig(optim=idle)).config


def test_given_shares_of_the_schedule_stay() -> None:
    """A zero is a value, not an open setting."""
    optim = resolve(RunConfig(optim=MuonConfig(decay_fraction=0.5, min_lr_ratio=0.0))).config.optim
    assert (0.5, 0.0) == (optim.decay_fraction, optim.min_lr_ratio)


def test_a_budget_is_a_number_of_steps_unless_given() -> None:
    """No budget means the default number of steps; any given one stands alone."""
    assert DEFAULT_STEPS == resolve(RunConfig()).config.train.steps
    assert resolve(RunConfig(train=TrainConfig(minutes=2.0))).config.train.steps is None


def test_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is the same file wherever the program is started."""
    monkeypatch.chdir(tmp_path)
    data = resolve(RunConfig(data=TextFilesConfig(path="a/../b.txt"))).config.data
    assert str(tmp_path.resolve() / "b.txt") == data.path


def active_parameters(model: GPTConfig, experts: int, top_k: int, d_expert: int, gate: bool = True) -> int:
    """Returns the active parameters of a layer of experts: K + shared experts and the gate."""
    expert = model.matrices_per_expert * model.d_model * d_expert
    return (top_k + model.shared_experts) * expert + gate * experts * model.d_model


def dense_parameters(model: GPTConfig) -> int:
    return model.matrices_per_expert * model.d_model * model.d_ff


@given(st.data(), st.integers(256, 4096), st.integers(2, 64), st.sampled_from(["glu", "mlp"]), st.booleans())
def test_matched_experts_cost_what_the_dense_network_costs(
    data: st.DataObject, d_ff: int, experts: int, kind: Any, gate: bool
) -> None:
    """Active feed-forward parameters, gate included, are within 1 % of dense, or as near as a whole width can be."""
    top_k, shared = data.draw(st.integers(1, min(experts, 16))), data.draw(st.integers(0, 2))
    model = GPTConfig(d_ff=d_ff, ffn_type=kind, shared_experts=shared)
    d_expert = matched_d_expert(RunConfig(expert=experts, k=top_k, model=model, router=TOPK if gate else RANDOM))

    def error(width: int) -> float:
        return abs(active_parameters(model, experts, top_k, width, gate) / dense_parameters(model) - 1)

    assert error(d_expert) < 0.01 or error(d_expert) <= min(error(d_expert - 1), error(d_expert + 1)) + 1e-12
    if top_k + shared <= 0.02 * d_ff:
        assert error(d_expert) <= 0.01 + 1e-12


@pytest.mark.parametrize(
    ("d_ff", "experts", "top_k", "expected"),
    [
        (512, 8, 2, 256),  # exactly 254; 256 is 4 of 512 too many
        (2048, 64, 8, 252),  # exactly 252; 256 would be 32 of 2048 too many
        (1000, 8, 1, 992),  # exactly 996; 1000 has no factor of 16
        (256, 2, 2, 128),  # exactly 127.5; 128 is 1 of 256 too many
        (1007, 4, 1, 1008),  # exactly 1005; 1008 is 63 times 16
    ],
)
def test_matched_widths_are_round(d_ff: int, experts: int, top_k: int, expected: int) -> None:
    """The largest power of two up to 16 that 1 % allows divides the width, worked out by hand."""
    model = GPTConfig(d_ff=d_ff, ffn_type="mlp")
    assert expected == matched_d_expert(RunConfig(expert=experts, k=top_k, model=model, router=TOPK))


def test_the_matched_width_is_what_resolve_uses() -> None:
    """match=active sets the width, with and without a gate to pay for; match=none takes the user's or the dense one."""
    model = GPTConfig(d_ff=256)
    resolved = {
        "topk": resolve(RunConfig(expert=64, model=model)),
        "random": resolve(RunConfig(expert=64, model=model, router=RANDOM)),
        "own": resolve(RunConfig(expert=64, model=replace(model, d_expert=100), match="none")),
        "dense": resolve(RunConfig(expert=64, model=model, match="none")),
    }
    expected = {
        "topk": matched_d_expert(RunConfig(expert=64, k=2, model=model)),
        "random": 128,
        "own": 100,
        "dense": 256,
    }
    assert expected["topk"] < 128
    assert expected == {name: each.config.model.d_expert for name, each in resolved.items()}


def quantity(match: str, config: RunConfig) -> int:
    """Returns the quantity that `match` makes equal, counted over the whole model."""
    counted = estimate_cost(config, 256)
    return {
        "active": counted.num_active_params,
        "total": counted.num_params,
        "flops": counted.flops_per_step,
        "model_flops": counted.model_flops_per_token,
    }[match]


@given(
    st.data(),
    st.sampled_from(["active", "total", "flops", "model_flops"]),
    st.integers(256, 4096),
    st.integers(2, 64),
    st.sampled_from(["glu", "mlp"]),
    st.sampled_from(["linear", "cosine", "activation"]),
    st.integers(1, 3),
)
def test_match_makes_equal_what_it_says(
    data: st.DataObject, match: Any, d_ff: int, experts: int, kind: Any, score: Any, every: int
) -> None:
    """The whole model's costs are equal to 1 % of the sparse feed-forward layers, or as nearly as a width allows."""
    top_k, shared = data.draw(st.integers(1, min(experts, 16))), data.draw(st.integers(0, 2))
    model = GPTConfig(d_ff=d_ff, ffn_type=kind, shared_experts=shared, shared_gate=shared > 0, moe_layer_freq=every)
    router = routers.TopKConfig(score=score)
    config = RunConfig(expert=experts, k=top_k, match=match, model=model, router=router)
    dense = resolve(RunConfig(expert=1, model=GPTConfig(d_ff=d_ff, ffn_type=kind))).config
    try:
        matched = resolve(config).config
    except ConfigError:
        assume(False)
    without = quantity(match, replace(dense, model=replace(dense.model, d_ff=1)))
    networks = (quantity(match, dense) - without) * d_ff / (d_ff - 1)
    network = networks * len(matched.sparse_layers) / dense.model.num_layers

    def error(width: int) -> float:
        there = replace(matched, model=replace(matched.model, d_expert=width))
        return abs(quantity(match, there) - quantity(match, dense)) / network

    width = matched.model.d_expert or 0
    assert error(width) < 0.01 or error(width) <= min(error(width - 1), error(width + 1)) + 1e-12
    assert match == "active" or error(width) <= 0.05


@given(st.integers(2, 64), st.integers(1, 8))
def test_all_three_quantities_are_reported_where_they_differ(experts: int, top_k: int) -> None:
    """match=active+total+flops has the width of match=active, and one note with the ratios of the others."""
    assume(top_k <= experts)
    model = GPTConfig(d_ff=4096, num_layers=1)
    found = resolve(RunConfig(expert=experts, k=top_k, match="active+total+flops", model=model))
    alone = resolve(RunConfig(expert=experts, k=top_k, match="active", model=model)).config
    assert alone.model.d_expert == found.config.model.d_expert
    dense = resolve(RunConfig(expert=1, model=model)).config
    without = quantity("total", replace(dense, model=replace(dense.model, d_ff=1)))
    network = (quantity("total", dense) - without) * 4096 / 4095
    ratio = 1 + (quantity("total", alone) - quantity("total", dense)) / network
    if abs(ratio - 1) > 0.01:
        (note,) = found.notes
        assert f"total parameters are {ratio:.3g} times" in note


def test_one_expert_of_all_matches_total_and_active_parameters() -> None:
    """With k=expert no parameters are idle, so the note is on FLOPs alone, those of the optimizer for smaller matrices."""
    found = resolve(
        RunConfig(expert=4, k=4, match="active+total+flops", model=GPTConfig(d_ff=4096), optim=AdamWConfig())
    )
    assert () == found.notes


def test_flops_and_active_parameters_differ_where_a_gate_computes_more_than_it_holds() -> None:
    """score=activation has no parameters and costs FLOPs: experts of equal FLOPs are narrower."""
    widths = [
        resolve(RunConfig(expert=16, match=match, router=routers.TopKConfig(score="activation"))).config.model.d_expert
        for match in ("active", "flops")
    ]
    assert widths[0] == 144
    assert widths[1] is not None
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("expert", "k", "d_ff", "match", "message"),
    [
        (
            64,
            2,
            40,
            "total",
            "expert=64 leaves no width for an expert at equal total parameters (model.d_ff=40). "
            "Raise model.d_ff, lower expert, or use match=none.",
        ),
        (
            64,
            8,
            16,
            "flops",
            "expert=64 k=8 leave no width for an expert at equal training FLOPs (model.d_ff=16). "
            "Raise model.d_ff, lower k, or use match=none.",
        ),
        (
            32,
            2,
            150,
            "total",
            "expert=32: no whole width of an expert gives equal total parameters: 4 misses those of "
            "model.d_ff=150 by 8%. Raise model.d_ff, lower expert, or use match=none.",
        ),
    ],
)
def test_no_width_that_matches_is_refused(expert: int, k: int, d_ff: int, match: Any, message: str) -> None:
    """With what was asked to be equal and the ways out."""
    with pytest.raises(ConfigError) as error:
        resolve(RunConfig(expert=expert, k=k, match=match, model=GPTConfig(d_ff=d_ff)))
    assert message == str(error.value)


def test_the_matched_width_may_be_given_and_no_other() -> None:
    """A width that agrees is accepted, one that does not is refused with the way out."""
    matched = resolve(RunConfig()).config
    assert matched == resolve(RunConfig(model=GPTConfig(d_expert=matched.model.d_expert))).config
    with pytest.raises(ConfigError, match=r"^model\.d_expert=7 .*match=active .*match=none$"):
        resolve(RunConfig(model=GPTConfig(d_expert=7)))


def leaves(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value in a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield (*path, field.name)


def test_the_digest_ignores_execution_and_nothing_else() -> None:
    """Changing any one value changes the digest, except those of execution and those that act through model.d_expert."""
    config = resolve(RunConfig(capacity=1.0)).config
    ignored = set()
    for path in leaves(config):
        changed = deepcopy(config)
        owner = changed
        for part in path[:-1]:
            owner = getattr(owner, part)
        object.__setattr__(owner, path[-1], (12345,) if path == ("model", "moe_layers") else 12345)
        vars(changed).pop("digest", None)  # computed before
        if changed.digest == config.digest:
            ignored.add(path)
    launch = {path for path in leaves(config) if path[0] == "launch"}
    through_d_expert = {("match",), ("model", "d_ff")}
    execution = launch | {("train", key) for key in EXECUTION_KEYS} | {("log",), ("log_project",)}
    assert execution | through_d_expert == ignored
    assert {path for path in leaves(config) if is_execution(".".join(path))} == execution


def test_equal_networks_have_an_equal_digest() -> None:
    """A width that match finds is the same network as that width typed; a dense layer's width is part of the digest."""
    matched = load_config([]).config
    typed = load_config(["match=none", f"model.d_expert={matched.model.d_expert}"]).config
    assert matched.digest == typed.digest
    words = ["match=none", "model.d_expert=64", "model.first_k_dense=1"]
    assert (
        load_config([*words, "model.d_ff=128"]).config.digest != load_config([*words, "model.d_ff=256"]).config.digest
    )


def test_the_first_fold_is_no_lack_of_one() -> None:
    """data.test_fold=0 is a test split."""
    words = ["data=ratings", "data.fold=1"]
    assert load_config([*words, "data.test_fold=0"]).config.digest != load_config(words).config.digest


def test_execution_keys_are_what_we_think() -> None:
    """Threads, device and how often something is written do not change what is learned; everything else may."""
    assert {
        "threads",
        "device",
        "compile",
        "log_every",
        "eval_every",
        "eval_tokens",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
    } == set(EXECUTION_KEYS)


@pytest.mark.parametrize(
    ("config", "expected"), [(RunConfig(seed=3), "gpt-8x2-s3-"), (RunConfig(expert=1), "gpt-dense-s0-")]
)
def test_a_run_is_named_by_what_it_is(config: RunConfig, expected: str) -> None:
    """The id holds model, experts x chosen, seed and the digest of six hexadecimal digits."""
    resolved = resolve(config).config
    assert expected + resolved.digest == resolved.run_id
    assert re.fullmatch("[0-9a-f]{8}", resolved.digest)


def test_tokens_per_step_counts_accumulated_batches() -> None:
    """Sequences x accumulation x context."""
    train = TrainConfig(batch_size=3, grad_accumulation=5)
    assert 3 * 5 * 64 == RunConfig(train=train, model=GPTConfig(context_length=64)).tokens_per_step


@pytest.mark.parametrize(("d_model", "heads"), [(16, 1), (32, 1), (64, 2), (96, 3), (100, 2), (128, 4), (130, 1)])
def test_heads_are_of_width_32_or_near(d_model: int, heads: int) -> None:
    """Without model.num_heads, heads have width 32, or the next even width that divides d_model."""
    assert resolve(RunConfig(model=GPTConfig(d_model=d_model))).config.model.num_heads == heads


def test_the_shared_gate_is_among_the_matched_parameters() -> None:
    """Its row of D numbers comes off the experts' width, as a row of the router's gate does."""
    shape = {"d_model": 96, "d_ff": 40, "shared_experts": 1, "ffn_type": "mlp"}
    without, with_gate = (
        resolve(RunConfig(expert=expert, k=1, router=SwitchConfig(), model=GPTConfig(**shape, shared_gate=gate)))
        for expert, gate in ((9, False), (8, True))
    )
    assert without.config.model.d_expert == with_gate.config.model.d_expert


def test_settings_of_experts_are_set_aside_without_them() -> None:
    """A shared gate needs shared experts; a dense model has no use for dropout and first weights of experts."""
    alone = resolve(RunConfig(model=GPTConfig(shared_gate=True)), user_keys=["model.shared_gate"])
    assert (False, ("there are no model.shared_experts: model.shared_gate ignored.",)) == (
        alone.config.model.shared_gate,
        alone.notes,
    )
    model = GPTConfig(expert_dropout=0.1, expert_init_scale=0.1, shared_experts=1, shared_gate=True)
    given = ["model.expert_dropout", "model.expert_init_scale"]
    dense = resolve(RunConfig(expert=1, model=model), user_keys=given)
    assert dense.config == resolve(RunConfig(expert=1)).config
    assert ("expert=1 is dense: model.expert_dropout, model.expert_init_scale ignored.",) == dense.notes


@pytest.mark.parametrize(("warmup", "decay"), [(0.02, 0.6), (0.4, 0.6), (0.5, 0.5), (0.9, 0.1)])
def test_the_fall_of_the_learning_rate_begins_after_the_warm_up(warmup: float, decay: float) -> None:
    """Where the warm-up leaves less than the derived share of the budget, the fall takes what it leaves."""
    resolved = resolve(RunConfig(optim=AdamWConfig(warmup_fraction=warmup))).config
    assert (decay, "wsd") == (resolved.optim.decay_fraction, resolved.optim.schedule)


def test_a_warm_up_over_the_whole_budget_never_falls() -> None:
    """It is the constant schedule."""
    whole, constant = (
        AdamWConfig(warmup_fraction=1.0),
        AdamWConfig(warmup_fraction=1.0, schedule="constant"),
    )
    assert resolve(RunConfig(optim=constant)).config == resolve(RunConfig(optim=whole)).config
