"""The commands that measure: one for each experiment, with the options that it alone takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.arguments import Commands, count, counts, measured_options, names, positive
from bench.tools import need_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from bench.experiment import Experiment, Options

__all__ = ["add_measurements", "experiment", "options"]

SUBJECTS = """
subjects: direct, nftables (together `floor`); native-auto, native-splice, native-copy, python, python-asyncio
(`oinetd`); native-group16 (`group`); haproxy, haproxy-splice, nginx, the same with -trixie (see `bench peers`), rinetd,
socat, redir (`peer`); ref-threads, ref-polling, ref-tasks (`reference`); or `all`. With several --buffers, a mode that
copies is there once for each: python, python@16K, …

exit status: 1 if a sample is invalid (bytes lost, work elsewhere, …) or failed, or if the run was interrupted
"""

FAILOVER_SUBJECTS = """
subjects: oinetd-native, oinetd-python (`oinetd`); haproxy, nginx, haproxy-trixie, nginx-trixie (`peer`); or `all`.
"""

BANDWIDTH_SUBJECTS = """
subjects: native-auto, native-splice, native-copy, python (`oinetd`); haproxy, haproxy-trixie (`peer`), which have the
filter since 2.7; or `all`. With several --buffers, a mode that copies is there once for each.
"""

UPGRADE_SUBJECTS = """
subjects: oinetd-native, oinetd-python (`oinetd`); haproxy, nginx, the same with -trixie (`peer`); or `all`.
"""

SCALING_SUBJECTS = """
subjects: native-auto (`oinetd`); haproxy, nginx, the same with -trixie (`peer`); or `all`. Each is there for each
number of threads.
"""

UDP_SUBJECTS = """
subjects: direct (`floor`); oinetd-native, oinetd-python (`oinetd`); rinetd, socat, nginx, nginx-trixie (`peer`); or
`all`. A client is an address and port. --buffers has no meaning here.
"""

OWN_OPTIONS = (
    "perf", "strace", "flamegraph", "softirq", "no_iperf3", "netperf", "scale", "idle", "rate", "profile", "with",
)  # fmt: skip
"""Of single experiments: they go to `Options.extra`."""


def add_measurements(commands: Commands) -> None:
    common = measured_options()
    _add_streams(commands, common)
    _add_exchanges(commands, common)
    commands.add(
        "failover", "four servers, one killed, frozen, gone, refused or slowed: what clients see",
        """
        Four servers behind each forwarder. One of them fails under load, short connections or requests on connections
        that stay, 64 of either: errors that clients see, answers after more than 250 ms, and percentiles before, while
        it happens, and after. All that check do so over HTTP, so that a frozen server is found out.
        """,
        measure, parents=[common], epilog=FAILOVER_SUBJECTS,
    )  # fmt: skip
    commands.add(
        "scaling", "one to all threads, 1 to 10,000 connections: rate, CPU, how even the threads are",
        """
        Round trips on connections that stay, and connections that ask once, for each number of threads (--threads, or 1
        to the number of cores): rates, percentiles, and the work of the busiest thread or process by the mean of all.
        """,
        measure, parents=[common], epilog=SCALING_SUBJECTS,
    )  # fmt: skip
    moves = commands.add(
        "moves", "connections that change their thread: what that costs, how soon threads are even",
        """
        The processor time of a move between two of oinetd's threads. Then 64 connections of one thread become busy, in
        each forwarder: after how many milliseconds the busiest thread has at most 1.2 times the work of the mean, for
        the rest of the load.
        """,
        measure, parents=[common], epilog=SCALING_SUBJECTS,
    )  # fmt: skip
    moves.add_argument("--rate", type=counts, default=[], metavar="N",
                       help="messages a second on each busy connection; default 250")  # fmt: skip
    commands.add(
        "upgrade", "replaced under load: what clients notice, and what stays behind",
        """
        oinetd upgrade, and the seamless reload of HAProxy and nginx, while connections come, wait half-closed, ask and
        stream, over TCP and UDP: failures, the longest gap and pause, and connections left in old processes after 60 s
        (with --quick: 3 s). Then 9000 idle connections.
        """,
        measure, parents=[common], epilog=UPGRADE_SUBJECTS,
    )  # fmt: skip
    commands.add(
        "bandwidth", "what of a bound is reached, and what bounding costs",
        """
        `bandwidth`, `-per-source` and `-per-rule`, of 1 and of 100 connections: what passes of what was asked for, the
        slowest and the fastest connection, and the share of a core; HAProxy's `bwlim` beside it, and the same number of
        bytes without a bound. Then datagrams, of which twice as many are offered as may pass.
        """,
        measure, parents=[common], epilog=BANDWIDTH_SUBJECTS,
    )  # fmt: skip
    udp = commands.add(
        "udp", "datagrams: rate, loss, CPU seconds per million, round trips",
        """
        UDP to UDP with datagrams of 64 and of 1400 bytes from one client address, and of 64 bytes from 100: round trips
        with one datagram under way from each client, and with 32; then fixed rates, which are offered whatever becomes
        of them, while the server counts what arrives.
        """,
        measure, parents=[common], epilog=UDP_SUBJECTS,
    )  # fmt: skip
    udp.add_argument("--rate", type=counts, default=[], metavar="N,…",
                     help="datagrams offered a second; default 50000,100000, with --quick 50000")  # fmt: skip


def _add_streams(commands: Commands, common: argparse.ArgumentParser) -> None:
    throughput = commands.add(
        "throughput", "bulk transfer: Gbit/s and CPU seconds per GB",
        """
        Streams through each subject: one, eight, and one from server to client. The end that gets them checks every
        byte. iperf3, which does not, runs beside them.

        --softirq, --perf, --strace and --flamegraph measure in runs of their own, after the timed ones.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    _add_softirq(throughput)
    _add_ways(throughput)
    throughput.add_argument("--no-iperf3", action="store_true", help="leave out iperf3, which runs beside the own load")
    throughput.add_argument("--perf", action="store_true", help="cycles, instructions, cache misses, branches")
    throughput.add_argument("--strace", action="store_true", help="a table of system calls")
    throughput.add_argument(
        "--flamegraph", action="store_true", help="an SVG of where CPU time goes, beside the result"
    )
    connections = commands.add(
        "connections", "the table of engines: 100 connections, 200 MiB each",
        """
        100 connections are opened through each subject, and each downloads 200 MiB; ten times. Socket creation, job
        setup, download, run time, memory: each column is defined once, for all subjects.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    connections.add_argument("--scale", type=positive, default=0.0, metavar="SHARE",
                             help="download this share of the 200 MiB; labelled so")  # fmt: skip


def _add_exchanges(commands: Commands, common: argparse.ArgumentParser) -> None:
    latency = commands.add(
        "latency", "round trips: rate, percentiles, CPU µs each",
        """
        Requests and answers of 32 B to 64 KiB on 1 and on 64 connections, with the bench's own client; percentiles are
        of all round trips. Where netperf is installed, --netperf adds its TCP_RR and TCP_CRR.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    latency.add_argument("--rate", type=counts, default=[], metavar="N,…",
                         help="requests a second at fixed times, answered or not: an open loop")  # fmt: skip
    _add_softirq(latency)
    _add_ways(latency)
    latency.add_argument("--netperf", action="store_true", help="netperf's TCP_RR and TCP_CRR besides")
    rate = commands.add(
        "rate", "new connections per second, and what idle ones hold",
        """
        Connections that are opened, used for 64 bytes each way and closed, 1, 16 and 64 at a time; then 10 000 that are
        held open and silent: bytes of the process and of the kernel for each.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    _add_softirq(rate)
    _add_ways(rate)
    rate.add_argument("--idle", type=count, default=0, metavar="N",
                      help="idle connections; default 10000, or what descriptors allow")  # fmt: skip
    mixed = commands.add(
        "mixed", "small messages beside bulk streams, and beside idle connections",
        """
        64-byte requests at a fixed rate, an open loop: alone, while four streams go through the same forwarder as fast
        as they can, and while it holds thousands of idle connections. Latencies are from the time a request was due.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    mixed.add_argument("--idle", type=count, default=0, metavar="N", help="idle connections; default 5000")
    micro = commands.add(
        "micro", "ns, CPU ns, bytes and allocations per operation, as Go's benchmarks print them",
        """
        One exchange at a time: eight bytes up, a payload of 1 B to 1 MiB down. Prints Go's benchmark format, which
        benchstat reads, and the line through each engine's CPU times: what one exchange costs, and what one byte adds.
        """,
        measure, parents=[common], epilog=SUBJECTS,
    )  # fmt: skip
    micro.add_argument("--profile", type=Path, metavar="FILE", help="write a pprof profile (go tool pprof reads it)")


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with", type=names, default=[], metavar="WAY,…",
        help="the load in several ways, each beside the plain one: plain, send-proxy, accept-proxy, sni, unix-tcp, "
        "unix-unix; unix is the last two",
    )  # fmt: skip


def _add_softirq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--softirq", action="store_true", help="CPU with and without soft interrupts, which the kernel may charge to it"
    )


def options(arguments: argparse.Namespace) -> Options:
    """What the command line of a measurement says."""
    from bench.experiment import Options
    from bench.path import PathQuality

    extra = {name: value for name in OWN_OPTIONS if (value := getattr(arguments, name, None))}
    return Options(
        quick=arguments.quick, subjects=arguments.subjects, peers=arguments.peers, buffers=arguments.buffers,
        rounds=arguments.rounds, seconds=arguments.seconds, topology=arguments.topology, threads=arguments.threads,
        check=arguments.check, out=arguments.out, extra=extra, cases=arguments.cases,
        path=PathQuality(arguments.rtt, arguments.loss, arguments.bandwidth), cores=arguments.cores,
    )  # fmt: skip


def experiment(name: str, options: Options) -> Experiment:
    """The experiment that is called so."""
    from bench.experiments.bandwidth import Bandwidth
    from bench.experiments.connections import Connections
    from bench.experiments.failover import Failover
    from bench.experiments.latency import Latency
    from bench.experiments.micro import Micro
    from bench.experiments.mixed import Mixed
    from bench.experiments.moves import Moves
    from bench.experiments.rate import Rate
    from bench.experiments.scaling import Scaling
    from bench.experiments.throughput import Throughput
    from bench.experiments.udp import Udp
    from bench.experiments.upgrade import Upgrade

    kinds: tuple[type[Experiment], ...] = (
        Bandwidth, Connections, Failover, Latency, Micro, Mixed, Moves, Rate, Scaling, Throughput, Udp, Upgrade,
    )  # fmt: skip
    return {kind.name: kind for kind in kinds}[name](options)


def measure(arguments: argparse.Namespace, console: Console) -> int:
    """Run the experiment that the command is called after, keep the result, show it."""
    need_libraries("psutil", "rich")
    from bench.experiment import perform
    from bench.leftovers import find_leftovers, remove_leftovers

    remove_leftovers(find_leftovers())
    chosen = options(arguments)
    measured = experiment(arguments.command, chosen)
    result = perform(measured, console)
    if result.samples:
        console.print(f"kept in {result.save(chosen.out)}", highlight=False, soft_wrap=True)
    return measured.show(result, console)
