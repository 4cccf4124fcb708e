"""Results of a run that need no training."""

from pathlib import Path

import pytest

from moe_cli.execution.summary import backend_used
from moe_cli.models.registry import make_model
from moe_cli.moe.sparse_layer import moe_layers
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("dispatch", "compiled", "expected"),
    [("auto", False, "grouped_mm"), ("auto", True, "loop"), ("einsum", True, "einsum")],
)
def test_the_back_end_is_that_of_the_training(dispatch: str, compiled: bool, expected: str) -> None:
    """Compiled training on a CPU has the loop, where the same products would be grouped without the compiler."""
    model = {"dispatch": dispatch, "d_model": 16, "d_expert": 8}
    config = tiny_config(Path("text"), model=model, train={"precision": "float32"})
    assert expected == backend_used(config, moe_layers(make_model(config, 11)), compiled)


def test_a_dense_model_has_none() -> None:
    """Without experts there is no back end."""
    assert backend_used(tiny_config(Path("text"), expert=1, k=1), [], compiled=False) is None
