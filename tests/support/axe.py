"""axe of npm in a page of the tests: what it finds is a barrier to somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.support.npm import installed
from tests.support.paths import ROOT

SOURCE = ROOT / "tests/support/axe_npm"
# All of its rules but the experimental ones; that for the size of targets is off unless it is asked for.
_RUN = "() => axe.run(document, { rules: { 'target-size': { enabled: true } } })"


class Axe:
    """axe's rules, from their package, which is installed at first.

    Args:
        folder: to install it in; is made.
    """

    def __init__(self, folder: Path) -> None:
        self._script = (installed(SOURCE, folder) / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")

    def violations(self, page: Page) -> list[str]:
        """Each rule that the page breaks, and where."""
        if not page.evaluate("typeof axe === 'object'"):
            page.evaluate(self._script)  # in a script element the page's own policy would forbid it
        found: list[dict[str, Any]] = page.evaluate(_RUN)["violations"]
        return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]
