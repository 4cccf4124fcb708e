"""GGUF files: every tensor and setting reads back, and what llama.cpp's graphs do not have is refused."""

import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moe_cli.cli.app import app
from moe_cli.data.bpe import byte_alphabet, train_bpe
from moe_cli.data.tokenizers import ByteTokenizer, CharTokenizer
from moe_cli.errors import ConfigError
from moe_cli.exchange.gguf import tokenizer_metadata
from moe_cli.files.gguf_file import NotFinite, write_gguf
from moe_cli.files.tensor_file import NewTensor
from moe_cli.runs.folder import Run
from tests.exchange.random_models import VOCAB, random_run
from tests.runner import CliRunner
from tests.tiny import words

SMALL = (
    "match=none model.num_layers=2 model.d_model=12 model.d_ff=20 model.num_heads=2 model.d_head=8 "
    "model.context_length=16 model.activation=silu train.device=cpu "
)
SPARSE = "expert=3 k=2 balance=none model.d_expert=5 "
FAMILIES = {
    "qwen3moe": SPARSE
    + "model.num_kv_heads=1 model.tie_embeddings=false model.rope_scaling=linear model.rope_factor=2",
    "qwen3": "expert=1 model.qk_norm_weights=head model.norm_eps=0.001",
    "llama": "expert=1 model.qk_norm=false model.rope_base=100",
}


def moe(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def small_run(family: str, folder: Path) -> tuple[Run, nn.Module]:
    return random_run(folder / "out", (SMALL + FAMILIES[family]).split(), 0)


class Parsed:
    """A file as read by the specification alone: metadata, and tensors by name."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)
        assert b"GGUF" == self._file.read(4)
        version, num_tensors, num_values = self._unpack("<IQQ")
        assert 3 == version
        self.metadata = {self._text(): self._value(self._unpack("<I")[0]) for _ in range(num_values)}
        places = [self._place() for _ in range(num_tensors)]
        start = -(-self._file.tell() // 32) * 32
        self.tensors = {}
        for name, shape, kind, offset in places:
            assert 0 == offset % 32
            dtype = np.dtype({0: "<f4", 1: "<f2"}[kind])
            flat = np.frombuffer(content, dtype, int(np.prod(shape)), start + offset)
            self.tensors[name] = flat.reshape(shape)
            end = start + offset + flat.nbytes
        assert len(content) == -(-end // 32) * 32

    def _unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self._file.read(struct.calcsize(layout)))

    def _text(self) -> str:
        return str(self._file.read(self._unpack("<Q")[0]), "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._text()
        if kind == 9:
            of, length = self._unpack("<IQ")
            return [self._value(of) for _ in range(length)]
        return self._unpack({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind])[0]

    def _place(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (rank,) = self._text(), self._unpack("<I")
        *sizes, kind, offset = self._unpack(f"<{rank}QIQ")
        return name, tuple(sizes[::-1]), kind, offset


def interleaved(weight: torch.Tensor, d_head: int) -> torch.Tensor:
    """The rows of each head in the order 0, W/2, 1, W/2 + 1, ..., by index."""
    order = [half * d_head // 2 + pair for pair in range(d_head // 2) for half in range(2)]
    return torch.cat([weight[first + torch.tensor(order)] for first in range(0, len(weight), d_head)])


def expected_tensors(family: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model by llama.cpp's names, sliced from the model's own."""
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    theirs = {"token_embd.weight": ours["embedding.weight"], "output_norm.weight": ours["norm.weight"]}
    if "head.weight" in ours:
        theirs["output.weight"] = ours["head.weight"]
    for layer in range(2):
        mine = {name.split(".", 2)[2]: each for name, each in ours.items() if name.startswith(f"blocks.{layer}.")}
        rows = mine["attention.qkv.weight"]
        keys = (len(rows) - 16) // 2
        q, k, v = rows[:16], rows[16 : 16 + keys], rows[16 + keys :]
        if family == "llama":
            q, k = interleaved(q, 8), interleaved(k, 8)
        new = {"attn_norm": mine["attention_norm.weight"], "ffn_norm": mine["ffn_norm.weight"]}
        new |= {"attn_q": q, "attn_k": k, "attn_v": v, "attn_output": mine["attention.out.weight"]}
        if family != "llama":
            ones = torch.ones(8)
            new |= {f"attn_{letter}_norm": mine.get(f"attention.{letter}_norm.weight", ones) for letter in "qk"}
        if family == "qwen3moe":
            w_in = mine["ffn.experts.w_in"]
            new |= {"ffn_gate_inp": mine["ffn.router.gate.weight"], "ffn_down_exps": mine["ffn.experts.w_out"]}
            new |= {"ffn_gate_exps": w_in[:, :5], "ffn_up_exps": w_in[:, 5:]}
        else:
            w_in = mine["ffn.w_in"]
            new |= {"ffn_gate": w_in[:20], "ffn_up": w_in[20:], "ffn_down": mine["ffn.w_out"]}
        theirs |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in new.items()}
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_reads_back(family: str, tmp_path: Path) -> None:
    """Tensors have llama.cpp's names and shapes and the run's bits; in float16 matrices are rounded, gates are not."""
    run, model = small_run(family, tmp_path)
    expected = expected_tensors(family, model)
    for dtype in ("float32", "float16"):
        file = tmp_path / f"{dtype}.gguf"
        result = moe("export", run.id, file, "--outputs", tmp_path / "out", "--dtype", dtype)
        assert 0 == result.exit_code, result.output
        assert f"GGUF {family} {dtype}" in result.stdout
        parsed = Parsed(file.read_bytes())
        assert expected.keys() == parsed.tensors.keys()
        for name, tensor in expected.items():
            is_half = dtype == "float16" and tensor.ndim > 1 and "gate_inp" not in name
            wanted = tensor.numpy().astype(np.float16 if is_half else np.float32)
            assert wanted.dtype == parsed.tensors[name].dtype, name
            np.testing.assert_array_equal(wanted, parsed.tensors[name], err_msg=name)
    assert family == parsed.metadata["general.architecture"]
    settings = {key.removeprefix(f"{family}."): value for key, value in parsed.metadata.items()}
    assert (2, 16, 12, 20, 2, 8) == tuple(
        settings[key]
        for key in (
            *("block_count", "context_length", "embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.key_length"),
        )
    )
    for key, value in SETTINGS[family].items():
        assert value == pytest.approx(settings[key]), key


SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3moe": {
        "attention.head_count_kv": 1,
        "expert_count": 3,
        "expert_used_count": 2,
        "expert_feed_forward_length": 5,
        "rope.scaling.factor": 2.0,
        "attention.layer_norm_rms_epsilon": 2.0**-23,
    },
    "qwen3": {"attention.layer_norm_rms_epsilon": 0.001},
    "llama": {"rope.freq_base": 100.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_of_gguf_agrees(family: str, tmp_path: Path) -> None:
    """The library of llama.cpp reads the same tensors and metadata."""
    gguf = pytest.importorskip("gguf")
    run, model = small_run(family, tmp_path)
    assert 0 == moe("export", run.id, tmp_path / "a.gguf", "--outputs", tmp_path / "out").exit_code
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = expected_tensors(family, model)
    assert expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name], err_msg=name)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert [byte_alphabet_inverse()[index] for index in range(256)] == tokens


def byte_alphabet_inverse() -> Mapping[int, str]:
    return {byte[0]: sign for sign, byte in byte_alphabet().items()}


@pytest.mark.parametrize(
    "setting",
    [
        "model.activation=gelu",
        "router.renormalise=false",
        "model.first_k_dense=1",
        "model.moe_layer_freq=2",
        "model.rope_scaling=yarn model.rope_factor=2",
    ],
)
def test_what_the_graphs_lack_is_refused(setting: str, tmp_path: Path) -> None:
    """llama.cpp would load these and compute something else: one line names the setting, and no file is left."""
    run, _ = random_run(tmp_path / "out", (SMALL + SPARSE + setting).split(), 0)
    result = moe("export", run.id, tmp_path / "a.gguf", "--outputs", tmp_path / "out")
    assert 2 == result.exit_code
    assert f"{setting.split()[0]} has no counterpart in llama.cpp's Qwen3-MoE" in " ".join(result.stderr.split())
    assert ["out"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("setting", ["k=1", "k=1 router=switch"])
def test_one_expert_per_token_is_refused(setting: str, tmp_path: Path) -> None:
    """The weight of a single expert is its probability, which llama.cpp would replace by 1."""
    run, _ = random_run(tmp_path / "out", (SMALL + SPARSE + setting).split(), 0)
    result = moe("export", run.id, tmp_path / "a.gguf", "--outputs", tmp_path / "out")
    assert "k=1 has weights below 1, and llama.cpp's Qwen3-MoE makes weights sum to 1." in " ".join(
        result.stderr.split()
    )


def test_other_families_are_named(tmp_path: Path) -> None:
    """A family that the file does not hold is named, with the way that remains."""
    run, _ = random_run(tmp_path / "out", (SMALL + SPARSE + "model.qk_norm=false").split(), 0)
    result = moe("export", run.id, tmp_path / "a.gguf", "--outputs", tmp_path / "out")
    assert "and this run is Mixtral. Export a folder, and convert it with llama.cpp." in " ".join(result.stderr.split())


def test_a_type_is_for_gguf_only(tmp_path: Path) -> None:
    """--dtype with another format would have no effect."""
    result = moe("export", "latest", tmp_path / "a.onnx", "--dtype", "float16", "--outputs", tmp_path)
    assert "--dtype float16 is for files .gguf." in " ".join(result.stderr.split())


def test_values_that_do_not_fit_are_refused() -> None:
    """70,000 is infinite in float16: nothing is written in its place."""
    tensor = NewTensor("a", (1,), lambda: [np.array([7e4], np.float32)])
    write_gguf(BytesIO(), {}, [tensor])
    with pytest.raises(NotFinite, match="a"):
        write_gguf(BytesIO(), {}, [tensor], ["a"])


def test_tokenizers() -> None:
    """Bytes and our own BPE have their ids; rows of the embedding without a token are unused; characters have none."""
    of_bytes = tokenizer_metadata(ByteTokenizer(), VOCAB + 2)
    assert ["a", "Ġ", "[PAD256]"] == [of_bytes["tokenizer.ggml.tokens"][index] for index in (97, 32, 256)]
    assert [1, 5] == [of_bytes["tokenizer.ggml.token_type"][index] for index in (255, 257)]
    assert [] == of_bytes["tokenizer.ggml.merges"]
    bpe = train_bpe(iter([words(2000)]), 300)
    described = tokenizer_metadata(bpe, 300)
    encoded = bpe.encode("banana bade")
    alphabet = byte_alphabet()
    text = b"".join(alphabet[sign] for index in encoded for sign in described["tokenizer.ggml.tokens"][index])
    assert b"banana bade" == text
    assert all(
        merge.replace(" ", "", 1) in described["tokenizer.ggml.tokens"] for merge in described["tokenizer.ggml.merges"]
    )
    assert {"tokenizer.ggml.model": "none"} == tokenizer_metadata(CharTokenizer("ab"), 2) == tokenizer_metadata(None, 9)


def test_learned_biases_are_refused(tmp_path: Path) -> None:
    """Biases of loss-free balancing have no place in llama.cpp's Qwen3-MoE."""
    from moe_cli.exchange.gguf import gguf_tensors

    run, model = random_run(tmp_path / "out", (SMALL + SPARSE).split(), 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="learned biases of experts"):
        list(gguf_tensors(run.config(), shapes, lambda name, first, count: np.ones(count, np.float32)))
