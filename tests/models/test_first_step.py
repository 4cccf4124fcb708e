"""How the first batch of every family of models is routed, before anything is learned."""

from pathlib import Path

import pytest

from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.models.registry import MODELS, make_model
from moe_cli.moe.max_violation import max_violation
from tests.tiny import TINY, tiny_config, tiny_task

FAMILIES = {"gpt": {}, **TINY}


def test_every_family_is_here() -> None:
    """One that is added later cannot be left out."""
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_batch_goes_to_all_experts(text_file: Path, tmp_path: Path, name: str) -> None:
    """No token of a fresh model has equal scores for all experts, which would send it to those of the lowest index."""
    config = tiny_config(text_file, **{**FAMILIES[name], "expert": 8})
    task = tiny_task(config, tmp_path)
    _, routings = task.loss(
        make_model(config, model_vocab_size(config, load_run_data(config, tmp_path))), task.train_batch(0, 32)
    )
    assert routings
    for routing in routings:
        assert (routing.logits.amax(-1) > routing.logits.amin(-1)).all()
        assert max_violation(routing.tokens_per_expert.tolist()) < 2
