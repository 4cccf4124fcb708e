"""Every family of models starts from a dense run of its own, and from no other."""

from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.ignored_settings import SPARSE_ONLY
from moe_cli.config.routers import HashConfig, NoisyTopKConfig, RandomConfig, SigmoidConfig, SinkhornConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import SpanCorruption
from moe_cli.errors import ConfigError, MoeError
from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.execution.trained_model import load_trained
from moe_cli.execution.upcycling import NOT_UPCYCLED, check_upcycle
from moe_cli.models.registry import MODELS, make_model
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import Run
from moe_cli.training.evaluate import evaluate
from moe_cli.training.upcycle import upcycle
from tests.tiny import TINY, finish, tiny_config, tiny_task

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
FAMILIES: dict[str, dict[str, Any]] = {"gpt": {}, **TINY}
# What a sparse model may have that its dense run has not; the dense function is the same.
GROWTHS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "shared": {"model": {"shared_experts": 1}},
    "shared, gated": {"model": {"shared_experts": 2, "shared_gate": True}, "k": 3},
    "shared of another width": {"model": {"shared_experts": 1, "d_shared": 7}},
    "large gate": {"router": TopKConfig(init_scale=20.0)},
    "some layers": {"model": {"first_k_dense": 1}},
    "listed layers": {"model": {"moe_layers": (1,)}},
    "k of each layer": {"k": (2, 3)},
    "noise": {"router": NoisyTopKConfig()},
    "sigmoid": {"router": SigmoidConfig(score="mlp")},
    "sinkhorn, dropout": {"router": SinkhornConfig(), "model": {"expert_dropout": 0.1, "dropout": 0.1}},
    "random": {"router": RandomConfig()},
    "hash": {"router": HashConfig()},
    "capacity": {"capacity": 1.0},
    "halves": {"model": {"d_expert": 16}, "router": TopKConfig()},
    "quarters": {"model": {"d_expert": 8, "shared_experts": 1}, "expert": 12, "k": 8, "router": TopKConfig()},
}
# T5 has four layers, two of them with experts by default; MMoE has one.
IMPOSSIBLE = (("mmoe", "k of each layer"), ("vit", "hash"), ("mmoe", "hash"), ("mmoe", "some layers"))
# Another value for every setting of a model.
OTHERS: dict[str, Any] = {
    "num_layers": 6, "d_model": 24, "d_ff": 40, "d_expert": 20, "ffn_type": "glu", "activation": "relu2",
    "expert_dropout": 0.1, "expert_init_scale": 0.1, "shared_experts": 1, "d_shared": 24, "shared_gate": True, "moe_layer_freq": 2, "moe_layers": (2,),
    "first_k_dense": 1, "context_length": 12, "vocab_size": 300, "tie_embeddings": True, "dropout": 0.3,
    "dispatch": "einsum", "num_heads": 4, "num_kv_heads": 1, "d_head": 4, "sliding_window": 5, "attention_dropout": 0.3,
    "kv_lora_rank": 6, "q_lora_rank": 8, "qk_rope_head_dim": 2, "norm": "layer", "qk_norm": False, "position_encoding": {"rope": "learned", "learned": "rope"},
    "rope_base": 500.0, "norm_eps": 0.01, "qk_norm_weights": "full", "qkv_bias": True, "rope_scaling": "linear",
    "rope_factor": 2.0, "rope_mscale_all_dim": 1.0, "rope_original_context": 8, "logit_softcap": 30.0, "ngrams": 3, "ngram_rows": 50, "init_std": 0.05, "patch_size": 4, "sigmoid": False, "d_tower": 12, "mf_dim": 4,
    "relative_attention_num_buckets": 16, "relative_attention_max_distance": 64,
}  # fmt: skip
# Some that decide the function of a family, with or without a tensor of another shape.
DECISIVE = {
    "gpt": ("context_length", "sliding_window", "rope_base", "logit_softcap", "kv_lora_rank"),
    "bert": ("context_length", "sliding_window", "norm"),
    "vit": ("patch_size", "position_encoding"),
    "t5": ("context_length", "relative_attention_num_buckets", "relative_attention_max_distance"),
    "lstm": ("context_length", "sigmoid"),
    "mmoe": ("d_tower", "mf_dim"),
}


@pytest.fixture(scope="module")
def dense_runs(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A dense run of every family, trained until its answers are no longer those of a fresh model."""
    folder = tmp_path_factory.mktemp("dense")
    return {name: finish(family_config(text_file, name, expert=1, k=1), folder) for name in FAMILIES}


@pytest.fixture(scope="module")
def dense_losses(dense_runs: dict[str, Run]) -> dict[str, float]:
    """The validation loss of each dense run."""
    return {name: evaluated_alone(run) for name, run in dense_runs.items()}


def evaluated_alone(dense: Run) -> float:
    trained = load_trained(dense, outputs_of(dense))
    return evaluated(trained.model, trained.config, outputs_of(dense))


def family_config(text_file: Path, name: str, **changes: Any) -> RunConfig:
    """A configuration of the family; what is not said of a sparse one makes it fit its dense run."""
    base = {**FAMILIES[name], "balance": None, "router": None, "train": {"steps": 12}}
    model = {"d_expert": 32, "dropout": 0.0, **changes.pop("model", {})}
    base["model"] = replace(FAMILIES[name]["model"], **model) if "model" in FAMILIES[name] else model
    return tiny_config(text_file, **{**base, **changes})


def evaluated(model: torch.nn.Module, config: RunConfig, outputs: Path) -> float:
    return evaluate(model, tiny_task(config, outputs), 4, max_tokens=256).loss


def make_fresh(config: RunConfig, outputs: Path) -> torch.nn.Module:
    return make_model(config, model_vocab_size(config, load_run_data(config, outputs))).eval()


def upcycled(config: RunConfig, dense: Run, outputs: Path) -> torch.nn.Module:
    model = make_fresh(config, outputs)
    upcycle(model, dense)
    return model.eval()


def outputs_of(run: Run) -> Path:
    return run.path.parents[1]


def test_every_family_is_here() -> None:
    """One that is added later cannot be left out."""
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        case
        if "gpt" in case or case[1] in ("as it is", "shared, gated")
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in product(FAMILIES, GROWTHS)
        if case not in IMPOSSIBLE
    ],
)
def test_every_family_starts_as_its_dense_run(
    text_file: Path, dense_runs: dict[str, Run], dense_losses: dict[str, float], name: str, growth: str
) -> None:
    """Before the first step the validation loss is the dense model's, and not that of a model from scratch."""
    dense = dense_runs[name]
    outputs = outputs_of(dense)
    config = family_config(text_file, name, **GROWTHS[growth], train={"upcycle_from": dense.id})
    assert check_upcycle(config, outputs) is not None
    model = upcycled(config, dense, outputs)
    assert moe_layers(model)
    found = evaluated(model, config, outputs)
    assert dense_losses[name] == pytest.approx(found, rel=1e-5)
    fresh = make_fresh(config, outputs)
    assert found < evaluated(fresh, config, outputs) - 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_only_settings_known_to_be_free_may_differ(text_file: Path, dense_runs: dict[str, Run], name: str) -> None:
    """Any other setting of the model is named in one line, a new one too; with a free one the loss is the same."""
    dense = dense_runs[name]
    outputs = outputs_of(dense)
    plain = family_config(text_file, name, train={"upcycle_from": dense.id})
    expected = evaluated(upcycled(plain, dense, outputs), plain, outputs)
    refused = set()
    for field in fields(plain.model):
        if field.name == "name":
            continue
        other = OTHERS[field.name]
        own = getattr(plain.model, field.name)
        other = other[own] if isinstance(other, dict) else other
        other = "mlp" if other == own == "glu" else other
        try:
            config = family_config(text_file, name, model={field.name: other}, train={"upcycle_from": dense.id})
        except MoeError:
            continue  # of itself impossible in this family
        if config.model == plain.model:
            continue  # it has no effect here
        if f"model.{field.name}" in (*SPARSE_ONLY, *NOT_UPCYCLED) and field.name != "d_expert":
            check_upcycle(config, outputs)
            assert expected == pytest.approx(evaluated(upcycled(config, dense, outputs), config, outputs), rel=1e-5)
        else:
            refused.add(field.name)
            with pytest.raises(ConfigError, match=r"Add: .*model\."):
                check_upcycle(config, outputs)
    assert {"d_ff", "d_expert", "activation", *DECISIVE[name]} <= refused


def test_another_family_is_refused(text_file: Path, dense_runs: dict[str, Run]) -> None:
    """By its name, before any setting that only one of the two has."""
    dense = dense_runs["bert"]
    config = family_config(text_file, "gpt", train={"upcycle_from": dense.id})
    with pytest.raises(ConfigError, match=r"has model=bert, and this model gpt\. Add: model=bert$"):
        check_upcycle(config, outputs_of(dense))


def test_the_rows_for_sentinels_are_part_of_the_model(text_file: Path, dense_runs: dict[str, Run]) -> None:
    """Another number of sentinels is another embedding."""
    dense = dense_runs["t5"]
    config = family_config(text_file, "t5", task=SpanCorruption(num_sentinels=6), train={"upcycle_from": dense.id})
    with pytest.raises(ConfigError, match=r"has task\.num_sentinels=4, and this model 6\. Add: task\.num_sentinels=4$"):
        check_upcycle(config, outputs_of(dense))


def test_a_tensor_without_a_counterpart_is_an_error(text_file: Path, dense_runs: dict[str, Run]) -> None:
    """Whatever the settings said: of another shape, missing in the run, or left over from it."""
    dense = dense_runs["gpt"]
    outputs = outputs_of(dense)
    for changes, tensor in (
        ({"d_expert": 12}, r"blocks.0.ffn.experts.w_in \[4, 12, 16\] of this model"),
        ({"norm": "layer", "num_layers": 3}, r"blocks.2.attention_norm.weight \[16\] of this model"),
        ({"num_layers": 1}, r"blocks.1.attention.out.weight \[16, 16\] of the run"),
    ):
        with pytest.raises(ConfigError, match=tensor):
            upcycled(family_config(text_file, "gpt", model=changes), dense, outputs)
