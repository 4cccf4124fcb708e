"""The data of the packaged tasks, as lm-evaluation-harness reads them: a data set for the split `test`."""

from typing import Any

from moe_cli.harness import examples


def agreement(**metadata: Any) -> dict[str, Any]:
    return _test_split(examples.agreement())


def brackets(**metadata: Any) -> dict[str, Any]:
    return _test_split(examples.brackets())


def last_word(**metadata: Any) -> dict[str, Any]:
    return _test_split(examples.last_word())


def text(**metadata: Any) -> dict[str, Any]:
    return _test_split(examples.file_text(metadata.get("text")))


def _test_split(documents: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(documents)}
