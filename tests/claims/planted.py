"""Simulated runs of a claim: losses are drawn, nothing is trained."""

from collections.abc import Mapping, Sequence

from moe_cli.claims.records import Scores
from moe_cli.config.expressions import Expression


class Planted:
    """Values by the text of a condition; see `records.Measured`.

    Args:
        scores: the values of each condition by seed.
        series: for each condition, the values of each value of the setting.
        tables: for each condition, the values of each metric of each configuration.
    """

    def __init__(
        self,
        scores: Mapping[str, Scores] | None = None,
        series: Mapping[str, Mapping[float, Scores]] | None = None,
        tables: Mapping[str, Sequence[Sequence[Scores]]] | None = None,
    ) -> None:
        self._scores, self._series, self._tables = scores or {}, series or {}, tables or {}

    def scores(self, metric: str, where: Expression, at: float | None = None) -> Scores:
        return self._scores[where.text]

    def along(self, metric: str, setting: str, where: Expression) -> Mapping[float, Scores]:
        return self._series[where.text]

    def table(self, metrics: Sequence[str], where: Expression) -> Sequence[Sequence[Scores]]:
        return self._tables[where.text]
