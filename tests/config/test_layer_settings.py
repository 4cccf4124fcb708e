"""Settings that single layers have: their identity, their words and their errors."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.build import flatten_dict
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.expressions import parse_expression
from moe_cli.config.identity import ADDED_SETTINGS, digest_of
from moe_cli.config.layer_costs import expert_params
from moe_cli.config.overrides import parse_override
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.config.start_config import fewest_settings
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import ConfigError
from moe_cli.models.blocks import sparse_layer_from_config
from moe_cli.models.registry import make_model
from moe_cli.moe.routers.token_choice import renormalises
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.report.baseline import overrides_of
from moe_cli.report.load import make_row
from moe_cli.report.run_row import FOLLOWS
from moe_cli.runs.folder import Run
from moe_cli.sweeps.plan import plan_sweep


def test_runs_from_before_a_setting_keep_their_digest() -> None:
    """A config.json without the added settings has the digest of one with their defaults; another value has another."""
    config = load_config(["expert=4", "model.shared_experts=1"]).config
    values = config.to_dict()
    earlier = deepcopy(values)
    for group, added in ADDED_SETTINGS.items():
        for name, default in added.items():
            assert default == earlier[group].pop(name)
    assert config.digest == digest_of(values) == digest_of(earlier)
    for word in ("model.d_shared=7", "router.init_scale=2", "optim.router_lr=0.1"):
        assert config.digest != load_config(["expert=4", "model.shared_experts=1", word]).config.digest


def test_added_settings_are_at_their_defaults_in_conf() -> None:
    """The identity leaves out the values that conf/ gives."""
    flat = flatten_dict(Composer().tree({}))
    assert all(flat[key] == default for key, default in flatten_dict(ADDED_SETTINGS).items())


@pytest.mark.parametrize(
    ("word", "note"),
    [
        ("model.d_shared=64", "there are no model.shared_experts: model.d_shared ignored."),
        ("optim.router_lr=0.1 router=random", "the router has no weights: optim.router_lr ignored."),
        ("router.init_scale=3 router.score=activation", "the router has no weights: router.init_scale ignored."),
        ("model.moe_layers=[2] expert=1", "expert=1 is dense: model.moe_layers ignored."),
        ("optim.router_lr=0.1 expert=1", "expert=1 is dense: optim.router_lr ignored."),
    ],
)
def test_a_setting_without_effect_is_noted_and_no_identity(word: str, note: str) -> None:
    """The digest is that of a configuration without it."""
    first, *others = word.split()
    resolved = load_config([first, *others])
    assert note in resolved.notes
    assert load_config(others).config.digest == resolved.config.digest


def test_values_that_say_the_default_are_no_identity() -> None:
    """The width of the routed experts for shared ones, and the rate of the other weights for gates."""
    words = ["match=none", "model.d_expert=48", "model.shared_experts=1", "optim=adamw"]
    same = load_config([*words, "model.d_shared=48", "optim.lr=0.01", "optim.router_lr=0.01"]).config
    assert load_config([*words, "optim.lr=0.01"]).config.digest == same.digest


def test_matching_counts_shared_experts_at_their_own_width() -> None:
    """Equal active parameters leave routed experts what the shared ones do not take."""
    words = ["expert=8", "k=2", "model.d_ff=512", "model.shared_experts=1"]
    narrow, wide = (load_config([*words, f"model.d_shared={width}"]).config.model for width in (32, 256))
    for model in (narrow, wide):
        active = 2 * (model.d_expert or 0) + (model.d_shared or 0)
        assert active == pytest.approx(512, rel=0.05)
    assert (narrow.d_expert or 0) > (wide.d_expert or 0)
    with pytest.raises(ConfigError, match="leave no width for an expert at equal active parameters"):
        load_config([*words, "model.d_shared=512"])


TINY = ["expert=4", "model.num_layers=4", "model.d_model=16", "model.d_ff=64", "model.context_length=8"]


def config_of(*words: str) -> RunConfig:
    return load_config([*TINY, *words]).config


@pytest.mark.parametrize(
    ("word", "values"),
    [("k=[1,2,4,2]", ([1, 2, 4, 2],)), ("k=1,2", (1, 2)), ("k=[1,2],[2,1]", ([1, 2], [2, 1])), ("k=[2]", ([2],))],
)
def test_a_list_is_one_value_and_commas_name_several(word: str, values: tuple[Any, ...]) -> None:
    """`k=1,2` sweeps; `k=[1,2]` is a k for each layer; lists are swept like numbers."""
    axis = parse_override(word)
    assert values == axis.values
    assert word == str(axis)


def test_each_layer_has_its_own_k() -> None:
    """The first value is that of the first sparse layer, in the model and in what it costs."""
    config = config_of("k=[1,2,4,2]")
    assert [1, 2, 4, 2] == [layer.top_k for layer in moe_layers(make_model(config, 50))]
    assert 2.25 == config.mean_k
    assert "gpt-4x2.25-" in config.run_id
    assert config == from_dict(config.to_dict())
    assert config.digest == digest_of(config.to_dict())
    equal = config_of("k=2", f"model.d_expert={config.model.d_expert}", "match=none")
    more, fewer = (estimate_cost(one, 50).num_active_params for one in (config, equal))
    assert expert_params(config, config.model.d_expert or 0) == more - fewer


def test_equal_values_are_one_number() -> None:
    """A list that says the same for each layer, or all layers, is no other configuration."""
    assert config_of("k=2").digest == config_of("k=[2,2,2,2]").digest
    assert config_of("k=2").digest == config_of("k=2", "model.moe_layers=[4,2,3,1]").digest
    placed = config_of("model.moe_layers=[4,2]")
    assert placed.digest == config_of("model.moe_layer_freq=2").digest
    assert (2, 4) == placed.model.moe_layers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("k=[1,2]", r"k=\[1,2\] has 2 values, and the model 4 sparse layers: give 4, "),
        ("k=[1,2] model.moe_layers=[3]", r"k=\[1,2\] has 2 values, and the model 1 sparse layer: give 1, "),
        ("k=[1,2,5,2]", "k=5 is more than expert=4"),
        ("k=[0,2,2,2]", "k=0 is too small: the least is 1"),
        ("k=[1,2,x,2]", "k=x is not a whole number"),
        ("k=[1,2,2,2] router=noisy_topk", "k=1: router=noisy_topk"),
        ("k=[1,2,2,2] router.renormalise=true", "k=1 with router.renormalise=true"),
        ("model.moe_layers=[0,1]", "model.moe_layers=0 is too small: the least is 1"),
        ("model.moe_layers=[1,5]", r"model.moe_layers=\[1,5\]: layers count from 1 to model.num_layers=4"),
        ("model.moe_layers=[2,2]", "names a layer twice"),
        ("model.moe_layers=[]", "leaves no layer to experts"),
        ("model.moe_layers=[2] model.first_k_dense=1", "both place the experts: give one of them"),
        ("model.d_expert=[8,8,8,16]", r"model.d_expert=\[8,8,8,16\] is set by match=active to"),
        (
            "match=none model.d_expert=[8,16]",
            r"model.d_expert=\[8,16\] has 2 widths, and expert=4: give one for each",
        ),
        ("match=none model.d_expert=[1,8,8,65]", "is computed in blocks of the greatest common divisor, 1: at most 64"),
        (
            "match=none model.d_expert=[8,8,8,16] model.shared_experts=1",
            "model.shared_experts needs experts of one width",
        ),
        (
            "match=none model.d_expert=[8,8,8,16] router.score=activation",
            "router.score=activation needs experts of one",
        ),
        ("model.d_ff=[64,64]", r"model.d_ff=\[64, ?64\] is a list; one run takes one value"),
    ],
)
def test_lists_that_do_not_fit_are_refused(words: str, message: str) -> None:
    """One line names the setting and what would fit."""
    with pytest.raises(ConfigError, match=message):
        config_of(*words.split())


def test_layers_with_one_expert_do_not_renormalise() -> None:
    """Without router.renormalise each layer decides by its own k, as models with one k do."""
    layers = moe_layers(make_model(config_of("k=[1,2,4,2]"), 50))
    assert [False, True, True, True] == [renormalises(layer.router) for layer in layers]


def test_the_settings_of_a_run_with_lists_lead_back_to_it() -> None:
    """The settings that a page or a command gives for a run compose to its configuration."""
    composer = Composer()
    config = config_of("model=t5", "k=[1,3]", "model.moe_layers=[1,4]")
    settings = fewest_settings(composer, config)
    assert ([1, 3], [1, 4]) == (settings["k"], settings["model.moe_layers"])
    assert config == composer.point(settings).config


def test_reports_keep_lists_apart_that_have_one_mean() -> None:
    """k of a row is what the user typed; what needs a number takes the mean over layers."""
    rows = [
        make_row(Run(Path("outputs/runs/one")), config_of(word).to_dict(), {}, {})
        for word in ("k=[1,3,1,3]", "k=[3,1,3,1]", "k=2")
    ]
    assert ["[1,3,1,3]", "[3,1,3,1]", 2] == [row.get("k") for row in rows]
    assert [2, 2, 2] == [row.mean_k for row in rows]
    assert [True, False, False] == [parse_expression("k == [1,3,1,3]").holds({"k": row.get("k")}) for row in rows]


def test_a_sweep_takes_lists() -> None:
    """Each list is a configuration, and a label has it as it is typed."""
    plan = plan_sweep([*TINY, "k=[1,2,4,2],[2,2,2,2]", "train.steps=2", "data=shakespeare"])
    assert [(1, 2, 4, 2), 2] == [point.config.k for point in plan.points]


def test_equal_widths_are_one_number() -> None:
    """A list that says the same for each expert is no other configuration."""
    digests = {config_of("match=none", f"model.d_expert={width}").digest for width in ("16", "[16,16,16,16]")}
    assert 1 == len(digests)


def test_unequal_experts_cost_their_mean_at_even_load() -> None:
    """Parameters, active ones and FLOPs of widths with one mean are equal; a wider expert costs more."""
    equal, unequal = (config_of("match=none", f"model.d_expert={widths}") for widths in ("16", "[8,8,16,32]"))
    one, other = estimate_cost(equal, 50), estimate_cost(unequal, 50)
    assert one.num_params == other.num_params
    assert one.num_active_params == other.num_active_params
    assert one.model_flops_per_token == other.model_flops_per_token


def test_the_settings_of_a_report_lead_back_to_a_run_with_lists() -> None:
    """A command that a report gives for a run has its lists."""
    config = config_of("k=[1,3]", "model.moe_layers=[1,4]", "match=none", "model.d_expert=[8,8,8,16]")
    row = make_row(Run(Path("outputs/runs/one")), config.to_dict(), {}, {})
    overrides = overrides_of(row.settings)
    assert ("[1,3]", "[1,4]") == (overrides["k"], overrides["model.moe_layers"])
    assert config.digest == Composer().point(overrides).config.digest


@pytest.mark.parametrize(
    ("text", "holds"),
    [("k >= 3", False), ("k > 1", True), ("k < 2", False), ("k <= expert", True), ("expert == 2 * k", True)],
)
@pytest.mark.parametrize("k", ["[1,3]", [1, 3], (1, 3)])
def test_a_list_in_a_condition_is_its_mean_where_a_number_is_needed(k: Any, text: str, holds: bool) -> None:
    """In sweeps a condition reads a list, in reports its text. Text against a number would compare letters."""
    assert holds == parse_expression(text).holds({"k": k, "expert": 4})


def test_named_sweeps_with_a_condition_on_k_take_lists() -> None:
    """`where: k <= expert` holds for a k for each layer."""
    words = ["sparsity", "expert=4", "k=[1,2,4,2]", "data=shakespeare"]
    assert [1, (1, 2, 4, 2)] == [point.config.k for point in plan_sweep(words, seeds=1).points]


def test_the_default_period_of_experts_follows_from_the_mean_of_a_list() -> None:
    """A value that follows from others in a configuration does so in its row of a report."""
    row = make_row(Run(Path("outputs/runs/one")), config_of("k=[1,1,1,2]", "expert=16").to_dict(), {}, {})
    assert 1 < int(str(row["optim.expert_period"])) == FOLLOWS["optim.expert_period"](row.settings)


def test_a_scale_that_a_gate_cannot_have_is_refused() -> None:
    """The temperature of score=cosine has a least value; from there on a larger scale would change nothing."""
    assert 50 == config_of("router.score=cosine", "router.init_scale=50").router.init_scale
    with pytest.raises(ConfigError, match=r"router\.init_scale=51: with router.score=cosine at most 50"):
        config_of("router.score=cosine", "router.init_scale=51")


def test_a_model_that_ignores_lists_is_told_so() -> None:
    """A plug-in may build all its layers from one configuration, which has no k for one layer then."""
    with pytest.raises(ConfigError, match=r"k=\[1,2,4,2\]: model=gpt gives all its layers one k"):
        sparse_layer_from_config(config_of("k=[1,2,4,2]"), 50)
