"""Three machines announce one address by BIRD, with the files of deploy/bird; a router spreads flows over them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.process import until
from tests.packages.machines import Load, Machine, Network, health_words, needs

DEPLOY = Path(__file__).parents[2] / "deploy" / "bird"
SERVICE = ("192.0.2.10", 80)
ADDRESS = "192.0.2.10/32"
RULE = (
    "upstream web [balance=source]\n"
    "upstream web 10.0.0.31 8080\nupstream web 10.0.0.32 8080\nupstream web 10.0.0.33 8080\n"
    "192.0.2.10 80 @web [freebind=on]\ndrain-timeout 3s\n"
)
MACHINES = (11, 12, 13)
SOURCES = tuple(f"10.1.0.{number}" for number in range(10, 40))
PACE_S = 1 / 300
CONVERGED_S = 0.5


class Cluster:
    """The router, three machines with oinetd, three servers and a client behind the router."""

    def __init__(self, network: Network, *, bfd: bool = False) -> None:
        self.bfd = bfd
        self.router = network.machine("r", "10.0.0.1/24", "10.1.0.1/24")
        for key in ("net.ipv4.ip_forward", "net.ipv4.fib_multipath_hash_policy"):
            self.router.run("sysctl", "-qw", f"{key}=1")
        self.client = network.machine("c", *(f"{source}/24" for source in SOURCES))
        self.client.ip("route", "add", "default", "via", "10.1.0.1")
        for number in (31, 32, 33):
            network.machine(f"s{number}", f"10.0.0.{number}/24").server(f"10.0.0.{number}", 8080)
        self.bird(self.router, (DEPLOY / "router.conf").read_text())
        self.keep_connections()
        self.machines = {number: network.machine(f"m{number}", f"10.0.0.{number}/24") for number in MACHINES}
        for number, machine in self.machines.items():
            machine.ip("route", "add", "10.1.0.0/24", "via", "10.0.0.1")
            text = (DEPLOY / "bird.conf").read_text().replace("10.0.0.11", f"10.0.0.{number}")
            self.bird(machine, text.replace("as 65011", f"as 650{number}"))

    def keep_connections(self) -> None:
        """What router.nft says, and the commands in its comment for each machine."""
        text = (DEPLOY / "router.nft").read_text()
        commands = re.findall(r"^#     (ip .*)$", text, re.MULTILINE)
        assert len(commands) == 2
        for number in MACHINES:
            for command in commands:
                done = self.router.run(*command.replace("11", str(number)).split())
                assert done.returncode == 0, done.stderr
        done = self.router.run("nft", "-f", str(DEPLOY / "router.nft"))
        assert done.returncode == 0, done.stderr

    def bird(self, machine: Machine, text: str) -> None:
        if self.bfd:
            (protocol,) = re.findall(r"`(protocol bfd .*)`", (DEPLOY / "bird.conf").read_text())
            text = f"{protocol}\n" + re.sub(r"^( +)hold time", r"\1bfd on;\n\1hold time", text, flags=re.MULTILINE)
        conf = machine.folder / "bird.conf"
        conf.write_text(text.replace("log syslog all;", "log stderr all;"))
        machine.start("bird", "-f", "-c", str(conf), "-s", str(Cluster.control(machine)))

    def serve(self, number: int) -> None:
        """Start oinetd and the announcement of one machine, and wait until the router knows it."""
        machine = self.machines[number]
        machine.oinetd(RULE)
        machine.start(
            *(str(DEPLOY / "oinetd-announce"), ADDRESS),
            OINETD_HEALTH=" ".join(health_words(machine.admin)),
            BIRDC=f"birdc -s {self.control(machine)}",
            OINETD_HELD=f"{machine.folder}/withdrawn",
        )
        until(lambda: number in self.known(), f"the route of {number}")

    @staticmethod
    def control(machine: Machine) -> Path:
        return machine.network.run_folder / f"{machine.name}.ctl"

    def known(self) -> set[int]:
        """The machines that the router sends flows to."""
        return set(map(int, re.findall(r"via 10\.0\.0\.(\d+)", self.router.ip("route", "show", ADDRESS))))

    def withdraw(self, number: int) -> None:
        """What `withdraw-first.conf` does before a stop."""
        machine = self.machines[number]
        machine.stop(machine.processes[-1])  # its TERM takes the route away
        until(lambda: number not in self.known(), f"the end of the route of {number}")
        time.sleep(CONVERGED_S)  # what was on its way to the machine arrives

    def stop(self, number: int) -> None:
        machine = self.machines[number]
        machine.stop(machine.processes[-2])


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    needs(("bird", "bird2"), ("ip", "iproute2"), ("sysctl", "procps"), ("nft", "nftables"))
    with ExitStack() as stack:
        made = Cluster(stack.enter_context(Network(tmp_path)), bfd=getattr(request, "param", False))
        for number in MACHINES:
            made.serve(number)
        yield made


def servers(load: Load) -> dict[str, set[str]]:
    """The servers that each source came to."""
    seen: dict[str, set[str]] = {}
    for _, source, result in load.results:
        if not result.startswith("failed"):
            seen.setdefault(source, set()).add(result)
    return seen


def test_a_rolling_restart_refuses_nobody_and_each_client_keeps_its_server(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Load(cluster.client, SERVICE, PACE_S, SOURCES)
    with load.running():
        load.wait_for(lambda result: result.startswith("s"), "the first connection")
        for number in MACHINES:
            cluster.withdraw(number)
            cluster.stop(number)
            assert cluster.known() == set(MACHINES) - {number}
            cluster.serve(number)
        load.wait_for(lambda result: result.startswith("s"), "a connection at the end")
    failed = [(began, source, result) for began, source, result in load.results if result.startswith("failed")]
    assert failed == [], f"{len(failed)} of {len(load.results)}"
    with capsys.disabled():
        print(f"\n{len(load.results)} connections, {load.rate:.0f} a second, none failed")
    seen = servers(load)
    assert set(seen) == set(SOURCES)
    assert {source: names for source, names in seen.items() if len(names) > 1} == {}
    assert len(set.union(*seen.values())) == 3


def test_a_machine_that_dies_takes_its_own_connections_only(cluster: Cluster) -> None:
    load = Load(cluster.client, SERVICE, PACE_S, SOURCES)
    with load.running():
        load.wait_for(lambda result: result.startswith("s"), "the first connection")
        cluster.machines[12].dies()
        until(lambda: 12 not in cluster.known(), "the router to notice")
        noticed = time.monotonic()
        until(lambda: load.results[-1][0] > noticed + 1.0, "connections after that")
    late = [result for began, _, result in load.results if began > noticed and result.startswith("failed")]
    assert late == []
    assert {source: names for source, names in servers(load).items() if len(names) > 1} == {}


@pytest.mark.parametrize("cluster", [True], indirect=True, ids=["bfd"])
def test_with_bfd_a_dead_machine_is_noticed_within_a_second(cluster: Cluster) -> None:
    sessions = f"birdc -s {cluster.control(cluster.router)} show bfd sessions"
    until(lambda: cluster.router.run("sh", "-c", sessions).stdout.count(" Up ") == len(MACHINES), "the sessions")
    load = Load(cluster.client, SERVICE, PACE_S, SOURCES)
    with load.running():
        load.wait_for(lambda result: result.startswith("s"), "the first connection")
        cluster.machines[12].dies()
        died = time.monotonic()
        until(lambda: 12 not in cluster.known(), "the router to notice")
        noticed = time.monotonic()
        until(lambda: load.results[-1][0] > noticed + 1.0, "connections after that")
    assert noticed - died < 1.0
    assert [result for began, _, result in load.results if began > noticed and result.startswith("failed")] == []
