"""Two machines with one address, by the real keepalived and the configuration in deploy/keepalived."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packages.machines import Load, Machine, Network, health_words, needs

DEPLOY = Path(__file__).parents[2] / "deploy" / "keepalived"
SERVICE = ("192.0.2.10", 80)
TAKEN_OVER_S_MAX = 3.0
RULE = "192.0.2.10 80 192.0.2.30 8080 [freebind=on, connect-timeout=1s]\n"


def keepalived(machine: Machine, priority: int) -> None:
    """Start it with the file of deploy/, where only user, priority and the path of the command are changed."""
    script = machine.network.run_folder / f"health-{machine.name}"
    words = " ".join((*health_words(machine.admin), "--timeout", "500ms"))
    script.write_text(f"#!/bin/sh\ncd {Path(__file__).parents[2]} && exec {words}\n")
    script.chmod(0o755)
    text = (DEPLOY / "keepalived.conf").read_text()
    for old, new in (
        ("script_user oinetd", "script_user root"),
        ('"/usr/bin/oinetd health --timeout 500ms"', f'"{script}"'),
        ("priority 100", f"priority {priority}"),
    ):
        assert old in text
        text = text.replace(old, new)
    conf = machine.folder / "keepalived.conf"
    conf.write_text(text)
    files = [f"--{kind}={machine.network.run_folder}/{machine.name}.{kind}" for kind in ("pid", "vrrp_pid")]
    machine.start("keepalived", "--dont-fork", "--log-console", "--vrrp", f"--use-file={conf}", *files)


def kill_process(machine: Machine) -> None:
    machine.stop(machine.processes[0], 9)


def freeze_process(machine: Machine) -> None:
    """It listens and accepts, as far as the kernel does so, and says nothing."""
    os.killpg(machine.processes[0].pid, signal.SIGSTOP)


def kill_machine(machine: Machine) -> None:
    machine.dies()
    for process in machine.processes:
        machine.stop(process, 9)


def cut_link(machine: Machine) -> None:
    machine.dies()


@pytest.mark.parametrize("death", [kill_process, freeze_process, kill_machine, cut_link])
def test_new_connections_come_through_after_a_death(death: Callable[[Machine], None], tmp_path: Path) -> None:
    needs(("keepalived", "keepalived"), ("ip", "iproute2"))
    with Network(tmp_path) as network:
        first, second = network.machine("a", "192.0.2.21/24"), network.machine("b", "192.0.2.22/24")
        server, client = network.machine("s", "192.0.2.30/24"), network.machine("c", "192.0.2.40/24")
        server.server("192.0.2.30", 8080)
        for machine, priority in ((first, 100), (second, 90)):
            machine.oinetd(RULE)
            keepalived(machine, priority)
        load = Load(client, SERVICE, 0.02, patience_s=0.3)
        with load.running():
            load.wait_for(lambda result: result == "s", "the first connection")
            holder = first if "192.0.2.10" in first.ip("address") else second
            death(holder)
            died = time.monotonic()
            # One that began before the death may have been answered after it.
            failure = load.wait_for(lambda result: result != "s", "the first failure")
            back = load.wait_for(lambda result: result == "s", "a connection after the death")
        assert failure <= back < died + TAKEN_OVER_S_MAX
