"""What is made from stored results: a page for the browser, the figures in README.md and docs/performance.md."""

from __future__ import annotations

from bench.report.markdown import write_pages
from bench.report.page import write_page

__all__ = ["write_page", "write_pages"]
