"""Writes the tokenizer of a run as tokenizer.json, with the same ids, and the files that say how to load it."""

import json
from typing import Any

from moe_cli.data.bpe import SubwordTokenizer, byte_alphabet
from moe_cli.data.tokenizers import ByteTokenizer, Tokenizer, find_separator


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Returns the content of tokenizer.json. That of subword tokenizers is theirs, unchanged."""
    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizer.json
    described = _bytes() if isinstance(tokenizer, ByteTokenizer) else _characters(tokenizer.alphabet)
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return json.dumps({"version": "1.0", **empty, "added_tokens": [], **described}, ensure_ascii=False)


def _bytes() -> dict[str, Any]:
    """Describes a vocabulary of the 256 bytes, in the alphabet of byte-level tokenizers, and no merges."""
    ids = {sign: byte[0] for sign, byte in byte_alphabet().items()}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "vocab": dict(sorted(ids.items(), key=lambda item: item[1])), "merges": []}
    return {"pre_tokenizer": level, "decoder": level, "model": model}


def _characters(alphabet: str) -> dict[str, Any]:
    """Describes a vocabulary of characters, each a word; others are refused, as by the run's own tokenizer."""
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    ids = {character: number for number, character in enumerate(alphabet)}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    return {"pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}


def tokenizer_config(context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }


def generation_config(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Returns the settings of generation: greedy, and ended by the token between documents, if there is one."""
    separator = None if tokenizer is None else find_separator(tokenizer)
    return {"do_sample": False, "bos_token_id": None, "eos_token_id": separator, "pad_token_id": separator}
