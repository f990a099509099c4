"""The model of how many machines are needed: the page has the stored figures, and what follows from them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bench.report.capacity import capacity_section
from bench.report.markdown import BEGIN, END
from bench.results import RESULTS_DIR, Result, load_results, newest

PAGE = (Path(__file__).parents[2] / "docs" / "several-machines.md").read_text()
SECTION = PAGE.partition(BEGIN)[2].partition(END)[0]


@pytest.fixture(scope="module")
def stored() -> dict[str, Result]:
    return dict(newest(load_results([RESULTS_DIR])))


def number(pattern: str) -> float:
    """The number that the page says there."""
    found = re.search(pattern, SECTION)
    assert found is not None, pattern
    return float(found[1].replace(",", ""))


def test_the_page_is_that_of_the_stored_results(stored: dict[str, Result]) -> None:
    made = capacity_section(stored)
    assert made is not None
    assert SECTION.endswith(f"\n\n{made}")


def test_the_example_follows_from_the_figures_of_the_page() -> None:
    connection_us, gb_s = number(r"([\d.]+) µs for a short"), number(r"([\d.]+) s for a GB")
    kib, ports = number(r"([\d.]+) KiB for an idle"), number(r"([\d,]+) connections from one source")
    cores = (20_000 * connection_us / 1e6 + 1.25 * gb_s) / (4 * 0.6)
    memory = 1_000_000 * kib / 2**20 / (16 * 0.7)
    shares = [cores, 10 / (10 * 0.6), memory, 1_000_000 / (ports * 4)]
    said = [number(rf"- {name}: .*?([\d.]+)\.\n") for name in ("Processor", "Network", "Memory")]
    said.append(number(r"= ([\d.]+) with one source address"))
    assert said == pytest.approx(shares, abs=0.06)
    needed = math.ceil(max(*shares[:3], shares[3] / 4))
    assert number(r"So (\d+) machines carry it") == needed
    assert number(r"and (\d+) are what to buy") == needed + 2
    assert number(r"`LimitNOFILE=` above ([\d,]+)") == 2 * 1_000_000 / needed


def test_without_a_figure_there_is_no_model(stored: dict[str, Result]) -> None:
    assert capacity_section({name: stored[name] for name in ("rate", "latency")}) is None
