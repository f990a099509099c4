"""What is made from stored results: a page for the browser, the figures in README.md and in pages of docs."""

from __future__ import annotations

from bench.report.kept import newest_kept
from bench.report.markdown import write_pages
from bench.report.page import write_page

__all__ = ["newest_kept", "write_page", "write_pages"]
