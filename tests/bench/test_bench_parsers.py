"""What the bench reads from other programs, on what they really wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.counters import parse_counters, with_ratios
from bench.errors import BenchError
from bench.iperf import parse_transfer
from bench.netperf import parse_keyvals
from bench.stacks import fold, parse_script
from bench.syscalls import parse_syscalls

SAMPLES = Path(__file__).parent / "samples"


def test_iperf3_two_streams() -> None:
    transfer = parse_transfer((SAMPLES / "iperf3.json").read_text())
    assert transfer.streams == 2
    assert not transfer.reverse
    assert transfer.received_bytes > 0
    assert transfer.gbit_s == pytest.approx(transfer.received_bytes * 8 / transfer.seconds / 1e9)


def test_iperf3_tells_why_it_failed() -> None:
    with pytest.raises(BenchError, match="unable to connect to server: Connection refused"):
        parse_transfer((SAMPLES / "iperf3-refused.json").read_text())


@pytest.mark.parametrize("text", ["", "iperf3: command not found", "{}", '{"end": {}}', '{"end": {"sum_sent": 1}}'])
def test_iperf3_without_a_result(text: str) -> None:
    with pytest.raises(BenchError, match="iperf3"):
        parse_transfer(text)


def test_netperf_keyvals() -> None:
    told = parse_keyvals(
        "THROUGHPUT=2841.07\nTHROUGHPUT_UNITS=Trans/s\nP50_LATENCY=334\nP90_LATENCY=391\nP99_LATENCY=402\n"
        "ELAPSED_TIME=3.00\n"
    )
    assert told == {"per_second": 2841.07, "elapsed_s": 3.0, "p50_us": 334, "p90_us": 391, "p99_us": 402}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "establish control: are you sure there is a netserver listening?",
        "THROUGHPUT=1\nTHROUGHPUT_UNITS=10^6bits/s",
    ],
)
def test_netperf_without_transactions(text: str) -> None:
    with pytest.raises(BenchError, match="netperf"):
        parse_keyvals(text)


STRACE = """\
strace: Process 883435 attached with 4 threads
strace: Process 883438 detached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 57.80   14.590016      442121        33           epoll_wait
 28.84    7.279883           4   1771146           sendto
 13.33    3.363882           1   1771212        48 recvfrom
  0.02    0.003843          61        62        44 futex
  0.00    0.000079           4        18           shutdown
------ ----------- ----------- --------- --------- ----------------
100.00   25.242897           7   3542787       143 total
"""


def test_strace_table() -> None:
    rows = parse_syscalls(STRACE)
    assert [row.name for row in rows] == ["recvfrom", "sendto", "futex", "epoll_wait", "shutdown"]
    recvfrom, sendto, futex, epoll_wait, _ = rows
    assert (recvfrom.calls, recvfrom.errors, recvfrom.seconds) == (1771212, 48, 3.363882)
    assert sendto.errors == 0
    assert epoll_wait.waits
    assert futex.waits
    assert not sendto.waits


def test_perf_without_hardware_counters() -> None:
    counts = parse_counters(
        "<not supported>,,cycles,0,100.00,,\n<not supported>,,instructions,0,100.00,,\n"
        "<not counted>,,cache-misses,0,100.00,,\n4501,,context-switches,57152650,100.00,78.754,K/sec\n"
        "0,,cpu-migrations,57152650,100.00,0.000,/sec\n"
    )
    assert counts["cycles"] is None
    assert counts["cache-misses"] is None
    assert counts["branches"] is None
    assert counts["context-switches"] == 4501
    assert counts["cpu-migrations"] == 0
    assert with_ratios(counts)["IPC"] is None


def test_perf_adds_up_two_kinds_of_cores() -> None:
    counts = parse_counters(
        "1000,,cpu_atom/cycles/,1,0.10,,\n9000,,cpu_core/cycles/,1,99.90,,\n"
        "500,,cpu_atom/instructions/,1,0.10,0.77,insn per cycle\n"
        "14500,,cpu_core/instructions/,1,99.90,1.18,insn per cycle\n"
    )
    assert counts["cycles"] == 10000
    assert counts["instructions"] == 15000
    assert with_ratios(counts)["IPC"] == 1.5


PERF_SCRIPT = """\
python3  8973/8973   2838.719449: cpu-clock:
\tffffffff822025be do_nanosleep ([kernel.kallsyms])
\tffffffff81421cd4 hrtimer_nanosleep+0x1f ([kernel.kallsyms])
\t           cf503 clock_nanosleep@GLIBC_2.2.5 (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t               0 [unknown] ([unknown])

python3  8973/8973   2838.749453: cpu-clock:
\tffffffff822025be do_nanosleep ([kernel.kallsyms])
\tffffffff81421cd4 hrtimer_nanosleep+0x2e ([kernel.kallsyms])
\t           cf503 clock_nanosleep@GLIBC_2.2.5 (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t               0 [unknown] ([unknown])

nginx: worker p  17/19   2838.789407: cpu-clock:
\t           12345 [unknown] (/usr/sbin/nginx)
"""


def test_perf_script_becomes_stacks() -> None:
    assert fold(parse_script(PERF_SCRIPT.splitlines())) == [
        "nginx: worker p;[nginx] 1",
        "python3;[unknown];clock_nanosleep@GLIBC_2.2.5;hrtimer_nanosleep;do_nanosleep 2",
    ]
