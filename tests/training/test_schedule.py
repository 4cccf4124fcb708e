"""The factor of the learning rate against closed forms."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.optim import AdamWConfig, MuonConfig, OptimConfig
from moe_cli.training.schedule import schedule


def optim(**changes: Any) -> OptimConfig:
    return AdamWConfig(**{"warmup_fraction": 0.1, **changes})


@given(st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_schedules_are_closed_forms(progress: float, final: float) -> None:
    """After warm-up: constant, linear and cosine over the rest, and wsd's plateau with its linear end."""
    done = (progress - 0.1) / 0.9
    expected = {
        "constant": 1.0,
        "linear": 1 - (1 - final) * done,
        "cosine": final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)),
        "wsd": 1.0 if progress <= 0.6 else 1 - (1 - final) * (progress - 0.6) / 0.4,
    }
    for name, value in expected.items():
        decay = {"decay_fraction": 0.4} if name == "wsd" else {}
        found = schedule(optim(schedule=name, min_lr_ratio=None if name == "constant" else final, **decay), progress)
        assert value == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_rises_in_a_line(name: Any) -> None:
    """Step s = 1, 2, ... of W warm-up steps has s / W of the peak, and the step after them has the peak."""
    config = optim(schedule=name, decay_fraction=0.5 if name == "wsd" else None)
    for steps in (10, 50, 10_000):
        found = [schedule(config, step / steps, (step + 1) / steps) for step in range(steps // 10 + 1)]
        assert [*(10 * (step + 1) / steps for step in range(steps // 10)), 1.0] == pytest.approx(found)
    assert 1.0 == schedule(optim(schedule=name, warmup_fraction=0.0, decay_fraction=config.decay_fraction), 0.0, 0.01)


@pytest.mark.parametrize("warmup", [0.0, 1e-4, 5e-4, 0.02, 0.5])
def test_no_step_is_above_the_peak(warmup: float) -> None:
    """However short the warm-up, the learning rate never exceeds its peak."""
    config = MuonConfig(warmup_fraction=warmup, decay_fraction=0.4, min_lr_ratio=0.1)
    assert all(0 < schedule(config, step / 5000, (step + 1) / 5000) <= 1 for step in range(5000))
