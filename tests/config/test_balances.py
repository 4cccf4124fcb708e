"""How methods of balancing are combined, converted and made canonical."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.balances import (
    METHODS,
    BalanceConfig,
    CombinedBalance,
    LossFreeBalance,
    NoBalance,
    QuantileBalance,
    SwitchBalance,
    WeightedBalance,
    combine,
    methods_of,
    replace_method,
    setting_key,
)
from moe_cli.config.compose import load_config
from moe_cli.config.resolve import resolve
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import TrainConfig
from moe_cli.errors import ConfigError
from moe_cli.sweeps.plan import plan_sweep

BOTH = CombinedBalance("switch+z", switch=SwitchBalance(), z=WeightedBalance(name="z"))


def balance_of(*words: str) -> BalanceConfig | None:
    return load_config(list(words)).config.balance


def test_two_words_are_two_methods() -> None:
    """balance=a+b holds what conf/balance says of each, in one order whatever was typed."""
    assert BOTH == balance_of("balance=switch+z") == balance_of("balance=z+switch")
    assert load_config(["balance=z+switch"]).config.digest == load_config(["balance=switch+z"]).config.digest


def test_each_method_has_its_own_settings() -> None:
    """With several methods a setting is named with its method, and the digest tells them apart."""
    typed = balance_of("balance=z+switch", "balance.switch.weight=0.05", "balance.z.weight=0.002")
    assert (
        CombinedBalance("switch+z", switch=SwitchBalance(weight=0.05), z=WeightedBalance(name="z", weight=0.002))
        == typed
    )
    words = [
        [],
        ["balance=z"],
        ["balance=switch+z"],
        ["balance=switch+z", "balance.z.weight=0.1"],
        ["balance=switch+entropy"],
        ["balance=switch+z+loss_free"],
    ]
    assert len(words) == len({load_config(each).config.digest for each in words})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_combines(method: str) -> None:
    """Each goes with z or switch, under its own name, and its settings are those it has alone."""
    other = "z" if method == "switch" else "switch"
    words = ["router=noisy_topk"] if method == "load" else []
    combined = balance_of(f"balance={method}+{other}", *words)
    assert {method, other} == {each.name for each in methods_of(combined)}
    assert set(methods_of(combined)) == {balance_of(f"balance={name}", *words) for name in (method, other)}


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (BOTH, {"name": "switch+z", "switch": {"weight": 0.01, "scope": "batch"}, "z": {"weight": 0.001}}),
        (WeightedBalance(name="z"), {"name": "z", "weight": 0.001}),
        (NoBalance(), {"name": "none"}),
    ],
)
def test_a_stored_configuration_is_read_back(balance: BalanceConfig, expected: dict[str, Any]) -> None:
    """config.json holds the methods that are used and no others, and gives the same configuration."""
    config = resolve(RunConfig(balance=balance)).config
    assert expected == config.to_dict()["balance"]
    assert config == from_dict(config.to_dict())
    assert config.digest == from_dict(config.to_dict()).digest


def test_a_sweep_takes_combinations() -> None:
    """Values of a sweep may name several methods each."""
    plan = plan_sweep(["balance=switch,switch+z,none"])
    assert ["switch", "switch+z", "none"] == [
        point.config.balance.name for point in plan.points if point.config.balance
    ]
    assert "balance=switch+z seed=0" == plan.points[1].label


def test_a_users_file_may_combine_too(tmp_path: Path) -> None:
    """A combination can stand in a file, and a user's own choice in a combination, under its method's name."""
    (tmp_path / "balance").mkdir()
    (tmp_path / "balance" / "mine.yaml").write_text("# mine\nname: switch\nweight: 0.5\n")
    both = "# both\nname: switch+z\nswitch:\n  weight: 0.5\nz: {}\n"
    (tmp_path / "balance" / "both.yaml").write_text(both)
    expected = CombinedBalance("switch+z", switch=SwitchBalance(weight=0.5), z=WeightedBalance(name="z"))
    assert expected == load_config(["balance=both"], config_dir=tmp_path).config.balance
    assert expected == load_config(["balance=z+mine"], config_dir=tmp_path).config.balance
    with pytest.raises(
        ConfigError, match=r"^balance=switch\+mine names a method twice\.\nUsed from .*: balance/mine\.yaml$"
    ):
        load_config(["balance=switch+mine"], config_dir=tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "z+switch", "switch": SwitchBalance(), "z": WeightedBalance(name="z")},
        {"name": "switch+z", "switch": SwitchBalance()},
        {"name": "switch", "switch": SwitchBalance()},
        {"name": "switch+z"},
    ],
)
def test_a_name_and_its_settings_agree(values: dict[str, Any]) -> None:
    """A combination says in its name, in order, whose settings it holds; one method is no combination."""
    with pytest.raises(ConfigError, match=r"^balance=.* holds the settings of "):
        CombinedBalance(**values)


def test_methods_are_listed_and_replaced() -> None:
    """One method, several, or none are walked through alike."""
    assert (SwitchBalance(), WeightedBalance(name="z")) == methods_of(BOTH)
    assert (WeightedBalance(name="z"),) == methods_of(WeightedBalance(name="z"))
    assert () == methods_of(NoBalance()) == methods_of(None)
    assert replace(BOTH, z=WeightedBalance(name="z", weight=1.0)) == replace_method(
        BOTH, WeightedBalance(name="z", weight=1.0)
    )
    assert WeightedBalance(name="z", weight=1.0) == replace_method(
        WeightedBalance(name="z"), WeightedBalance(name="z", weight=1.0)
    )
    assert ("balance.z.", "balance.") == (
        setting_key(BOTH, WeightedBalance(name="z")),
        setting_key(WeightedBalance(name="z"), WeightedBalance(name="z")),
    )
    assert "z+entropy" == combine({"entropy": {"name": "entropy", "weight": 1.0}, "z": {}})["name"]


@pytest.mark.parametrize(
    ("scope", "train", "expected", "note"),
    [
        ("global", {"grad_accumulation": 4}, "global", None),
        (
            "global",
            {"batch_size": 1},
            "batch",
            "train.grad_accumulation=1 makes a step of one batch: balance.scope ignored.",
        ),
        ("sequence", {}, "sequence", None),
        (
            "sequence",
            {"batch_size": 1},
            "batch",
            "train.batch_size=1 makes a batch of one sequence: balance.scope ignored.",
        ),
        ("batch", {"grad_accumulation": 4}, "batch", None),
    ],
)
def test_a_scope_that_is_the_batch_is_called_so(scope: Any, train: Any, expected: str, note: str | None) -> None:
    """Without accumulation global is batch, with one sequence sequence is batch: one run, and a note if it was typed."""
    config = RunConfig(balance=SwitchBalance(scope=scope), train=TrainConfig(**train))
    resolved = resolve(config, user_keys=["balance.scope"])
    assert expected == resolved.config.balance.scope  # type: ignore[union-attr]
    assert ((note,) if note else ()) == resolved.notes
    assert () == resolve(config).notes


def test_only_one_method_sets_the_bias() -> None:
    """loss_free and quantile would overwrite each other."""
    with pytest.raises(
        ConfigError, match=r"^balance=loss_free\+quantile: .* both set the bias of the choice\. Use one"
    ):
        CombinedBalance("loss_free+quantile", loss_free=LossFreeBalance(), quantile=QuantileBalance())


def test_methods_without_effect_on_a_random_router_are_set_aside() -> None:
    """A combination too, without complaint about what it holds."""
    words = ["router=random", "balance=load+switch"]
    resolved = load_config(words)
    assert NoBalance() == resolved.config.balance
    assert ("router=random learns no choice: balance ignored.",) == resolved.notes


def test_a_dense_model_has_no_balance_to_check() -> None:
    """A dense model sets aside a balance that would be refused with experts."""
    assert resolve(RunConfig(expert=1, balance=WeightedBalance(name="load"))).config.balance is None
