"""Output of `moe reproduce`: a claim with its sweep and its power, before the runs."""

from typing import Any

from rich.console import Console

from moe_cli.claims.plan import ClaimPlan
from moe_cli.claims.text import claim_lines
from moe_cli.cli.console import print_lines, text_width
from moe_cli.cli.views import SweepView
from moe_cli.sweeps.run_sweep import PreparedSweep
from moe_cli.sweeps.scheduler import ListFeed, Pool


class ClaimView(SweepView):
    """Shows the sweep of a claim, and first the claim's source and what its seeds can decide."""

    def __init__(self, console: Console, plan: ClaimPlan) -> None:
        super().__init__(console)
        self.plan = plan
        self._is_introduced = False

    def preview(self, prepared: Any) -> None:
        super().preview(prepared)
        self._introduce(prepared)

    def begin(self, prepared: PreparedSweep, feed: ListFeed, pool: Pool | None) -> None:
        super().begin(prepared, feed, pool)
        self._introduce(prepared)

    def _introduce(self, prepared: PreparedSweep) -> None:
        if not self._is_introduced:
            self._is_introduced = True
            power = self.plan.power(prepared.outputs) if prepared.has_work() else []
            print_lines(self.console, claim_lines(self.plan.claim, power, text_width(self.console)))
