"""What is made from stored results: a page for the browser, a section for the README."""

from __future__ import annotations

from bench.report.page import write_page
from bench.report.readme import write_readme

__all__ = ["write_page", "write_readme"]
