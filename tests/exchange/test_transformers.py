"""Exported and imported models compute what transformers computes, over random configurations of each family."""

import copy
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_cli.data.bpe import train_bpe
from moe_cli.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.families import FAMILIES
from moe_cli.exchange.import_folder import import_folder
from moe_cli.exchange.tokenizer import tokenizer_config, tokenizer_json
from moe_cli.execution.trained_model import load_trained
from moe_cli.runs.folder import Run
from moe_cli.training.generate import SamplingParams, sample
from tests.exchange.random_models import LENGTH, VOCAB, our_settings, random_run, randomise, their_settings, tokens

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("unchecked_shapes"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),  # of shared experts that are none
]
every_family = pytest.mark.parametrize("family", FAMILIES)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SEEDS = 10
MAX_SEEDS = 12


@pytest.fixture(scope="module")
def peers() -> Any:
    """The library, with no bars and no warnings of its own."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def check_logits(ours: nn.Module, theirs: Any, read: Tensor) -> bool:
    """Checks logits to 1e-5, in float64 and in float32; returns whether float32 can be compared.

    A random model can amplify rounding, and how far depends on the processor. Where transformers in float32 is more
    than 1e-5 from itself in float64, only float64 is compared, and the model is none of the ten that float32 must have.
    """
    with torch.no_grad():
        logits, expected = ours(read)[0], theirs(read).logits
        theirs.set_experts_implementation("eager")  # the others know no float64
        exact, exact_expected = in_float64(ours)(read)[0], in_float64(theirs)(read).logits
    torch.testing.assert_close(exact, exact_expected, check_dtype=False, **CLOSE)
    if float((expected - exact_expected).abs().max()) > CLOSE["atol"]:
        return False
    torch.testing.assert_close(logits, expected, **CLOSE)
    return True


def in_float64(model: nn.Module) -> nn.Module:
    """Returns a copy in float64 whose norms keep the epsilon that they have in float32."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        for name in ("eps", "norm_eps"):
            if getattr(module, name, 0.0) is None:
                setattr(module, name, torch.finfo(torch.float32).eps)
    return model


def check_export(peers: Any, family: str, seed: int, folder: Path) -> bool:
    """Logits equal to 1e-5, equal greedy text, and no tensor too many or too few. Returns as `check_logits`."""
    run, ours = random_run(folder / "out", our_settings(family, seed), seed)
    export = export_run(run, folder / "out", folder / "model")
    assert FAMILIES[family].architecture == export.architecture
    theirs, info = peers.AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert [set()] * 3 == [set(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    read = tokens(seed)
    with torch.no_grad():
        prompt = read[0, :5].tolist()
        generation = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 0}
        text = theirs.eval().generate(read[:1, :5], **generation)[0, 5:].tolist()
    assert list(islice(sample(ours, prompt, 10, LENGTH, SamplingParams(0.0), 0), 10)) == text
    return check_logits(ours, theirs, read)


def check_import(peers: Any, family: str, seed: int, folder: Path, data: list[str]) -> bool:
    """Logits equal to 1e-5; a second import of the exported run has the same bits and settings. As `check_logits`."""
    config = peers.AutoConfig.for_model(family, **their_settings(family, seed))
    theirs = randomise(peers.AutoModelForCausalLM.from_config(config, experts_implementation="eager"), seed)
    theirs.save_pretrained(folder / "theirs", max_shard_size="20KB" if seed % 2 else "5GB")  # type: ignore[operator]
    (folder / "theirs/tokenizer.json").write_text(tokenizer_json(ByteTokenizer()))
    run, notes = import_folder(folder / "theirs", folder / "out", data)
    assert () == notes
    is_compared = check_logits(load_trained(run, folder / "out").model, theirs, tokens(seed))
    export_run(run, folder / "out", folder / "model")
    again, _ = import_folder(folder / "model", folder / "out", data)
    check_equal(run, again)
    return is_compared


def check_equal(first: Run, second: Run) -> None:
    weights, others = (load_file(run.path / "checkpoints/step_00000000/model.safetensors") for run in (first, second))
    assert weights.keys() == others.keys()
    assert [] == [name for name in weights if not torch.equal(weights[name], others[name])]
    settings, values = (run.config_dict() for run in (first, second))
    assert all(settings[group] == values[group] for group in ("model", "router", "expert", "k"))


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "train.device=cpu"]


@every_family
def test_an_exported_model_computes_the_same(peers: Any, family: str, tmp_path: Path) -> None:
    """One random configuration of each family, loaded by transformers."""
    assert check_export(peers, family, 0, tmp_path)


@every_family
def test_an_imported_model_computes_the_same(peers: Any, family: str, tmp_path: Path, data: list[str]) -> None:
    """One random model of each family, made by transformers."""
    assert check_import(peers, family, 1, tmp_path, data)


@pytest.mark.slow
@every_family
def test_ten_configurations_of_each_family(peers: Any, family: str, tmp_path: Path, data: list[str]) -> None:
    """The same over ten random configurations in each direction."""
    exports = (check_export(peers, family, seed, tmp_path / f"export {seed}") for seed in range(MAX_SEEDS))
    imports = (check_import(peers, family, seed, tmp_path / f"import {seed}", data) for seed in range(MAX_SEEDS))
    for compared in (exports, imports):
        assert SEEDS == len(list(islice(filter(None, compared), SEEDS)))


TEXT = "the router sends each token\nto two experts, é and 𝄞"


@pytest.mark.parametrize(
    "tokenizer",
    [ByteTokenizer(), CharTokenizer("".join(sorted(set(TEXT + "\0")))), train_bpe(iter([TEXT, "\0"] * 3), 280)],
    ids=["bytes", "characters", "bpe"],
)
def test_an_exported_tokenizer_has_the_same_ids(peers: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """transformers reads the ids that the run reads, and writes the same text."""
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(64)))
    theirs = peers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(TEXT).tolist() == theirs(TEXT).input_ids
    assert TEXT == theirs.decode(theirs(TEXT).input_ids)
    assert (tokenizer.separator,) == tuple(theirs("\0").input_ids)


def test_long_contexts_are_scaled_as_by_transformers(peers: Any, tmp_path: Path, data: list[str]) -> None:
    """YaRN interpolates rates between kept and divided ones; here some of each kind exist."""
    rope = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 512}
    sizes = {"hidden_size": 32, "num_attention_heads": 1, "max_position_embeddings": 2048, "rope_parameters": rope}
    config = peers.AutoConfig.for_model("llama", **{**their_settings("llama", 0), **sizes, "head_dim": 32})
    config.num_key_value_heads = 1
    theirs = randomise(peers.AutoModelForCausalLM.from_config(config), 0)
    theirs.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    (tmp_path / "theirs/tokenizer.json").write_text(tokenizer_json(ByteTokenizer()))
    run, _ = import_folder(tmp_path / "theirs", tmp_path / "out", data)
    read = torch.randint(VOCAB, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = load_trained(run, tmp_path / "out").model(read)[0], theirs(read).logits
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


ROPE = {
    "llama 3.1": (
        "llama",
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"head_dim": 32, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "interleaved": ("deepseek_v3", {"rope_type": "default"}, {"rope_interleave": True, "qk_rope_head_dim": 8}),
    "deepseek v3": (
        "deepseek_v3",
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
        {"rope_interleave": True, "qk_rope_head_dim": 8},
    ),
    "half of mscale": (
        "deepseek_v3",
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.5, "mscale_all_dim": 0.5},
        {"rope_interleave": False, "qk_rope_head_dim": 8},
    ),
}


@pytest.mark.parametrize("name", ROPE)
def test_rotary_positions_of_published_models(peers: Any, name: str, tmp_path: Path, data: list[str]) -> None:
    """Logits equal to 1e-5 with the positions of Llama 3.1 and DeepSeek-V3; what is exported again has the same bits."""
    family, rope, sizes = ROPE[name]
    rope = {"rope_theta": 100.0, **rope}
    if rope["rope_type"] != "default":
        rope["original_max_position_embeddings"] = 64
    settings = {**their_settings(family, 0), **sizes, "rope_parameters": rope, "max_position_embeddings": 256}
    config = peers.AutoConfig.for_model(family, **settings)
    theirs = randomise(peers.AutoModelForCausalLM.from_config(config, experts_implementation="eager"), 0)
    theirs.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    (tmp_path / "theirs/tokenizer.json").write_text(tokenizer_json(ByteTokenizer()))
    run, _ = import_folder(tmp_path / "theirs", tmp_path / "out", data)
    read = torch.randint(VOCAB, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = load_trained(run, tmp_path / "out").model(read)[0], theirs(read).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    export_run(run, tmp_path / "out", tmp_path / "model")
    again, _ = import_folder(tmp_path / "model", tmp_path / "out", data)
    check_equal(run, again)
    exported = peers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(exported(read).logits, expected, **CLOSE)
