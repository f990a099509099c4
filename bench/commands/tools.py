"""The commands around the measurements: all in one, comparisons, reports, the lab and the capture, tidying up."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.capture.options import DESCRIPTION as CAPTURE
from bench.capture.options import EPILOG as CAPTURE_EXAMPLES
from bench.capture.options import add_arguments as add_capture
from bench.commands.arguments import Commands, add_topology, count, measured_options, names, positive
from bench.commands.measurements import options
from bench.errors import BenchError
from bench.lab.options import DESCRIPTION as LAB
from bench.lab.options import EPILOG as LAB_EXAMPLES
from bench.lab.options import add_arguments as add_lab
from bench.results import RESULTS_DIR
from bench.tools import need_libraries

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_tools"]

REPOSITORY = Path(__file__).resolve().parents[2]

COMPARE = """
examples:
  sudo python -m bench compare HEAD~1 .
  sudo python -m bench compare haproxy native-auto --rounds 20
  sudo python -m bench compare native-auto 'mine=./mine {listen} {connect}'
"""


def add_tools(commands: Commands) -> None:
    _add_runs(commands)
    _add_reports(commands)
    add_lab(commands.add("lab", "where the time goes: wrk through oinetd to nginx, in four layers", LAB, _lab,
                         epilog=LAB_EXAMPLES))  # fmt: skip
    add_capture(commands.add("capture", "whether every byte went by: a packet ring beside tcpdump, or live", CAPTURE,
                             _capture, epilog=CAPTURE_EXAMPLES))  # fmt: skip
    commands.add("peers", "fetch HAProxy and nginx of the next Debian release", """
        Fills a folder with debootstrap (root, network, some minutes, 300 MB in /var/cache/oinetd-bench). From then on
        the subjects haproxy-trixie, haproxy-splice-trixie and nginx-trixie stand beside the installed ones.
        """, _peers)  # fmt: skip
    clean = commands.add("clean", "remove what killed runs left behind", """
        Ends processes and removes namespaces, control groups and directories of runs whose owner is dead. What a
        running bench uses is left alone.
        """, _clean)  # fmt: skip
    clean.add_argument("--dry-run", action="store_true", help="list, and remove nothing")
    calibrate = commands.add("calibrate", "the bench's own client beside a plain C client", """
        Round trips and short connections against the bench's echo server, with no forwarder between: the bench's own
        client must reach at least 0.9 of a plain C client, which is compiled for the purpose.
        """, _calibrate)  # fmt: skip
    calibrate.add_argument("--seconds", type=positive, default=1.0, metavar="S", help="of each load")
    checks = commands.add("checks", "what checks of 1,000 servers cost, beside HAProxy's and bare connects", """
        1,000 servers, each checked every 2 s over TCP, by oinetd, by HAProxy if it is installed, and by bare
        non-blocking connects, all at once: processor time of a check, and how long the event loop of oinetd is held.
        The exit status is 1 if a check costs more than three bare connects, or the loop is held for more than 5 ms.
        """, _checks)  # fmt: skip
    checks.add_argument("--servers", type=count, default=1000, metavar="N")
    checks.add_argument("--seconds", type=positive, default=30.0, metavar="S", help="of each of the two measurements")
    checks.add_argument("--quick", action="store_true", help="8 seconds each")


def _add_runs(commands: Commands) -> None:
    for name, help_text, description, out in (
        ("quick", "a short run of everything, and a page: five minutes", """
        A short run of each experiment with a few subjects, and one HTML page of the results. It shows orders of
        magnitude, and leaves out subjects that are invalid by their nature.
        """, Path("build/bench")),
        ("full", "everything that the pages show, with intervals: twenty minutes", """
        Six rounds of each experiment with oinetd and its peers, and one HTML page of the results. `report --pages` then
        writes the figures of README.md and of pages in docs. rinetd passes no half-close on, so the status is 1.
        """, RESULTS_DIR),
        ("publish", "full, the same again, whether both agree, and the pages: forty minutes", """
        `full` into OUT/first, what states intervals once more into OUT/second, `agree` on both. The results then
        replace those in bench/results (those of the second run in its folder `again`), and README.md and
        pages in docs are made from them. The status is 1 if something is missing, a sample of oinetd is invalid,
        or the runs do not agree. --resume goes on where an earlier one ended.
        """, Path("build/full")),
    ):  # fmt: skip
        run = commands.add(name, help_text, description, _plan)
        run.add_argument("--out", type=Path, default=out, metavar="DIR", help="where the results are kept")
        run.add_argument("--page", type=Path, default=out / "page.html" if out != RESULTS_DIR else
                         Path("build/bench/page.html"), metavar="FILE", help="the page")  # fmt: skip
        run.add_argument("--resume", action="store_true",
                         help="leave out what has a complete result of this commit in DIR")  # fmt: skip
        run.add_argument("--trial", action="store_true",
                         help="two subjects, very short loads: to see that every step works; `publish` then writes "
                         "copies of the pages in DIR/pages, and nothing else")  # fmt: skip
        run.add_argument("--list", action="store_true", help="print the commands, and measure nothing")
        run.add_argument("--only", type=names, default=[], metavar="NAME,…", help="only these experiments")
        add_topology(run)
    compared = commands.add(
        "compare", "two commits, configurations or subjects, in turn; better, worse or cannot tell",
        """
        Measures A and B in turn, round by round, and judges the ratio within each round: bulk up and down, round trips,
        short connections. Each of them is a commit of this repository (which is built), `.` for this tree, a file with
        settings of oinetd, a subject, or NAME=COMMAND. The exit status is 1 if B is worse in something.
        """,
        _compare, parents=[measured_options()], epilog=COMPARE,
    )  # fmt: skip
    compared.add_argument("first", metavar="A", help="what is compared with")
    compared.add_argument("second", metavar="B", help="what is judged")


def _add_reports(commands: Commands) -> None:
    agreed = commands.add(
        "agree", "whether two runs, of other days or machines, say the same", """
        For each figure that both runs have: whether the intervals overlap. The exit status is 1 if they do in fewer
        than nine cells of ten, or if the runs have too few rounds to state intervals.
        """, _agree,
    )  # fmt: skip
    agreed.add_argument("first", type=Path, metavar="A", help="results: a file or a directory; the newest of each kind")
    agreed.add_argument("second", type=Path, metavar="B", help="as A")
    agreed.add_argument("--all", action="store_true", help="each cell that does not agree, however many there are")
    report = commands.add(
        "report", "one HTML page from stored results, or the figures in README.md and in pages of docs",
        """
        Writes one self-contained HTML page from the newest complete result of each experiment, and the newest runs of
        lab and capture. With `--pages` it rewrites the parts of README.md and of pages in docs between the markers
        `<!-- bench:begin -->` and `<!-- bench:end -->` instead, and the plots in docs/bench.
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


def _plan(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich", "matplotlib", "jinja2")
    from bench.experiment import must_be_writable
    from bench.plans import FULL, QUICK, Settings, about_s, run_plan
    from bench.publish import publish, second_run

    steps = QUICK if arguments.command == "quick" else FULL
    chosen = [step for step in steps if not arguments.only or step.split()[0] in arguments.only]
    if unknown := [name for name in arguments.only if name not in {step.split()[0] for step in steps}]:
        raise BenchError(f"no step of it is called {unknown[0]}; there are: {', '.join(s.split()[0] for s in steps)}")
    if arguments.list:
        twice = second_run(chosen) if arguments.command == "publish" else []
        for step in [*chosen, *twice]:
            console.print(f"python -m bench {step}  # {about_s(step):.0f} s", highlight=False, soft_wrap=True)
        console.print(f"# {sum(map(about_s, [*chosen, *twice])) / 60:.1f} minutes", highlight=False)
        return 0
    must_be_writable(arguments.out)
    settings = Settings(arguments.out.resolve(), arguments.topology, arguments.resume, arguments.trial)
    if arguments.command == "publish":
        return publish(chosen, settings, REPOSITORY, arguments.page, console)
    return run_plan(chosen, settings, arguments.page, console)


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich")
    from bench.compare import compare
    from bench.leftovers import find_leftovers, remove_leftovers

    remove_leftovers(find_leftovers())
    return compare(arguments.first, arguments.second, options(arguments), console)


def _agree(arguments: argparse.Namespace, console: Console) -> int:
    from bench.agreement import agree
    from bench.results import load_results, newest

    first, second = (newest(load_results([path])) for path in (arguments.first, arguments.second))
    return agree(first, second, console, every=arguments.all)


def _report(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("matplotlib", "jinja2")
    from bench.report import newest_kept, write_page, write_pages
    from bench.results import AGAIN, load_results, newest

    places = arguments.results or [RESULTS_DIR]
    results = newest(load_results(places))
    if arguments.pages is None:
        write_page(results, arguments.out, newest_kept(places))
        console.print(f"written: {arguments.out}", highlight=False)
        return 0
    second = [folder for place in places if (folder := place / AGAIN).is_dir() and any(folder.glob("*.json"))]
    again = newest(load_results(second)) if second else None
    changed = write_pages(results, arguments.pages, again=again, check=arguments.check)
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


def _checks(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "rich")
    from bench.checks import checks

    return checks(arguments.servers, 8.0 if arguments.quick else arguments.seconds, console)


def _calibrate(arguments: argparse.Namespace, console: Console) -> int:
    from bench.calibration import calibrate

    return calibrate(arguments.seconds, console)
