"""The command line of the bench."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from bench.commands.arguments import Commands
from bench.commands.measurements import add_measurements
from bench.commands.tools import add_tools
from bench.errors import BenchError, Interrupted
from bench.tools import need_libraries

__all__ = ["main", "parser"]

DESCRIPTION = """
Measures forwarders: oinetd's engines, the bench's own reference forwarders, and peers that are installed, between
a client and a server in network namespaces of their own (root), or on loopback.

The figure to compare is the forwarder's own processor time per unit of work.
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


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(made)
    add_measurements(commands)
    add_tools(commands)
    return made


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
    arguments = parser().parse_args(words)
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
