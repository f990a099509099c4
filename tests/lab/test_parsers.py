"""The forms that perf, the kernel, nginx and wrk have for what they tell."""

from __future__ import annotations

import pytest

from bench.lab.counters import parse_stat
from bench.lab.hotspots import OTHER, USER, purpose
from bench.lab.scenario import SCENARIOS, parse_wrk
from bench.lab.scheduling import measure_switches
from bench.lab.script import Frame, Sample, read_events, read_samples
from bench.lab.snapshot import read_netdev, read_requests
from bench.lab.stages import measure_calls, measure_stages


def test_counters_of_two_kinds_of_cores_are_added() -> None:
    told = parse_stat("""# started on Sat Nov 21 10:11:44 2026

100,,cpu_core/cycles/,10,100.00,,
23,,cpu_atom/cycles/,10,100.00,,
<not supported>,,branches,0,100.00,,
<not counted>,,instructions,0,0.00,,
605.18,msec,cpu-clock,605181725,100.00,1.986,CPUs utilized
7,,page-faults:u,605181725,100.00,,
""")
    expected = {"cycles": 123.0, "branches": None, "instructions": None, "cpu-clock": 605.18, "page-faults": 7.0}
    assert told == expected


EVENTS = """\
        oinetd a/b/1 100/101   [000]    50.000001000:    syscalls:sys_enter_splice: fd_in: 0x00000010
               swapper     0/0     [001]    50.000001500:          irq:softirq_entry: vec=3 [action=NET_RX]
        oinetd a/b/1 100/101   [000]    50.000004500:     syscalls:sys_exit_splice: 0x1000
               swapper     0/0     [001]    50.000009500:           irq:softirq_exit: vec=3 [action=NET_RX]
        oinetd a/b/1 100/101   [000]    50.000005000:    syscalls:sys_enter_recvfrom: fd: 0x10
        oinetd a/b/1 100/101   [000]    50.000006000:     syscalls:sys_exit_recvfrom: 0xfffffffffffffff5
               swapper     0/0     [000]    50.000010000:          net:net_dev_queue: dev=lo skbaddr=0xffff1 len=66
               swapper     0/0     [000]    50.000012000:           net:net_dev_xmit: dev=lo skbaddr=0xffff1 len=66 rc=0
swapper     0 [000]    50.000012000: PERF_RECORD_LOST lost 17
"""


def test_events() -> None:
    events = list(read_events(EVENTS.splitlines(keepends=True)))
    assert len(events) == 9
    first = events[0]
    assert (first.command, first.pid, first.tid, first.cpu) == ("oinetd a/b/1", 100, 101, 0)
    assert first.time_ns == 50_000_001_000
    assert (first.name, first.text) == ("syscalls:sys_enter_splice", "fd_in: 0x00000010")
    assert events[-1].lost == 17


def test_durations() -> None:
    from bench.lab.snapshot import Difference

    passed = Difference(1.0, 2 * 10**9, 4, 0.0, 0.0, 0, 0, {})
    calls = measure_calls(read_events(EVENTS.splitlines()), passed, 1.0)
    assert calls["lost"] == 17
    assert calls["calls"]["splice"] | {"count": 1, "p50": 3.5, "failed": 0} == calls["calls"]["splice"]
    assert calls["calls"]["recvfrom"]["failed"] == 1
    assert calls["calls"]["splice"]["per_gb"] == 0.5
    assert calls["calls"]["splice"]["per_request"] == 0.25
    stages = measure_stages(read_events(EVENTS.splitlines()))
    assert stages["net_rx_us"]["p50"] == 8.0
    assert stages["queue_to_device_us"]["p50"] == 2.0
    assert stages["length"]["net:net_dev_queue"]["mean"] == 66


SWITCH = (
    "sched:sched_switch: prev_comm={} prev_pid={} prev_prio=120 prev_state={}"
    " ==> next_comm={} next_pid={} next_prio=120"
)
SWITCHES = [
    (1, SWITCH.format("a b", 7, "S", "svc", 100)),
    (11, SWITCH.format("svc", 100, "R+", "hog", 8)),
    (31, SWITCH.format("hog", 8, "S", "svc", 100)),
    (36, SWITCH.format("svc", 100, "S", "swapper/0", 0)),
    (50, "sched:sched_wakeup: comm=svc pid=100 prio=120 target_cpu=000"),
    (52, "sched:sched_wakeup: comm=svc pid=100 prio=120 target_cpu=000"),
    (53, SWITCH.format("swapper/0", 0, "R", "svc", 100)),
    (54, "sched:sched_migrate_task: comm=svc pid=100 prio=120 orig_cpu=0 dest_cpu=1"),
    (55, "sched:sched_wakeup: comm=other pid=9 prio=120 target_cpu=000"),
]


def test_switches() -> None:
    lines = [f"  x  1/1  [000]  9.{time * 1000:09d}: {told}" for time, told in SWITCHES]
    told = measure_switches(read_events(lines), {100})
    assert (told["voluntary"], told["involuntary"], told["migrations"]) == (1, 1, 1)
    assert told["put_out_by"] == {"hog": 1}
    assert told["run_us"]["total"] == 15
    assert (told["delay_us"]["count"], told["delay_us"]["max"], told["delay_us"]["total"]) == (2, 20, 23)
    assert told["system_switches"] == 5


STACKS = """\
my prog 1/2 55/56 [000]  5011.629462000: cpu-clock:ppp: 
\tffffffff813620e2 veth_xmit+0x12 ([kernel.kallsyms])
\tffffffff8136238e tcp_sendmsg ([kernel.kallsyms])
\t           f82ec splice (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t               0 [unknown] ([unknown])

swapper     0/0     [001]  5011.629463000: cycles: 
\tffffffff813620e2 pv_native_safe_halt ([kernel.kallsyms])

python 31706/31706 [000]  5011.635470000: cpu-clock:ppp: 
\t          523dd4 operator()(int) (/usr/bin/x (deleted))

"""  # noqa: W291


def test_stacks() -> None:
    one, two, three = read_samples(STACKS.splitlines(keepends=True))
    assert (one.command, one.pid, one.event) == ("my prog 1/2", 55, "cpu-clock:ppp")
    assert [frame.symbol for frame in one.frames] == ["veth_xmit", "tcp_sendmsg", "splice", "[unknown]"]
    assert [frame.kernel for frame in one.frames] == [True, True, False, False]
    assert two.idle
    assert two.event == "cycles"
    assert three.frames[0].symbol == "operator()(int)"


@pytest.mark.parametrize(("symbols", "expected"), [
    (["_raw_spin_lock", "veth_xmit", "tcp_sendmsg", "do_splice"], "transmit: TCP to device"),
    (["skb_splice_bits", "tcp_splice_read", "do_splice"], "pipes and splice"),
    (["tcp_rcv_established", "tcp_v4_rcv", "tcp_sendmsg"], "receive: device to TCP"),
    (["_copy_to_iter", "tcp_recvmsg"], "copying bytes"),
    (["tcp_recvmsg_locked", "do_syscall_64"], "sockets"),
    (["enqueue_to_backlog", "netif_rx_internal", "tcp_sendmsg"], "transmit: TCP to device"),
    (["something_else"], OTHER),
])  # fmt: skip
def test_purposes(symbols: list[str], expected: str) -> None:
    frames = tuple(Frame(symbol, "[kernel.kallsyms]") for symbol in symbols)
    assert purpose(Sample("x", 1, "cycles", frames)) == expected


def test_the_purpose_of_user_code() -> None:
    assert purpose(Sample("x", 1, "cycles", (Frame("main", "/bin/x"),))) == USER
    assert purpose(Sample("x", 1, "cycles", ())) == USER


def test_interfaces() -> None:
    head = "Inter-|   Receive\n face |bytes\n"
    lo = "    lo:  10 1 0 0 0 0 0 0   500 1 0 0 0 0 0 0\n"
    assert read_netdev(head + lo) == 500
    assert (
        read_netdev(head + lo + "  eth0: 1 1 0 0 0 0 0 0 700 1 0 0 0 0 0 0\nto-x: 1 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n")
        == 709
    )


def test_requests_of_nginx() -> None:
    assert read_requests("Active connections: 1 \nserver accepts handled requests\n 3 3 17 \nReading: 0\n") == 17
    with pytest.raises(ValueError, match="status"):
        read_requests("404")


def test_wrk_that_did_not_end() -> None:
    with pytest.raises(ValueError, match="end"):
        parse_wrk("Running 1s test\n")


def test_scenarios_fit_the_machine() -> None:
    assert [each.scaled(40) for each in SCENARIOS] == [(16, 1024), (16, 256), (16, 64)]
    assert [each.scaled(2) for each in SCENARIOS] == [(1, 128), (1, 32), (1, 8)]
    assert all(connections >= threads for each in SCENARIOS for threads, connections in [each.scaled(128)])
