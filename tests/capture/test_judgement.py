"""Sent against captured, the table's figures, and what tcpdump says at its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.capture.judgement import acknowledged, judge, missed_by_both
from bench.capture.streams import Stream
from bench.capture.tcpdump import parse_counts, read_pcap
from bench.capture.traffic import Sent
from bench.capture.trial import Row
from bench.errors import BenchError

pytest.importorskip("bench._native")
output = pytest.importorskip("bench.capture.output", reason="the bench extra is not installed")
watch = pytest.importorskip("bench.capture.watch")
rich = pytest.importorskip("rich.console")

TINY = "tiny ring"


def stream(base: int, *intervals: tuple[int, int], begun: bool = True, **more: object) -> Stream:
    told: dict[str, object] = {
        "source": "10.0.1.2", "source_port": 40000, "target": "10.0.1.1", "target_port": 8080, "base": base,
        "begun": begun, "ended": False, "reset": False, "length": None, "acknowledged": None, "intervals": intervals,
        "packets": 1, "payload": 0, "repeated": 0, "spilled": 0, "first_ns": 0, "last_ns": 0, "head": "",
        "opposite": None, **more,
    }  # fmt: skip
    return Stream(**told)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [1000, 2**32 - 50])
def test_what_was_missed(first: int) -> None:
    sent = [Sent(40000, 8080, first, 300)]
    leg = judge(sent, [stream(first, (0, 100), (150, 250))])
    assert (leg.sent, leg.captured, leg.missed, leg.gaps) == (300, 200, 100, 2)


def test_a_capture_that_began_in_the_middle() -> None:
    sent = [Sent(40000, 8080, 2**32 - 50, 300)]
    leg = judge(sent, [stream(100, (0, 150), begun=False)])
    assert (leg.captured, leg.gaps) == (150, 1)


def test_another_connection_of_the_same_ports_counts_for_nothing() -> None:
    sent = [Sent(40000, 8080, 1000, 300)]
    assert judge(sent, [stream(1_000_000, (0, 300))]).captured == 0
    assert judge(sent, []).missed == 300


def test_missed_by_both() -> None:
    sent = [Sent(40000, 8080, 1000, 300)]
    assert missed_by_both(sent, [stream(1000, (0, 200))], [stream(1000, (100, 250))]) == 50


def test_receivers_tell_what_was_sent() -> None:
    one = [stream(1000, (0, 200), acknowledged=301)]
    other = [stream(1000, (0, 250))]
    assert acknowledged([one, other], 8080) == [Sent(40000, 8080, 1000, 300)]
    assert acknowledged([one], 9999) == []
    ended = [stream(1000, (0, 200), acknowledged=301, ended=True, length=300)]
    assert acknowledged([ended], 8080) == [Sent(40000, 8080, 1000, 300)]


def rows(missed: int = 0) -> list[Row]:
    each = [
        Row("64B", mode, tool, leg, 0, 1.0, 1000, 1000 - missed, missed, None, 1, 4, 50, 3, 0.001, 8192)
        for mode, tool in (("ring", "ring"), ("tcpdump", "tcpdump"), ("together", "ring"), ("together", "tcpdump"))
        for leg in ("client", "upstream")
    ]
    bare = [Row("64B", "nothing", "", leg, 0, 1.0, 1000) for leg in ("client", "upstream")]
    tiny = [
        Row("1KB", TINY, "ring", leg, 0, 1.0, 1000, 900, 100, None, 2, 4, 50, 7, 0.001, 8192)
        for leg in ("client", "upstream")
    ]
    return [*bare, *each, *tiny]


def test_csv_there_and_back(tmp_path: Path) -> None:
    output.write_csv(rows(), tmp_path / "rows.csv")
    assert output.read_csv(tmp_path / "rows.csv") == rows()


def test_sentences() -> None:
    told = output.verdicts(rows(missed=10))
    assert any("on the same traffic: the ring missed 1.0000 %, tcpdump 1.0000 %" in line for line in told)
    assert "dropped 7 packets" in told[-1]
    assert "200 bytes missed in 4 ranges: loss is seen" in told[-1]


def test_no_loss_proves_nothing() -> None:
    unharmed = [row for row in rows() if row.mode != TINY]
    unharmed.append(Row("1KB", TINY, "ring", "client", 0, 1.0, 1000, 1000, 0, None, 0, 4, 50, 0, 0.001, 8192))
    assert "NO LOSS" in output.verdicts(unharmed)[-1]


_PLOT = """
import sys
from pathlib import Path
from bench.capture.output import read_csv, write_plot
sequences = {"client": {"sent": [(0, 1000)], "ring": [(0, 500), (600, 1000)]}}
write_plot(read_csv(Path(sys.argv[1])), sequences, Path(sys.argv[2]))
"""


def test_table_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    console = rich.Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    with console.file:
        output.print_rows(rows(missed=10), console)
        told = console.export_text()
    assert "tcpdump" in told
    output.write_csv(rows(missed=10), tmp_path / "rows.csv")
    # In a process of its own: matplotlib keeps its fonts open.
    subprocess.run([sys.executable, "-c", _PLOT, tmp_path / "rows.csv", tmp_path / "plot.svg"], check=True)
    assert "</svg>" in (tmp_path / "plot.svg").read_text()


def test_last_words_of_tcpdump() -> None:
    told = parse_counts(
        "tcpdump: data link type LINUX_SLL2\ntcpdump: listening on any, link-type LINUX_SLL2 (Linux cooked v2)\n"
        "97220 packets captured\n97226 packets received by filter\n6 packets dropped by kernel\n"
    )
    assert (told.packets, told.drops) == (97226, 6)
    with pytest.raises(BenchError, match="did not say"):
        parse_counts("tcpdump: any: You don't have permission\n")


def test_a_pcap_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "none.pcap"
    for content in (b"", b"no packets here, only words"):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=r"none\.pcap"):
            read_pcap(path)


def test_routes(tmp_path: Path) -> None:
    path = tmp_path / "oinetd.conf"
    path.write_text("0.0.0.0 8080 10.0.0.2 80\n127.0.0.1 9000-9002 10.0.0.2 7000-7002\n")
    assert watch.routes_of_config(path) == {8080: 80, 9000: 7000, 9001: 7001, 9002: 7002}
    assert watch.routes_of_rules(["127.0.0.1 1 h.example 2"]) == {1: 2}
    with pytest.raises(BenchError, match="cannot be distinguished"):
        watch.routes_of_rules(["127.0.0.1 80 h.example 80"])
    with pytest.raises(BenchError, match="no TCP rule"):
        watch.routes_of_rules([])
    path.write_text("what is this\n")
    with pytest.raises(BenchError, match=r"oinetd\.conf"):
        watch.routes_of_config(path)


@pytest.mark.parametrize("words", [
    ["python", "-m", "oinetd", "-f", "-c", "x.conf", ""],
    ["oinetd", "--conf-file", "x.conf"],
    ["oinetd", "--conf-file=x.conf", "-f"],
])  # fmt: skip
def test_the_configuration_of_a_process(words: list[str]) -> None:
    assert watch._configuration(words, Path("/srv")) == Path("/srv/x.conf")
