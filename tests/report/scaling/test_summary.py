"""A fit adds the dense equal of the recommended configuration to a recommendation, or nothing."""

import math
from pathlib import Path

import numpy as np

from moe_cli import load_runs, recommend
from moe_cli.report.recommend.text import format_recommendation
from tests.report.folders import complete

NOISE = np.random.default_rng(5)


def clark_runs(outputs: Path, widths: tuple[int, ...]) -> None:
    """Two seeds each of dense models and of 4 and 8 experts, with losses that follow L = N^-0.1 E^-0.1 and small noise."""
    for width in widths:
        for expert in (1, 4, 8):
            for seed in (0, 1):
                active = 60.0 * width**2
                loss = 10 * active**-0.1 * expert**-0.1 * math.exp(NOISE.normal(0, 0.001))
                results = {
                    "active_params": int(active),
                    "params": int(active * expert),
                    "val_loss": loss,
                    "flops_per_token": 6 * active,
                }
                k = {} if expert == 1 else {"k": 1}
                complete(outputs, loss / 0.7, "scaling", results, expert=expert, seed=seed, model__d_model=width, **k)


def test_the_dense_equal_of_what_is_recommended(tmp_path: Path) -> None:
    """Where L = c / (N E)^0.1, E experts equal a dense model of E times the parameters: 8, with its interval around it."""
    clark_runs(tmp_path, (32, 64, 128, 256))
    found = recommend(load_runs(tmp_path))
    assert 8 == found.settings["expert"]
    assert found.scaling is not None
    assert found.scaling.startswith("The scaling law clark (12 configurations, error on held-out ones ")
    words = found.scaling.split("dense model of ")[1].replace("x the model FLOPs (", " ").rstrip(").").split(" to ")
    compute_ratio, low = map(float, words[0].split())
    assert abs(compute_ratio / 8 - 1) < 0.05
    assert low <= compute_ratio <= float(words[1])
    assert found.scaling in format_recommendation(found)


def test_nothing_where_runs_support_no_law(tmp_path: Path) -> None:
    """One size tells no law, and the memo is silent about it."""
    clark_runs(tmp_path, (64,))
    assert None is recommend(load_runs(tmp_path)).scaling
