"""What commands share: kinds of values, the options of every measurement, and how commands are added."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results import RESULTS_DIR

__all__ = [
    "Commands", "add_topology", "amount", "cases", "cores", "count", "counts", "measured_options", "names", "positive",
    "sizes",
]  # fmt: skip


def sizes(text: str) -> list[int]:
    return [size(word) for word in text.split(",")]


def size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    if not number.isdigit() or not int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 16K")
    return int(number) * units.get(unit, 1)


def names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def cases(text: str) -> list[str]:
    return [word.strip() for word in text.split(";") if word.strip()]


def cores(text: str) -> list[str]:
    lists = text.split("/")
    if len(lists) != 3:
        raise argparse.ArgumentTypeError(f"{text} is not three lists of cores such as 0/1/0")
    return lists


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def amount(text: str) -> float:
    return 0.0 if text == "0" else positive(text)


def count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def counts(text: str) -> list[int]:
    return [count(word) for word in text.split(",")]


class Commands:
    """The commands of one parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        self, name: str, help_text: str, description: str, run: Callable[..., int], **more: Any
    ) -> argparse.ArgumentParser:
        """`run(arguments, console)` is called for it, and gives the exit status."""
        added = self._commands.add_parser(
            name, help=help_text, description=textwrap.dedent(description).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        added.set_defaults(run=run)
        return added


def add_topology(group: argparse._ActionsContainer) -> None:
    group.add_argument("--topology", choices=("auto", "netns", "loopback"), default="auto",
                       help="namespaces (root), or loopback; default: namespaces where possible")  # fmt: skip


def measured_options() -> argparse.ArgumentParser:
    """A parent for the parser of each command that measures subjects."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--subjects", type=names, default=[], metavar="NAME,…", help="subjects or groups of them")
    group.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", dest="peers",
        help="any other forwarder; {listen} and {connect} stand for HOST:PORT, {listen_host}, {listen_port}, "
        "{connect_host}, {connect_port} for the parts",
    )  # fmt: skip
    group.add_argument("--buffers", type=sizes, default=[], metavar="SIZE,…", help="buffer sizes, such as 8K,64K")
    group.add_argument(
        "--threads", type=counts, default=[], metavar="N,…",
        help="of each subject; of several numbers, oinetd's native modes are there for each; default: its own choice",
    )  # fmt: skip
    group.add_argument("--cases", type=cases, default=[], metavar="NAME;…",
                       help="only these cases, by the names of the tables, such as `P8` or `64B × *`")  # fmt: skip
    group = parser.add_argument_group("how long")
    group.add_argument("--quick", action="store_true", help="about a minute: fewer subjects, cases and rounds")
    group.add_argument("--rounds", type=count, default=0, metavar="N", help="times that each subject has its turn")
    group.add_argument("--seconds", type=positive, default=0.0, metavar="S", help="of one timed load")
    group.add_argument("--no-check", action="store_false", dest="check", help="leave out integrity and half-close")
    group = parser.add_argument_group("where")
    add_topology(group)
    group.add_argument("--rtt", type=amount, default=0.0, metavar="MS", help="added to each round trip, by netem")
    group.add_argument("--loss", type=amount, default=0.0, metavar="PERCENT", help="of the packets, at random")
    group.add_argument("--bandwidth", type=amount, default=0.0, metavar="MBIT", help="of each leg, in each direction")
    group.add_argument(
        "--cores", type=cores, default=[], metavar="C/F/S",
        help="cores of client, forwarder and server, such as 0/1/0; default: their own if there are six, else all",
    )  # fmt: skip
    group.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="where the result is kept")
    return parser
