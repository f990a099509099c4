"""Metrics: what is scraped is what was counted, in both lanes and both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from oinetd import Forwarder, parse_config
from oinetd.admin.scrape import scrape
from oinetd.core.histogram import CONNECT_BOUNDS_S, DURATION_BOUNDS_S, Histogram
from tests.admin.echo import echo_server
from tests.admin.rig import administered
from tests.forwarding import bound, echoes
from tests.peers import until


def samples(text: str, parse=text_string_to_metric_families) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:  # type: ignore[no-untyped-def]
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_a_scrape_has_what_was_counted_in_both_formats(tmp_path: Path) -> None:
    async with echo_server() as (host, port):
        text = f"127.0.0.1 0 {host} {port} [name=fast]\n127.0.0.1 0 {host} {port} [name=slow, engine=python]\n"
        async with administered(tmp_path, text + "metrics 127.0.0.1 0\n") as admin:
            for at in (0, 0, 1):
                assert await echoes(bound(admin.forwarder, at), b"12345")
            await until(lambda: not admin.forwarder.stats().live)
            for accept, parse in (
                ("", text_string_to_metric_families),
                ("application/openmetrics-text", parse_openmetrics),
            ):
                status, headers, body = await admin.ask("GET", "/metrics", accept=accept)
                assert status == 200
                found = samples(body.decode(), parse)
                for rule, count in (("fast", 2), ("slow", 1)):
                    assert found[key("oinetd_accepted_total", rule=rule)] == count
                    assert found[key("oinetd_sessions_total", rule=rule, ending="client-closed")] == count
                    assert found[key("oinetd_sessions_total", rule=rule, ending="connect-failed")] == 0
                    assert found[key("oinetd_bytes_total", rule=rule, direction="up")] == 5 * count
                    assert found[key("oinetd_session_duration_seconds_count", rule=rule)] == count
                    assert found[key("oinetd_connect_duration_seconds_count", rule=rule)] == count
                    assert found[key("oinetd_connect_duration_seconds_bucket", rule=rule, le="10.0")] == count
                    assert found[key("oinetd_live_sessions", rule=rule)] == 0
                assert found[key("oinetd_rule_info", rule="slow", lane="python")] == 1
                assert found[key("oinetd_last_reload_success")] == 1
                assert found[key("oinetd_max_descriptors")] > 0
            assert headers["content-type"].startswith("application/openmetrics-text")


@pytest.mark.parametrize(
    ("accept", "library"), [("", generate_latest), ("application/openmetrics-text", openmetrics.generate_latest)]
)
async def test_a_scrape_is_what_the_library_would_write(accept: str, library: Callable[[Any], bytes]) -> None:
    odd = CounterMetricFamily("odd", 'back\\slash "quote" line\nend', labels=("z", "a"))
    odd.add_metric(('q"\\\n', "é"), 1234567.5)
    odd.add_metric(("", ""), float("inf"))
    async with Forwarder(parse_config("127.0.0.1 0 127.0.0.1 9\n127.0.0.1 0/udp 127.0.0.1 9/udp\n")) as forwarder:
        found = [*forwarder.collector().collect(), odd]

        class Same:
            def collect(self) -> list[Any]:
                return found

        assert (await scrape(Same(), accept)).body == library(Same())


async def test_a_listener_for_metrics_has_nothing_else(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9\nmetrics 127.0.0.1 0\n") as admin:
        assert (await admin.ask("GET", "/metrics", tcp=True))[0] == 200
        assert (await admin.ask("GET", "/v1/status", tcp=True))[0] == 404
        assert (await admin.ask("POST", "/v1/reload", tcp=True))[0] == 404


async def test_many_rules_are_scraped_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"127.0.0.1 0 127.0.0.1 9 [name=r{number}]\n" for number in range(60))
    async with administered(tmp_path, text) as admin:
        _, _, body = await admin.ask("GET", "/metrics")
        assert body.count(b"# TYPE oinetd_live_sessions ") == 1
        assert sum(name == "oinetd_live_sessions" for name, _ in samples(body.decode())) == 60


async def test_a_program_has_the_metrics_in_a_registry_of_its_own() -> None:
    async with Forwarder(parse_config("127.0.0.1 0 127.0.0.1 9\n")) as forwarder:
        registry = CollectorRegistry()
        registry.register(forwarder.collector())
        assert registry.get_sample_value("oinetd_live_sessions", {"rule": "127.0.0.1:0/tcp"}) == 0


@pytest.mark.parametrize("bounds", [DURATION_BOUNDS_S, CONNECT_BOUNDS_S])
def test_a_histogram_counts_each_duration_once(bounds: tuple[float, ...]) -> None:
    histogram = Histogram(bounds)
    for bound_s in bounds:
        histogram.add(bound_s)
        histogram.add(bound_s * 1.0001)
    assert sum(histogram.now.counts) == 2 * len(bounds)
    assert histogram.now.counts == (1, *[2] * (len(bounds) - 1), 1)
    assert histogram.now.plus(histogram.now).sum_s == 2 * histogram.now.sum_s
