"""Settings that single layers have: their identity, their words and their errors."""

from copy import deepcopy

import pytest

from moe_cli.config.build import flatten_dict
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.schema import ADDED_SETTINGS, digest_of
from moe_cli.errors import ConfigError


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
    """What the identity leaves out is what conf/ gives."""
    flat = flatten_dict(Composer().tree({}))
    assert all(flat[key] == default for key, default in flatten_dict(ADDED_SETTINGS).items())


@pytest.mark.parametrize(
    ("word", "note"),
    [
        ("model.d_shared=64", "there are no model.shared_experts: model.d_shared ignored."),
        ("optim.router_lr=0.1 router=random", "the router has no weights: optim.router_lr ignored."),
        ("router.init_scale=3 router.score=activation", "the router has no weights: router.init_scale ignored."),
        ("optim.router_lr=0.1 expert=1", "expert=1 is dense: optim.router_lr ignored."),
    ],
)
def test_a_setting_without_effect_is_noted_and_no_identity(word: str, note: str) -> None:
    """The digest is that of a configuration without it."""
    given, *others = word.split()
    resolved = load_config([given, *others])
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
