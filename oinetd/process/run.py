"""The life of a process that serves, from its arguments to its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace

from oinetd.observe.process_log import ProcessLog
from oinetd.process.background import split
from oinetd.process.context import HELD_SIGNALS, close_inherited, settle_memory, working_directory
from oinetd.process.daemon import Daemon
from oinetd.process.eventloop import loop_factory
from oinetd.process.invocation import EX_TEMPFAIL, Options
from oinetd.process.service_manager import ServiceManager
from oinetd.process.socket_activation import Inherited, inherited_sockets
from oinetd.upgrade.channel import ChannelClosed
from oinetd.upgrade.frames import BadFrame
from oinetd.upgrade.take import Taker

__all__ = ["run"]


def run(options: Options) -> int:
    """Serve until a stop signal; returns the exit code. Without `foreground` it returns when the daemon has started."""
    pid, base = os.getpid(), working_directory()
    handover = None
    try:
        taker = Taker.of(os.environ)
    except (ChannelClosed, BadFrame) as error:
        print(f"oinetd: upgrade: {error}", file=sys.stderr)
        return EX_TEMPFAIL
    if taker is not None:
        base = str(taker.facts.get("base", base))
    elif not options.foreground:
        close_inherited(os.environ, pid)
        answer = split()
        if isinstance(answer, int):
            return answer
        handover = answer
        # The daemon changes to the root directory, and reads the file again at each reload.
        options = replace(options, conf_file=options.conf_file and os.path.join(base, options.conf_file))
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    # A process that a dry run starts serves nothing: its lines about listeners would be taken for those of the service.
    level = "warning" if taker is not None and taker.facts.get("dry_run") else options.log_level
    process_log = ProcessLog(level, os.environ, as_json=options.log_format == "json")
    if taker is None:
        sockets = inherited_sockets(os.environ, pid)
    else:
        sockets = Inherited(tuple(taker.inherited), tuple(taker.sockets))
    daemon = Daemon(options, base, process_log, ServiceManager.of(os.environ, pid), handover, taker)
    factory = loop_factory()  # before `prepare`: the user that serves may not be able to read the interpreter's files
    code = daemon.prepare(sockets)
    if code is None:
        settle_memory()
        process_log.write_in_background()
        # Never closed: see the end of this function.
        runner = asyncio.Runner(loop_factory=factory)
        code = runner.run(daemon.run())
    process_log.close()
    if daemon.failure:
        print(daemon.failure, file=sys.stderr)
    if handover is not None:
        handover.failed(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed and written. A thread may still wait for a name server, and a normal exit would wait for
    # this thread for half a minute or more.
    os._exit(code)
