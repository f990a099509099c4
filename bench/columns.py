"""The figures of each experiment: how they are called, in which unit they are shown, which way is better.

Tables on the terminal, in the report and in the README are all made from these, so that a column means one thing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.results import Result
from bench.statistics import Summary

__all__ = ["BRACKETS", "COLUMNS", "Column", "cell", "columns_of", "plain"]

BRACKETS = (
    "Each figure is the median of the rounds. [Brackets]: the interval that holds the true median with at least 95 %, "
    "which takes six rounds. (Parentheses): the range of fewer rounds, which is no such interval. `~`: a single round."
)


@dataclass(frozen=True, slots=True)
class Column:
    """`key` names the value in a sample; `scale` multiplies it for showing. `main` ones also go into short tables."""

    key: str
    title: str
    unit: str
    digits: int = 2
    scale: float = 1.0
    better: str = "lower"
    main: bool = False
    help: str = ""
    noise: float | None = None
    """A value below this, in the unit of the sample, is shown as `below …`: it is not to be told from none."""


_MIB = 1 / (1 << 20)
_KIB = 1 / (1 << 10)

_PERCENTILES = (
    Column("p50_us", "p50", "µs", 1, main=True),
    Column("p90_us", "p90", "µs", 1),
    Column("p99_us", "p99", "µs", 1, main=True),
    Column("p99.9_us", "p99.9", "µs", 1),
)

_WAYS = (
    Column("lost_percent", "lost", "%", 1, main=True, help="of the rate, against plain in the same round"),
    Column("more_cpu_percent", "more CPU", "%", 1, main=True, help="against plain in the same round"),
)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "throughput": (
        Column("gbit_s", "throughput", "Gbit/s", better="higher", main=True),
        Column("cpu_s_per_gb", "CPU", "s/GB", 3, main=True, help="the forwarder's own processor time for 10⁹ bytes"),
        Column("total_cpu_s_per_gb", "with ends", "s/GB", 3, main=True, help="client and server included"),
        *_WAYS,
        Column("iperf_gbit_s", "iperf3: content not checked", "Gbit/s", better="higher", help="content not checked"),
        Column("iperf_cpu_s_per_gb", "CPU, content not checked", "s/GB", 3, help="content not checked"),
        Column("switches_per_s", "switches", "/s", 0, help="context switches of the forwarder"),
        Column("migrations_per_s", "migrations", "/s", 0, help="moves of its threads between cores"),
        Column("pss_peak_bytes", "memory", "MiB", 1, _MIB, help="peak of the processes' proportional set size"),
        Column("kernel_peak_bytes", "kernel memory", "MiB", 1, _MIB, help="peak of what the kernel holds for it"),
    ),
    "latency": (
        Column("offered_per_s", "offered", "/s", 0, better="higher", help="requests that fell due"),
        Column("per_second", "round trips", "/s", 0, better="higher", main=True),
        Column("cpu_us", "CPU", "µs each", 1, main=True, help="the forwarder's own processor time"),
        *_WAYS,
        Column("total_cpu_us", "with ends", "µs each", 1, help="client and server included"),
        *_PERCENTILES,
        Column("late_percent", "never begun", "%", 2, help="of an open loop: due, and not begun before the end"),
    ),
    "rate": (
        Column("per_second", "connections", "/s", 0, better="higher", main=True),
        Column("cpu_us", "CPU", "µs each", 1, main=True, help="the forwarder's own processor time"),
        *_WAYS,
        Column("total_cpu_us", "with ends", "µs each", 1, help="client and server included"),
        *_PERCENTILES,
        Column("failures", "failed", "", 0),
        Column("connections", "idle held", "", 0, better="higher"),
        Column(
            "private_bytes_each",
            "memory each",
            "KiB",
            2,
            _KIB,
            main=True,
            help="of an idle connection: the process",
            noise=0.1 * 1024,
        ),
        Column("kernel_bytes_each", "kernel each", "KiB", 2, _KIB, main=True, help="of an idle connection: the kernel"),
        Column("idle_cpu_percent", "CPU idle", "%", 2, help="of a core while all connections are silent"),
    ),
    "udp": (
        Column("offered_per_s", "offered", "/s", 0, better="higher", help="what the client could really send"),
        Column("datagrams_per_s", "datagrams", "/s", 0, better="higher", main=True, help="both directions counted"),
        Column("loss_percent", "lost", "%", 2, main=True, help="of those sent"),
        Column("stray_percent", "stray", "%", 2, help="of the answers: late, there twice, or another client's"),
        Column("cpu_s_per_million", "CPU", "s/million", 2, main=True, help="the forwarder's own processor time"),
        Column("total_cpu_s_per_million", "with ends", "s/million", 2, help="client and server included"),
        *_PERCENTILES,
    ),
    "bandwidth": (
        Column("reached_percent", "reached", "%", 1, better="higher", main=True, help="of what was asked for"),
        Column("least_percent", "slowest", "%", 1, better="higher", main=True, help="connection, of its share"),
        Column("most_percent", "fastest", "%", 1, main=True, help="connection, of its share"),
        Column("loss_percent", "lost", "%", 1, main=True, help="of the datagrams offered, twice what may pass"),
        Column("cpu_percent", "CPU", "% of a core", 2, main=True, help="the forwarder's own processor time"),
        Column("cpu_s_per_gb", "CPU", "s/GB", 3, main=True, help="the forwarder's own processor time for 10⁹ bytes"),
    ),
    "connections": (
        Column("socket_us", "Socket creation", "µs", 1, main=True, help="socket() and connect(), mean of one"),
        Column("setup_us", "Job setup", "µs", 1, main=True, help="from connected to the first byte, mean of one"),
        Column("download_s", "Download", "s", 3, main=True, help="from the request to the last byte, mean of one"),
        Column("download_mib_s", "at", "MiB/s", 1, better="higher", main=True, help="of all connections together"),
        Column("run_s", "Run time", "s", 3, main=True, help="from the first socket() to the last close()"),
        Column("pss_mean_bytes", "Memory, average", "MiB", 1, _MIB, main=True, help="processes, PSS"),
        Column("pss_peak_bytes", "peak", "MiB", 1, _MIB, main=True, help="processes, PSS"),
        Column("kernel_mean_bytes", "Kernel, average", "MiB", 1, _MIB, help="sockets, buffers, pipes"),
        Column("kernel_peak_bytes", "Kernel, peak", "MiB", 1, _MIB, main=True, help="sockets, buffers, pipes"),
        Column("cpu_s_per_gb", "CPU", "s/GB", 3, main=True, help="the forwarder's own processor time for 10⁹ bytes"),
    ),
    "failover": tuple(
        column
        for phase in ("before", "during", "after")
        for column in (
            Column(f"{phase}_errors", f"{phase}: errors", "", 0, main=True, help="that clients saw"),
            Column(f"{phase}_slow", "slow", "", 0, main=True, help="answered after more than 250 ms"),
            Column(f"{phase}_p50_us", "p50", "µs", 0),
            Column(f"{phase}_p99_us", "p99", "µs", 0, main=True),
            Column(f"{phase}_p99.9_us", "p99.9", "µs", 0, main=True),
        )
    ),
    "mixed": (
        Column("per_second", "requests", "/s", 0, better="higher", main=True, help="answered"),
        *_PERCENTILES,
        Column("late_percent", "never begun", "%", 2, main=True, help="due, and not begun before the end"),
        Column("cpu_us", "CPU", "µs each", 1, main=True, help="the forwarder's own; n/a beside streams"),
        Column("beside_gbit_s", "streams", "Gbit/s", 2, better="higher", main=True, help="what goes on beside"),
    ),
    "scaling": (
        Column("per_second", "rate", "/s", 0, better="higher", main=True, help="round trips, or connections"),
        Column("cpu_us", "CPU", "µs each", 1, main=True, help="the forwarder's own processor time"),
        Column("p50_us", "p50", "µs", 1),
        Column("p99_us", "p99", "µs", 1, main=True),
        Column("imbalance", "imbalance", "", 2, main=True, help="the busiest worker's work by the mean of all"),
        Column("working", "at work", "", 0, main=True, help="workers that did a twentieth of the busiest one's work"),
        Column("busiest_percent", "busiest", "%", 0, main=True, help="of a core, the busiest worker"),
        Column("failures", "failed", "", 0),
    ),
    "moves": (
        Column("move_together_s", "a move, many at once", "µs", 1, 1e6, main=True, help="CPU of both threads"),
        Column("move_alone_s", "one by itself", "µs", 1, 1e6, main=True, help="the other thread is woken for it"),
        Column("even_s", "even after", "ms", 0, 1e3, main=True, help="n/a: never in this load"),
        Column("first_imbalance", "imbalance at first", "", 2, main=True, help="in the first 100 ms"),
        Column("imbalance", "at last", "", 2, main=True, help="busiest thread by mean, second half"),
        Column("per_second", "messages", "/s", 0, better="higher"),
        Column("cpu_us", "CPU", "µs each", 2, help="the forwarder's own processor time"),
    ),
    "upgrade": (
        Column("new_failed", "new failed", "", 0, main=True, help="connections that were opened meanwhile"),
        Column("broken", "broken", "", 0, main=True, help="of the connections that last"),
        Column("lost_datagrams", "datagrams lost", "", 0, main=True),
        Column("new_ports", "new ports", "", 0, main=True, help="UDP clients that the server sees from another port"),
        Column("gap_s", "gap", "ms", 0, 1e3, main=True, help="the longest time without a new connection"),
        Column("pause_s", "pause", "ms", 0, 1e3, main=True, help="the longest round trip"),
        Column("bulk_pause_s", "bulk pause", "ms", 0, 1e3, help="the longest time without a byte of a stream"),
        Column("moving_s", "moving", "ms", 0, 1e3, help="until all sessions were in the new process"),
        Column("left", "left behind", "", 0, main=True, help="connections of old processes some time later"),
        Column("left_processes", "in processes", "", 0, main=True),
    ),
    "micro": (
        Column("ns_op", "time", "ns/op", 0, main=True, help="of one exchange, as the client sees it"),
        Column("cpu_ns_op", "CPU", "ns/op", 0, main=True, help="the forwarder's own processor time"),
        Column("bytes_op", "allocated", "B/op", 1, main=True),
        Column("allocs_op", "allocations", "/op", 2, main=True),
    ),
}


def columns_of(result: Result, case: str | None = None, *, main: bool = False) -> list[Column]:
    """The columns of which there is at least one value, in `case` or in all."""
    present: set[str] = set()
    for sample in result.samples:
        if case in (None, sample.case):
            present |= {key for key, value in sample.values.items() if value is not None}
    columns = COLUMNS.get(result.experiment, ())
    return [column for column in columns if column.key in present and (column.main or not main)]


def plain(value: float, column: Column) -> str:
    """A value as it is shown, without its unit."""
    return f"{value * column.scale:,.{column.digits}f}".replace(",", " ")


def cell(summary: Summary | None, column: Column, *, interval: bool = True) -> str:
    """A median, and behind it in brackets its 95 % interval, or in parentheses the range of rounds that are too few.

    `~` is a single round, of which nothing can be said; `n/a` is no value, which is not the same as 0.
    """
    if summary is None:
        return "n/a"
    if column.noise is not None and summary.median < column.noise:
        return f"below {plain(column.noise, column)}"
    text = plain(summary.median, column)
    if not interval:
        return text
    if summary.count < 2:
        return f"{text} ~"
    begin, end = "[]" if summary.confidence else "()"
    return f"{text} {begin}{plain(summary.low, column)}–{plain(summary.high, column)}{end}"
