"""The command line of the bench."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, Interrupted
from bench.tools import need_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from bench.experiment import Experiment, Options

__all__ = ["main"]

REPOSITORY = Path(__file__).resolve().parents[1]

DESCRIPTION = """
Measures forwarders: oinetd's engines, the bench's own reference forwarders, and peers that are installed, between
a client and a server in network namespaces of their own (root), or on loopback.

The figure to compare is the forwarder's own processor time per unit of work.
"""

SUBJECTS = """
subjects: direct, nftables (together `floor`); native-auto, native-splice, native-copy, python, python-asyncio
(`oinetd`); native-group16 (`group`); haproxy, haproxy-splice, nginx, the same with -trixie (see `bench peers`), rinetd,
socat, redir (`peer`); ref-threads, ref-polling, ref-tasks (`reference`); or `all`. With several --buffers, a mode that
copies is there once for each: python, python@16K, …

exit status: 1 if a sample is invalid (bytes lost, work elsewhere, …) or failed, or if the run was interrupted
"""

COMPARE = """
examples:
  sudo python -m bench compare HEAD~1 .
  sudo python -m bench compare haproxy native-auto --rounds 20
  sudo python -m bench compare native-auto 'mine=./mine {listen} {connect}'
"""

FAILOVER_SUBJECTS = """
subjects: oinetd-native, oinetd-python (`oinetd`); haproxy, nginx (`peer`); or `all`.
"""

UDP_SUBJECTS = """
subjects: direct (`floor`); oinetd-native, oinetd-python (`oinetd`); rinetd, socat, nginx (`peer`); or `all`. A client
is an address and port. --buffers has no meaning here.
"""

EPILOG = """
examples:
  sudo python -m bench throughput --quick
  sudo python -m bench latency --subjects direct,native-auto,haproxy --rounds 7
  sudo python -m bench throughput --peer 'mine=./mine {listen} {connect}'
  python -m bench rate --topology loopback
  sudo python -m bench udp --quick --rate 20000,200000
  python -m bench report --out report.html
"""


def _sizes(text: str) -> list[int]:
    return [_size(word) for word in text.split(",")]


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    if not number.isdigit() or not int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 16K")
    return int(number) * units.get(unit, 1)


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _cases(text: str) -> list[str]:
    return [word.strip() for word in text.split(";") if word.strip()]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _amount(text: str) -> float:
    return 0.0 if text == "0" else _positive(text)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(word) for word in text.split(",")]


def _common() -> argparse.ArgumentParser:
    from bench.results import RESULTS_DIR

    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--subjects", type=_names, default=[], metavar="NAME,…", help="subjects or groups of them")
    group.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", dest="peers",
        help="any other forwarder; {listen} and {connect} stand for HOST:PORT, {listen_host}, {listen_port}, "
        "{connect_host}, {connect_port} for the parts",
    )  # fmt: skip
    group.add_argument("--buffers", type=_sizes, default=[], metavar="SIZE,…", help="buffer sizes, such as 8K,64K")
    group.add_argument(
        "--threads", type=_counts, default=[], metavar="N,…",
        help="of each subject; of several numbers, oinetd's native modes are there for each; default: its own choice",
    )  # fmt: skip
    group.add_argument("--cases", type=_cases, default=[], metavar="NAME;…",
                       help="only these cases, by the names that tables have, such as `P8` or `64B × 1`")  # fmt: skip
    group = parser.add_argument_group("how long")
    group.add_argument("--quick", action="store_true", help="about a minute: fewer subjects, cases and rounds")
    group.add_argument("--rounds", type=_count, default=0, metavar="N", help="times that each subject has its turn")
    group.add_argument("--seconds", type=_positive, default=0.0, metavar="S", help="of one timed load")
    group.add_argument("--no-check", action="store_false", dest="check", help="leave out integrity and half-close")
    group = parser.add_argument_group("where")
    group.add_argument("--topology", choices=("auto", "netns", "loopback"), default="auto",
                       help="namespaces (root), or loopback; default: namespaces if possible")  # fmt: skip
    group.add_argument("--rtt", type=_amount, default=0.0, metavar="MS", help="added to each round trip, by netem")
    group.add_argument("--loss", type=_amount, default=0.0, metavar="%%", help="of the packets, at random")
    group.add_argument("--bandwidth", type=_amount, default=0.0, metavar="MBIT", help="of each leg, in each direction")
    group.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="where the result is kept")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common()
    from bench.capture.options import DESCRIPTION as capture_text
    from bench.capture.options import EPILOG as capture_examples
    from bench.capture.options import add_arguments as add_capture
    from bench.lab.options import DESCRIPTION as lab_text
    from bench.lab.options import EPILOG as lab_examples
    from bench.lab.options import add_arguments as add_lab
    from bench.results import RESULTS_DIR

    def add(
        name: str, help_text: str, description: str, run: Callable[..., int], **more: Any
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=help_text, description=textwrap.dedent(description).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        added.set_defaults(run=run)
        return added

    measured = {"parents": [common], "epilog": SUBJECTS}
    throughput = add(
        "throughput", "bulk transfer with iperf3: Gbit/s and CPU seconds per GB",
        """
        iperf3 through each subject: one stream, eight streams, and one from server to client.

        --perf, --strace and --flamegraph measure in runs of their own, after the timed ones.
        """,
        _measure, **measured,
    )  # fmt: skip
    throughput.add_argument("--no-iperf3", action="store_true", help="leave out iperf3, which runs beside the own load")
    throughput.add_argument("--perf", action="store_true", help="cycles, instructions, cache misses, branches")
    throughput.add_argument("--strace", action="store_true", help="a table of system calls")
    throughput.add_argument(
        "--flamegraph", action="store_true", help="an SVG of where CPU time goes, beside the result"
    )
    latency = add(
        "latency", "round trips: rate, percentiles, CPU µs each",
        """
        Requests and answers of 32 B to 64 KiB on 1 and on 64 connections, with the bench's own client; percentiles are
        of all round trips. If netperf is installed, --netperf adds its TCP_RR and TCP_CRR.
        """,
        _measure, **measured,
    )  # fmt: skip
    latency.add_argument("--rate", type=_counts, default=[], metavar="N,…",
                         help="requests a second at fixed times, answered or not: an open loop")  # fmt: skip
    latency.add_argument("--netperf", action="store_true", help="netperf's TCP_RR and TCP_CRR besides")
    connections = add(
        "connections", "the table of engines: 100 connections, 200 MiB each",
        """
        100 connections are opened through each subject, and each downloads 200 MiB; ten times. Socket creation, job
        setup, download, run time, memory: each column is defined once, for all subjects.
        """,
        _measure, **measured,
    )  # fmt: skip
    connections.add_argument("--scale", type=_positive, default=0.0, metavar="SHARE",
                             help="download this share of the 200 MiB; labelled so")  # fmt: skip
    rate = add(
        "rate", "new connections per second, and what idle ones hold",
        """
        Connections that are opened, used for 64 bytes each way and closed, 1, 16 and 64 at a time; then 10 000 that are
        held open and silent: bytes of the process and of the kernel for each.
        """,
        _measure, **measured,
    )  # fmt: skip
    rate.add_argument("--idle", type=_count, default=0, metavar="N", help="idle connections; default 10000")
    udp = add(
        "udp", "datagrams: rate, loss, CPU seconds per million, round trips",
        """
        UDP to UDP with datagrams of 64 and of 1400 bytes from one client address, and of 64 bytes from 100: round trips
        with one datagram under way from each client, and with 32; then fixed rates, which are offered whatever becomes
        of them, while the server counts what arrives.
        """,
        _measure, parents=[common], epilog=UDP_SUBJECTS,
    )  # fmt: skip
    udp.add_argument("--rate", type=_counts, default=[], metavar="N,…",
                     help="datagrams offered a second; default 50000,100000, with --quick 50000")  # fmt: skip
    add(
        "failover", "four servers, one killed, frozen, refused or slowed: what clients see",
        """
        Four servers behind each forwarder. One of them fails under load, short connections or requests on connections
        that stay, 64 of either: errors that clients see, and percentiles before, while it happens, and after.
        """,
        _measure, parents=[common], epilog=FAILOVER_SUBJECTS,
    )  # fmt: skip
    micro = add(
        "micro", "ns, CPU ns, bytes and allocations per operation, as Go's benchmarks print them",
        """
        One exchange at a time: eight bytes up, a payload of 1 B to 1 MiB down. Prints Go's benchmark format, which
        benchstat reads, and the line through each engine's CPU times: what one exchange costs, and what one byte adds.
        """,
        _measure, **measured,
    )  # fmt: skip
    micro.add_argument("--profile", type=Path, metavar="FILE", help="write a pprof profile (go tool pprof reads it)")
    quick = add(
        "quick", "a short run of everything, and a page: five minutes",
        """
        A short run of each experiment with a few subjects, and one HTML page of the results. It shows orders of
        magnitude: for figures, run the experiments by themselves.
        """,
        _quick,
    )  # fmt: skip
    quick.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="where the results are kept")
    quick.add_argument("--page", type=Path, default=Path("bench-report.html"), metavar="FILE", help="the page")
    quick.add_argument("--topology", choices=("auto", "netns", "loopback"), default="auto", help="as elsewhere")
    compared = add(
        "compare", "two commits, configurations or subjects, in turn; better, worse or cannot tell",
        """
        Measures A and B in turn, round by round, and judges the ratio within each round: bulk up and down, round trips,
        short connections. Each of them is a commit of this repository (which is built), `.` for this tree, a file with
        settings of oinetd, a subject, or NAME=COMMAND. The exit status is 1 if B is worse in something.
        """,
        _compare, parents=[common], epilog=COMPARE,
    )  # fmt: skip
    compared.add_argument("first", metavar="A", help="what is compared with")
    compared.add_argument("second", metavar="B", help="what is judged")
    report = add(
        "report", "one HTML page from stored results, or the figures in README.md and docs/performance.md",
        """
        Writes one self-contained HTML page from the newest result of each experiment. With `--pages` it rewrites the
        parts of README.md and docs/performance.md between the markers `<!-- bench:begin -->` and `<!-- bench:end -->`
        instead, and the plots in docs/bench.
        """,
        _report,
    )  # fmt: skip
    report.add_argument("results", nargs="*", type=Path, help="files or directories; default: bench/results")
    report.add_argument("--out", type=Path, default=Path("bench-report.html"), metavar="FILE", help="the page")
    report.add_argument("--pages", type=Path, nargs="?", const=REPOSITORY, metavar="DIR",
                        help="rewrite the figures in DIR instead; default: this repository")  # fmt: skip
    report.add_argument(
        "--check", action="store_true", help="with --pages: write nothing, fail if a page is out of date"
    )
    lab_help = "where the time goes: wrk through oinetd to nginx, in four layers"
    add_lab(add("lab", lab_help, lab_text, _lab, epilog=lab_examples))
    capture_help = "whether every byte went by: a packet ring beside tcpdump, or live"
    add_capture(add("capture", capture_help, capture_text, _capture, epilog=capture_examples))
    add("peers", "fetch HAProxy and nginx of the next Debian release", """
        Fills a folder with debootstrap (root, network, some minutes, 300 MB in /var/cache/oinetd-bench). From then on
        the subjects haproxy-trixie, haproxy-splice-trixie and nginx-trixie stand beside the installed ones.
        """, _peers)  # fmt: skip
    clean = add("clean", "remove what killed runs left behind", """
        Ends processes and removes namespaces, control groups and directories of runs whose owner is dead. What a
        running bench uses is left alone.
        """, _clean)  # fmt: skip
    clean.add_argument("--dry-run", action="store_true", help="list, and remove nothing")
    calibrate = add("calibrate", "the bench's own client beside a plain C client", """
        Round trips and short connections against the bench's echo server, with no forwarder between: the bench's own
        client must reach at least 0.9 of a plain C client, which is compiled for the purpose.
        """, _calibrate)  # fmt: skip
    calibrate.add_argument("--seconds", type=_positive, default=1.0, metavar="S", help="of each load")
    return parser


_OWN_OPTIONS = ("perf", "strace", "flamegraph", "no_iperf3", "netperf", "scale", "idle", "rate", "profile")


def _options(arguments: argparse.Namespace) -> Options:
    from bench.experiment import Options
    from bench.path import PathQuality

    extra = {name: value for name in _OWN_OPTIONS if (value := getattr(arguments, name, None))}
    return Options(
        quick=arguments.quick, subjects=arguments.subjects, peers=arguments.peers, buffers=arguments.buffers,
        rounds=arguments.rounds, seconds=arguments.seconds, topology=arguments.topology, threads=arguments.threads,
        check=arguments.check, out=arguments.out, extra=extra, cases=arguments.cases,
        path=PathQuality(arguments.rtt, arguments.loss, arguments.bandwidth),
    )  # fmt: skip


def _experiment(name: str, options: Options) -> Experiment:
    from bench.experiments.connections import Connections
    from bench.experiments.failover import Failover
    from bench.experiments.latency import Latency
    from bench.experiments.micro import Micro
    from bench.experiments.rate import Rate
    from bench.experiments.throughput import Throughput
    from bench.experiments.udp import Udp

    kinds: tuple[type[Experiment], ...] = (Connections, Failover, Latency, Micro, Rate, Throughput, Udp)
    return {kind.name: kind for kind in kinds}[name](options)


def _measure(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich")
    from bench.experiment import perform
    from bench.leftovers import find_leftovers, remove_leftovers

    remove_leftovers(find_leftovers())
    options = _options(arguments)
    experiment = _experiment(arguments.command, options)
    result = perform(experiment, console)
    if result.samples:
        console.print(f"kept in {result.save(options.out)}", highlight=False, soft_wrap=True)
    return experiment.show(result, console)


def _quick(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich", "matplotlib", "jinja2")
    from bench.experiment import Options
    from bench.leftovers import find_leftovers, remove_leftovers
    from bench.quick import run_quickly

    remove_leftovers(find_leftovers())
    options = Options(quick=True, topology=arguments.topology, out=arguments.out)
    return run_quickly(options, _experiment, arguments.page, console)


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich")
    from bench.compare import compare
    from bench.leftovers import find_leftovers, remove_leftovers

    remove_leftovers(find_leftovers())
    return compare(arguments.first, arguments.second, _options(arguments), console)


def _report(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("matplotlib", "jinja2")
    from bench.report import write_page, write_pages
    from bench.results import RESULTS_DIR, load_results, newest

    results = newest(load_results(arguments.results or [RESULTS_DIR]))
    if arguments.pages is None:
        write_page(results, arguments.out)
        console.print(f"written: {arguments.out}", highlight=False)
        return 0
    changed = write_pages(results, arguments.pages, check=arguments.check)
    state = "out of date" if arguments.check else "rewritten"
    for path in changed:
        console.print(f"{path.relative_to(arguments.pages)}: {state}", highlight=False)
    if not changed:
        console.print("the pages are up to date")
    elif arguments.check:
        console.print("remedy: python -m bench report --pages")
    return int(arguments.check and bool(changed))


def _lab(arguments: argparse.Namespace, console: Console) -> int:
    from bench.lab.command import run

    return run(arguments, console)


def _capture(arguments: argparse.Namespace, console: Console) -> int:
    from bench.capture.command import run

    return run(arguments, console)


def _peers(arguments: argparse.Namespace, console: Console) -> int:
    from bench.subjects.trixie import FOLDER, make_folder, trixie_subjects

    with console.status(f"debootstrap fills {FOLDER}"):
        make_folder()
    for subject in trixie_subjects():
        console.print(f"{subject.name} {subject.version()}", highlight=False)
    return 0


def _clean(arguments: argparse.Namespace, console: Console) -> int:
    from bench.leftovers import find_leftovers, remove_leftovers

    found = find_leftovers()
    for line in found.lines():
        console.print(f"{'found' if arguments.dry_run else 'removing'}: {line}", highlight=False)
    if not found:
        console.print("nothing was left behind")
    elif not arguments.dry_run:
        remove_leftovers(found)
    return 0


def _calibrate(arguments: argparse.Namespace, console: Console) -> int:
    from bench.calibration import calibrate

    return calibrate(arguments.seconds, console)


def _on_signals() -> None:
    """Let the signals that end a program unwind it instead, so that everything it made is taken down."""
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # pyroute2 forks for a moment and ends its children with SIGTERM: they must not take down what is ours.
        if os.getpid() != owner:
            os._exit(128 + number)
        for each in signals:  # once is enough: taking down is not to be interrupted
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for each in signals:
        signal.signal(each, interrupt)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command. The exit status is 0; 1 if something could not be measured, was interrupted or is invalid; 2 for a
    wrong command line.
    """
    arguments = _parser().parse_args(words)
    _on_signals()
    try:
        need_libraries("rich")
        from rich.console import Console

        # In a pipe or a file a table has the width that it needs.
        console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "400")))
        status: int = arguments.run(arguments, console)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return status
