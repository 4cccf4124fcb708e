"""ONNX files: onnxruntime computes the logits of every family for any batch and length; what has no graph is refused."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.routers import HashConfig
from moe_cli.errors import ConfigError
from moe_cli.exchange import export_onnx, onnx_graph
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint import find_checkpoint
from tests.exchange.random_models import VOCAB, our_settings, random_run, randomise
from tests.plugin_files import router_source
from tests.runner import CliRunner
from tests.tiny import TINY, finish, tiny_config

SMALL = (
    "match=none balance=none expert=4 k=2 model.num_layers=1 model.d_model=16 model.d_expert=12 model.d_ff=32 "
    "train.device=cpu "
)
ATTENTION = "model.num_heads=2 model.context_length=16 "
TOLERANCE = 1e-4


def moe(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


# --- without onnx


@pytest.mark.parametrize(
    ("settings", "named"),
    [("router=random", "router=random"), ("model=bert router=expert_choice", "router=expert_choice")],
)
def test_what_no_graph_can_repeat_is_refused(settings: str, named: str) -> None:
    """Routers that draw, or whose choice depends on the batch, are named in one line."""
    config = load_config((SMALL + ATTENTION + settings).split()).config
    with pytest.raises(ConfigError) as error:
        onnx_graph.check_exportable(config, 0)
    assert named in str(error.value)
    assert 1 == len(str(error.value).splitlines())


def test_weights_that_no_file_holds_are_refused() -> None:
    """protobuf holds 2 GiB: a larger model is refused before it is loaded."""
    config = load_config((SMALL + ATTENTION).split()).config
    onnx_graph.check_exportable(config, 2**31 - 2**26)
    with pytest.raises(ConfigError, match=r"have 2\.1 GB"):
        onnx_graph.check_exportable(config, 2**31)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx the command says what to install, in one line, and writes nothing."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    random_run(tmp_path / "out", our_settings("qwen3_moe", 0), 0)
    result = moe("export", "latest", tmp_path / "a.onnx", "--outputs", tmp_path / "out")
    assert 2 == result.exit_code
    assert "error: a file .onnx needs onnx and onnxscript, which are not installed: pip install 'moe-cli[onnx]'" in (
        " ".join(result.stderr.split())
    )
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.onnx", "--format", "txt"], "--format txt is not one of: hf, onnx, gguf"),
        (["folder", "--format", "onnx"], "--format onnx writes a file, and folder does not end in .onnx"),
    ],
)
def test_formats_and_endings(tmp_path: Path, words: list[str], message: str) -> None:
    """A format that is unknown, or that contradicts the ending, is refused."""
    result = moe("export", "latest", *words, "--outputs", tmp_path)
    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.split())


METADATA: dict[str, set[str]] = {
    "gpt": set(),
    "hash": set(),  # its table is of whole numbers
    "lstm": set(),
    "bert": {"moe.mask_token"},
    "t5": {"moe.first_sentinel", "moe.decoder_start_token"},
    "vit": {"moe.pixels", "moe.classes"},
    "mmoe": {"moe.ratings", "moe.users"},
}


@pytest.mark.parametrize("family", METADATA)
def test_what_is_written_next_to_the_graph(
    family: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text has its tokenizer next to the file, metadata are those of the task, and a file is replaced by --force only."""
    given: dict[str, Any] = {}

    def trace(model: object, config: object, inputs: object, metadata: dict[str, Any]) -> bytes:
        given.update(metadata)
        return b"graph"

    for name, value in (("trace", trace), ("_check_libraries", lambda: None), ("_difference", lambda *_: None)):
        monkeypatch.setattr(export_onnx, name, value)
    settings: dict[str, Any] = {"router": HashConfig()} if family == "hash" else TINY.get(family, {})
    run = finish(tiny_config(text_file, **settings, train={"steps": 1}), tmp_path / "out")
    words = ["export", "latest", tmp_path / "a.onnx", "--outputs", tmp_path / "out"]
    result = moe(*words, "--json")
    assert 0 == result.exit_code, result.output
    has_text = family not in ("vit", "mmoe")
    assert ["a.onnx", "a.tokenizer.json"][: 1 + has_text] == json.loads(result.stdout)["files"]
    assert {"out", "a.onnx", *(["a.tokenizer.json"] if has_text else [])} == {path.name for path in tmp_path.iterdir()}
    assert b"graph" == (tmp_path / "a.onnx").read_bytes()
    assert {"moe.version", "moe.run", "moe.step", "moe.settings"} | METADATA[family] == set(given)
    assert (run.id, 1) == (given["moe.run"], given["moe.step"])
    assert str(text_file) not in json.dumps(given)
    if family == "bert":
        assert 1 + given["moe.mask_token"] == embedding_rows(run)
    if family == "t5":
        assert 1 + given["moe.decoder_start_token"] == embedding_rows(run)
    again = moe(*words)
    assert 2 == again.exit_code
    assert "a.onnx exists. Name another file, or replace it with --force." in " ".join(again.stderr.split())
    assert 0 == moe(*words, "--force").exit_code


def embedding_rows(run: Run) -> int:
    """The rows of the embedding of a run's last checkpoint."""
    return len(load_file(find_checkpoint(run, "latest").folder / "model.safetensors")["embedding.weight"])


TINY_WORDS = [*(SMALL + ATTENTION).split(), "train.steps=1", "train.batch_size=2", "train.threads=1"]

# --- with onnx and onnxruntime

FAMILIES = {
    "gpt": ATTENTION + "model.num_layers=2",
    "gpt, n-grams": ATTENTION + "model.ngrams=3 model.ngram_rows=50",
    "gpt, dense": ATTENTION + "expert=1 model.sliding_window=4 model.logit_softcap=15",
    "gpt, sigmoid": ATTENTION + "router=sigmoid router.groups=2 router.top_groups=1 expert=8 model.shared_experts=1",
    "gpt, switch": ATTENTION + "router=switch k=1 model.position_encoding=learned model.norm=layer",
    "gpt, hash": ATTENTION + "router=hash model.num_kv_heads=1",
    "gpt, relu": ATTENTION + "router=relu",
    "gpt, many": ATTENTION + "expert=16 k=10 router.null_experts=2 router.score=cosine",
    "gpt, lists": ATTENTION + "model.num_layers=3 k=[1,3] model.moe_layers=[1,3] match=none model.d_expert=[8,8,16,32]",
    "bert": ATTENTION + "model=bert task=masked_lm",
    "t5": ATTENTION + "model=t5 task=span_corruption model.num_layers=4",
    "lstm": "model=lstm model.context_length=16",
    "vit": "model=vit task=images data=digits model.num_heads=2 router=soft",
    "mmoe": "model=mmoe task=ratings data=ratings",
}
# Batch, length and decoder length; the traced example has others.
SIZES = [(1, 1, 1), (2, 16, 3), (4, 9, 8)]


def drawn(given: onnx_graph.Input, size: tuple[int, int, int]) -> torch.Tensor:
    """An input of another batch and length."""
    shape = list(given.example.shape)
    for index, (name, _) in given.sizes.items():
        shape[index] = size[("batch", "length", "decoder_length").index(name)]
    if given.example.is_floating_point():
        return torch.randn(shape)
    return torch.rand(shape) > 0.3 if given.name == "mask" else torch.randint(VOCAB, shape)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_computes_our_logits(family: str) -> None:
    """Logits within 1e-4 for batches and lengths that were not traced; one position and one row included."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = load_config((SMALL + FAMILIES[family]).split()).config
    ours, traced = (randomise(make_model(config, VOCAB), 1) for _ in range(2))
    inputs = onnx_graph.inputs_of(config, VOCAB)
    content = onnx_graph.trace(traced, config, inputs, {"moe.step": 3})
    onnx.checker.check_model(content)
    proto = onnx.load_model_from_string(content)
    assert "3" == {entry.key: entry.value for entry in proto.metadata_props}["moe.step"]
    assert {""} == {node.domain for node in proto.graph.node}  # operators of ONNX itself: no code of ours
    assert b"/moe_cli/" not in content  # nor paths of source files
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    torch.manual_seed(2)
    for size in SIZES:
        tensors = {given.name: drawn(given, size) for given in inputs}
        logits = session.run([onnx_graph.OUTPUT], {name: tensor.numpy() for name, tensor in tensors.items()})[0]
        with torch.no_grad():
            expected = ours(*tensors.values())[0]
        if "mask" in tensors:  # padding has logits that mean nothing
            logits, expected = logits[tensors["mask"].numpy()], expected[tensors["mask"]]
        assert expected.shape == logits.shape
        if expected.numel():
            np.testing.assert_allclose(logits, expected.numpy(), atol=TOLERANCE, rtol=0)
            assert expected.std() > 0.01


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_run_becomes_a_file(text_file: Path, tmp_path: Path) -> None:
    """The command warns of nothing, and what it writes has the run's settings and no path of this machine."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = finish(tiny_config(text_file, train={"steps": 1}), tmp_path / "out")
    file = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = moe("export", "latest", file, "--outputs", tmp_path / "out", "--json")
    assert 0 == result.exit_code, result.output
    described = json.loads(result.stdout)
    assert ["model.onnx", "model.tokenizer.json"] == described["files"]
    assert described["difference"] < TOLERANCE
    assert described["bytes"] == file.stat().st_size
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert run.config_dict()["model"] == metadata["moe.settings"]["model"]
    assert str(text_file.parent).encode() not in file.read_bytes()


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("unchecked_shapes")
def test_routers_of_plugins(text_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A plug-in's router that draws, or that depends on values, is refused in one line."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    scores = "logits, probs = self.scores(tokens)"
    for name, line, message in (
        ("drawn", "import torch; probs = probs + torch.rand_like(probs)", "the model draws random numbers"),
        ("guarded", "assert float(probs.detach().sum()) >= 0", "router=guarded cannot be traced by torch.export: "),
    ):
        file = tmp_path / f"{name}.py"
        source = router_source(name)
        assert scores in source
        file.write_text(source.replace(scores, f"{scores}\n            {line}"))
        words = [
            f"data.path={text_file}",
            *TINY_WORDS,
            f"router={name}",
            "--plugin",
            file,
            "--outputs",
            tmp_path / name,
        ]
        assert 0 == moe("train", "data=text", *words).exit_code
        result = moe("export", "latest", tmp_path / "a.onnx", "--plugin", file, "--outputs", tmp_path / name)
        assert 2 == result.exit_code
        assert f"error: {message}" in " ".join(result.stderr.split())
        assert len(result.stderr.splitlines()) <= 4
        assert not (tmp_path / "a.onnx").exists()
    assert "def forward" not in "".join(capfd.readouterr())


def test_every_family_is_here() -> None:
    """A new family of models needs a case in this file."""
    from moe_cli.models.registry import MODELS

    assert set(MODELS) == {name.partition(",")[0] for name in FAMILIES}
