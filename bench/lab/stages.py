"""Layer 3: the kernel's tracepoints along a packet's way, and the service's system calls with their durations."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench.lab.counters import CALLS, parse_stat
from bench.lab.layer import EVERYWHERE, Figures, Layer, Target, each, percentiles, read_window, window
from bench.lab.perf import Perf, write_script
from bench.lab.script import EVENT_FIELDS, STACK_FIELDS, Event, lines_of, read_events, read_samples
from bench.lab.snapshot import Difference
from bench.lab.tracing import available_events
from bench.syscalls import WAITING

__all__ = ["LAYER", "STAGES", "measure_calls", "measure_stages"]

STAGES = {
    "net:netif_rx": "handed to the receive queue",
    "napi:napi_poll": "polls of a device",
    "net:napi_gro_receive_entry": "given to GRO",
    "net:netif_receive_skb": "received: to IP",
    "net:net_dev_queue": "queued for a device",
    "net:net_dev_xmit": "transmitted",
    "tcp:tcp_probe": "TCP segments processed",
    "tcp:tcp_rcv_space_adjust": "receive window reckoned",
    "tcp:tcp_retransmit_skb": "sent again",
    "tcp:tcp_receive_reset": "resets received",
    "tcp:tcp_send_reset": "resets sent",
    "irq:softirq_entry": "soft interrupts",
    "skb:kfree_skb": "packets dropped",
}
RECORDED = ("napi:napi_poll", "net:netif_receive_skb", "net:net_dev_queue", "net:net_dev_xmit", "irq:softirq_entry",
            "irq:softirq_exit")  # fmt: skip
RARE = ("tcp:tcp_retransmit_skb", "tcp:tcp_send_reset", "tcp:tcp_receive_reset", "skb:kfree_skb")
"""Events with a cause that is worth a call stack."""
RARE_STACKS = 3
RECORD_MAX_S = 0.5
"""Each event is kept, several hundred thousand a second."""

NET_RX = 3
_LENGTH = re.compile(r"\blen=(\d+)")
_BUFFER = re.compile(r"\bskbaddr=(\w+)")
_WORK = re.compile(r"\bwork (\d+)")
_VECTOR = re.compile(r"\bvec=(\d+)")


def collect(target: Target, directory: Path, seconds: float) -> None:
    """Counts for the whole window; then each event for a short one, in a directory of its own."""
    with window(target, directory, seconds, [
        Perf.counting(EVERYWHERE, available_events(STAGES), directory / "counts.csv")
    ]):  # fmt: skip
        pass
    short = directory / "events"
    short.mkdir()
    packets, calls = short / "packets.data", short / "calls.data"
    pairs = [f"syscalls:sys_{side}_{call}" for call in CALLS for side in ("enter", "exit")]
    perfs = [
        Perf.recording(EVERYWHERE, available_events(RECORDED), packets),
        Perf.recording(target.where(), available_events(pairs), calls),
    ]
    if rare := available_events(RARE):
        perfs.append(Perf.stacks_of(EVERYWHERE, rare, short / "rare.data"))
    with window(target, short, min(seconds, RECORD_MAX_S), perfs):
        write_script(packets, EVENT_FIELDS, short / "packets.txt.gz")
        write_script(calls, EVENT_FIELDS, short / "calls.txt.gz")
        if rare:
            write_script(short / "rare.data", STACK_FIELDS, short / "rare.txt.gz")


def measure_stages(events: Iterable[Event]) -> Figures:
    """Lengths and durations of what went by."""
    lengths: dict[str, list[float]] = defaultdict(list)
    work: list[float] = []
    queued: dict[str, int] = {}
    waited_us: list[float] = []
    entered: dict[int, int] = {}
    softirq_us: list[float] = []
    lost = 0
    for event in events:
        lost += event.lost
        if event.name in ("net:netif_receive_skb", "net:net_dev_queue"):
            if found := _LENGTH.search(event.text):
                lengths[event.name].append(int(found.group(1)))
            if event.name == "net:net_dev_queue" and (found := _BUFFER.search(event.text)):
                queued[found.group(1)] = event.time_ns
        elif event.name == "net:net_dev_xmit":
            if (found := _BUFFER.search(event.text)) and (since := queued.pop(found.group(1), None)) is not None:
                waited_us.append((event.time_ns - since) / 1e3)
        elif event.name == "napi:napi_poll":
            if found := _WORK.search(event.text):
                work.append(int(found.group(1)))
        elif (found := _VECTOR.search(event.text)) and int(found.group(1)) == NET_RX:
            if event.name == "irq:softirq_entry":
                entered[event.cpu] = event.time_ns
            elif (since := entered.pop(event.cpu, None)) is not None:
                softirq_us.append((event.time_ns - since) / 1e3)
    return {
        "lost": lost,
        "length": {name: _mean_and(lengths[name]) for name in ("net:netif_receive_skb", "net:net_dev_queue")},
        "packets_per_poll": _mean_and(work),
        "queue_to_device_us": percentiles(waited_us),
        "net_rx_us": {**percentiles(softirq_us), "total": sum(softirq_us)},
    }


def _mean_and(values: list[float]) -> Figures:
    return {**percentiles(values), "mean": sum(values) / len(values) if values else None}


def measure_calls(events: Iterable[Event], passed: Difference, seconds: float) -> Figures:
    """Durations of system calls, from their enter/exit pairs in `seconds`; waiting calls are listed separately."""
    inside: dict[int, tuple[str, int]] = {}
    durations_us: dict[str, list[float]] = defaultdict(list)
    failed: Counter[str] = Counter()
    lost = 0
    for event in events:
        lost += event.lost
        side, _, call = event.name.removeprefix("syscalls:sys_").partition("_")
        if side == "enter":
            inside[event.tid] = (call, event.time_ns)
        elif side == "exit":
            begun = inside.pop(event.tid, None)
            if begun is not None and begun[0] == call:
                durations_us[call].append((event.time_ns - begun[1]) / 1e3)
                # Errors are the last 4095 numbers of 64 bits.
                failed[call] += event.text.strip().startswith("0xfffffffffffff")
    return {
        "lost": lost,
        "calls": {
            call: {
                **percentiles(values), "total_us": sum(values), "failed": failed[call], "waits": call in WAITING,
                **{key: value for key, value in each(len(values), passed, seconds).items() if key != "count"},
            }
            for call, values in sorted(durations_us.items(), key=lambda item: -len(item[1]))
        },
    }  # fmt: skip


def rare_stacks(path: Path) -> Figures:
    """Of each rare event the stacks that led to it most often, innermost first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    if path.exists():
        for sample in read_samples(lines_of(path)):
            found[sample.event][" ← ".join(frame.symbol for frame in sample.frames[:8])] += 1
    return {event: dict(stacks.most_common(RARE_STACKS)) for event, stacks in sorted(found.items())}


def derive(directory: Path) -> Figures:
    seen = read_window(directory)
    counts = parse_stat((directory / "counts.csv").read_text())
    short = read_window(directory / "events")
    return {
        "counts": {name: seen.each(counts.get(name), "counts.csv") for name in STAGES},
        "seconds": short.passed.seconds,
        "gigabytes": short.passed.gigabytes,
        "requests": short.passed.requests,
        **measure_stages(read_events(lines_of(directory / "events" / "packets.txt.gz"))),
        "rare": rare_stacks(directory / "events" / "rare.txt.gz"),
        "syscalls": measure_calls(
            read_events(lines_of(directory / "events" / "calls.txt.gz")), short.passed, short.counted_s["calls.data"]
        ),
    }


LAYER = Layer(3, "stages", collect, derive, tracepoints=True)
