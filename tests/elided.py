"""Messages that a test asserts in part."""

import re


class Elided:
    """Equals every text that has the parts of `text`, with any words at each `...`.

    Only the test of the sentence itself has all its words, so that a new wording changes one test.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        pattern = ".*".join(map(re.escape, self.text.split("...")))
        return isinstance(other, str) and re.fullmatch(pattern, other, re.DOTALL) is not None

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return repr(self.text)
