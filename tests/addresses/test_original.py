"""`transparent` and the destination `original`: connections go to where their clients were going."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import Ending, Endpoint, Rule, RuleOptions
from oinetd.config import parse_config
from oinetd.config.render import render_config
from oinetd.core.record import Try
from oinetd.errors import ConfigError
from oinetd.lanes.native.plane import available
from oinetd.net.options import ListenOptions, RefusedOption
from oinetd.net.sockets import Address, host_and_port, lookup
from oinetd.process.transparent import transparent_lines
from oinetd.upstream import loops, original
from oinetd.upstream.original import Original, is_forbidden
from tests.addresses.machines import inside, three_machines
from tests.forwarding import Seen
from tests.peers import dial, free_port, until
from tests.preamble.lanes import in_lanes, lane_options, looking, served
from tests.preamble.samples import hello, records, server_name

TRANSPARENT = RuleOptions(transparent=True)

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVER = """
import select, socket
places = [(host, port) for host in ("10.77.2.2", "fd77:2::2") for port in range(8080, 8084)]
listeners = [socket.create_server(each, family=(socket.AF_INET, socket.AF_INET6)[":" in each[0]]) for each in places]
print("ready", flush=True)
while True:
    for listener in select.select(listeners, [], [])[0]:
        client, peer = listener.accept()
        port = listener.getsockname()[1]
        header = client.makefile().readline() if port >= 8082 else ""
        client.sendall(f"{peer[0]} to {port}{header and ' after ' + header}".encode())
        client.close()
"""
CLIENT = """
import socket, sys
for port in sys.argv[2:]:
    try:
        print(socket.create_connection((sys.argv[1], int(port)), 10).makefile().read())
    except ConnectionResetError:
        print("reset")
"""


def await_line(messages: IO[str], words: str, count: int) -> None:
    """Read what a daemon says until so many lines have these words."""
    while count:
        line = messages.readline()
        assert line
        count -= words in line


def running(stack: contextlib.ExitStack, server: subprocess.Popen[str], daemon: subprocess.Popen[str]) -> IO[str]:
    """Both are killed with the stack; the server is ready, and the answer is what the daemon says."""
    for each in (server, daemon):
        stack.enter_context(each)
        stack.callback(each.kill)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    assert daemon.stderr is not None
    return daemon.stderr


@root
@pytest.mark.parametrize(
    ("bind", "options", "seen"),
    [
        ("::", "transparent, engine=python", "10.77.2.1"),
        ("::", "transparent", "10.77.2.1"),
        ("0.0.0.0", "transparent, src=client, interface=to1", "10.77.1.2"),
    ],
)
def test_connections_through_this_machine(tmp_path: Path, bind: str, options: str, seen: str) -> None:
    """With what `oinetd transparent` prints, as an unprivileged user. Without oinetd nothing passes the router."""
    if shutil.which("nft") is None:
        pytest.skip("nft is missing")
    conf = tmp_path / "oinetd.conf"
    conf.write_text(f"admin off\nlogfile /dev/stdout\nlogformat json\n{bind} 1080 original [{options}]\nallow *\n")
    conf.chmod(0o644)
    with three_machines() as (client, router, server), contextlib.ExitStack() as stack:
        inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        oinetd = [sys.executable, "-m", "oinetd", "-c", str(conf)]
        inside(router, "sh", "-ec", inside(router, *oinetd[:3], "transparent", *oinetd[3:]))
        assert "missing" not in inside(router, *oinetd[:3], "transparent", *oinetd[3:])
        enter = ["ip", "netns", "exec"]
        started = [
            subprocess.Popen([*enter, server, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True),
            subprocess.Popen(
                [*enter, router, *oinetd, "-f", "-u", "nobody"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ),
        ]  # fmt: skip
        messages = running(stack, *started)
        lines: list[str] = []
        while not (lines and "listening on" in lines[-1]):
            lines.append(messages.readline())
            assert lines[-1], lines
        assert not any("transparent" in line for line in lines[:-1]), lines
        for port in ("8080", "8081"):
            assert inside(client, sys.executable, "-c", CLIENT, "10.77.2.2", port).strip() == f"{seen} to {port}"
        assert inside(client, sys.executable, "-c", CLIENT, "10.77.1.1", "1080").strip() == "reset"
        assert started[1].stdout is not None
        ended = []
        while len(ended) < 3:
            said = json.loads(started[1].stdout.readline())
            ended += [said] if said["event"] != "opened" else []
    assert [(each["upstream"], each["upstream_port"]) for each in ended[:2]] == [
        ("10.77.2.2", 8080), ("10.77.2.2", 8081),
    ]  # fmt: skip
    assert ended[2]["client"] == "10.77.1.2"
    native = not available() and "engine=python" not in options
    assert ended[0]["engine"] == ("native" if native else "python")
    assert (ended[2]["ending"], ended[2]["errno"]) == ("connect-failed", errno.ELOOP)


REDIRECT = """
table inet test {
    chain divert {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "to1" tcp dport { 8080, 8081, 8082, 8083 } redirect to tcp dport map {
            8080 : 1080, 8081 : 1081, 8082 : 1082, 8083 : 1083
        }
    }
}
"""


@root
@pytest.mark.parametrize("bind", ["::", "0.0.0.0"])
def test_connections_that_are_redirected(tmp_path: Path, bind: str) -> None:
    """In both lanes. Also one to an address of the router itself, which is refused as it is without `redirect`."""
    if shutil.which("nft") is None:
        pytest.skip("nft is missing")
    conf, ruleset = tmp_path / "oinetd.conf", tmp_path / "nft"
    lanes = ["python" if available() else "native", "python"]
    text = "admin off\nallow *\n"
    for number, engine in enumerate(lanes):
        text += f"{bind} {1080 + number} original [transparent, engine={engine}]\nallow *\n"
        text += f"{bind} {1082 + number} original [transparent, engine={engine}, send-proxy=v1]\nallow *\n"
    conf.write_text(text)
    ruleset.write_text(REDIRECT)
    with three_machines() as (client, router, server), contextlib.ExitStack() as stack:
        enter = ["ip", "netns", "exec"]
        if subprocess.run([*enter, router, "nft", "-f", str(ruleset)], capture_output=True, check=False).returncode:
            pytest.skip("this kernel has no redirect")
        started = [
            subprocess.Popen([*enter, server, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True),
            subprocess.Popen(
                [*enter, router, sys.executable, "-m", "oinetd", "-c", str(conf), "-f"],
                stderr=subprocess.PIPE, text=True,
            ),
        ]  # fmt: skip
        messages = running(stack, *started)
        await_line(messages, "listening on", 4)

        def asked(host: str, *ports: int) -> list[str]:
            """What the client gets from each of these ports of an address."""
            text = inside(client, sys.executable, "-c", CLIENT, host, *map(str, ports))
            return [line.strip() for line in text.splitlines() if line]

        for ours, wanted, router_is, end in (
            ("10.77.1.2", "10.77.2.2", "10.77.2.1", "10.77.1.1"), ("fd77:1::2", "fd77:2::2", "fd77:2::1", "fd77:1::1")
        )[: 2 if bind == "::" else 1]:  # fmt: skip
            family = "TCP6" if ":" in ours else "TCP4"
            said = asked(wanted, 8080, 8081, 8082, 8083)
            assert said[:2] == [f"{router_is} to {port}" for port in (8080, 8081)]
            for port, line in zip((8082, 8083), said[2:], strict=True):
                assert re.fullmatch(rf"{router_is} to {port} after PROXY {family} {ours} {wanted} \d+ {port}", line)
            assert asked(end, 8080, 8081) == ["reset", "reset"]
        # A network that a local route brings to the router is its own.
        if bind == "::":
            inside(router, "ip", "-6", "route", "add", "local", "2001:db8:77::/64", "dev", "lo")
            assert asked("2001:db8:77::5", 1080, 1081) == ["reset", "reset"]
        inside(router, "ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo", "src", "10.77.1.1")
        assert asked("198.51.100.5", 1080, 1081) == ["reset", "reset"]
        # What is an address of this machine is asked of the kernel each time.
        inside(router, "ip", "addr", "add", "10.77.2.2/32", "dev", "lo")
        assert asked("10.77.2.2", 8080, 8081) == ["reset", "reset"]
        started[1].send_signal(signal.SIGHUP)
        await_line(messages, "reload", 1)
        assert asked("10.77.2.2", 8080, 8081) == ["reset", "reset"]
        inside(router, "ip", "addr", "del", "10.77.2.2/32", "dev", "lo")
        assert asked("10.77.2.2", 8080, 8081) == [f"10.77.2.1 to {port}" for port in (8080, 8081)]


@root
def test_what_transparent_prints_for_redirect(tmp_path: Path) -> None:
    """As an unprivileged user: connections that pass through, and those of the router itself, of both families."""
    if shutil.which("nft") is None:
        pytest.skip("nft is missing")
    conf = tmp_path / "oinetd.conf"
    conf.write_text("admin off\nlogfile /dev/stdout\nlogformat json\n:: 1080 original [transparent]\nallow *\n")
    conf.chmod(0o644)
    with three_machines() as (client, router, server), contextlib.ExitStack() as stack:
        oinetd = [sys.executable, "-m", "oinetd"]
        ask = [*oinetd, "transparent", "--redirect", "-c", str(conf), "-u", "nobody"]
        said = inside(router, *ask)
        assert "# missing: no line of nftables redirects connections to port 1080" in said
        enter = ["ip", "netns", "exec"]
        if subprocess.run([*enter, router, "sh", "-ec", said], capture_output=True, check=False).returncode:
            pytest.skip("this kernel has no redirect")
        assert "missing" not in inside(router, *ask)
        started = [
            subprocess.Popen([*enter, server, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True),
            subprocess.Popen(
                [*enter, router, *oinetd, "-c", str(conf), "-f", "-u", "nobody"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ),
        ]  # fmt: skip
        await_line(running(stack, *started), "listening on", 1)
        for machine in (client, router):
            for host, seen in (("10.77.2.2", "10.77.2.1"), ("fd77:2::2", "fd77:2::1")):
                assert inside(machine, sys.executable, "-c", CLIENT, host, "8080").strip() == f"{seen} to 8080"
        assert started[1].stdout is not None
        ended = []
        while len(ended) < 4:
            record = json.loads(started[1].stdout.readline())
            ended += [(record["client"], record["upstream"])] if record["event"] != "opened" else []
    assert sorted(ended) == sorted([
        ("10.77.1.2", "10.77.2.2"), ("fd77:1::2", "fd77:2::2"), ("10.77.2.1", "10.77.2.2"), ("fd77:2::1", "fd77:2::2")
    ])  # fmt: skip


@root
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::", "::1"])
@in_lanes
async def test_never_to_ourselves(caplog: pytest.LogCaptureFixture, lane: str, bind: str) -> None:
    seen, port = Seen(), free_port()
    (rule,) = parse_config(f"{bind} {port} original [transparent, {lane_options(lane)}]\nallow *").rules
    async with served(lane, rule, seen=seen):
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                peer = await dial(("::1" if bind == "::1" else "127.0.0.1", port))
                with contextlib.closing(peer):
                    assert await peer.read(1) == b""
        await until(lambda: len(seen.closed) == 2)
    host = "::1" if bind == "::1" else "127.0.0.1"
    for record in seen.closed:
        assert record.ending is Ending.CONNECT_FAILED
        assert record.errno == errno.ELOOP
        assert record.upstream == ""
        assert record.tries == (Try(host, port, errno.ELOOP),)
    (said,) = (line for line in caplog.messages if "a client wants" in line)
    assert f"a client wants {host_and_port(host, port)}, and original leads to" in said


@root
@in_lanes
async def test_the_server_name_chooses_original(lane: str) -> None:
    """Among rules that share a port only the chosen one goes to where its clients were going."""
    seen, port = Seen(), free_port()
    async with looking(wanted=1, headed=False) as upstream:
        host, to = upstream.address
        text = f"""
            0.0.0.0 {port} original [transparent, sni=a.example, {lane_options(lane)}]
            allow *
            0.0.0.0 {port} {host} {to} [transparent, {lane_options(lane)}]
        """
        async with served(lane, *parse_config(text).rules, seen=seen):
            for name in ("b.example", "a.example"):
                peer = await dial(("127.0.0.1", port))
                await peer.send(records(hello(server_name(name.encode()))))
                if name == "b.example":
                    assert (await upstream.taken.get()).data
                else:
                    with contextlib.suppress(ConnectionError):
                        assert await peer.read(1) == b""
                peer.close()
            await until(lambda: len(seen.closed) == 2)
    refused, relayed = sorted(seen.closed, key=lambda record: record.server_name)
    assert (refused.server_name, relayed.upstream_port) == ("a.example", to)
    assert (refused.ending, refused.errno) == (Ending.CONNECT_FAILED, errno.ELOOP)


def own_address() -> str:
    """One of this machine, if it has one that leads out of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


FOUR = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.sampled_from(["127.0.0.1", "0.0.0.0", "0.0.0.1", "169.254.169.254", "223.255.255.255", "224.0.0.0"]),
    st.sampled_from(["239.255.255.255", "240.0.0.1", "255.255.255.255", "169.253.1.1", "128.0.0.1", own_address()]),
)
SIX = st.one_of(
    st.ip_addresses(v=6).map(str),
    st.sampled_from(["::", "::1", "::2", "fe80::1%lo", "febf::1%lo", "fec0::1", "fe7f::1", "ff02::1%lo", "feff::"]),
    FOUR.map(lambda host: "::ffff:" + host),
    FOUR.map(lambda host: "::" + host),
    FOUR.map(lambda host: "64:ff9b::" + host),
)


@pytest.mark.skipif(bool(available()), reason=available())
@settings(max_examples=500, deadline=None)
@given(st.one_of(FOUR, SIX))
def test_both_lanes_refuse_the_same_addresses(host: str) -> None:
    from oinetd import _fastpath

    assert _fastpath.is_forbidden_destination(host) is is_forbidden(lookup(host, 80)[0])


def test_without_a_descriptor_the_address_before_redirect_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the listener itself, which it has in place of that, would be taken for what the client wanted."""

    def none_left(address: Address) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    for module in (original, loops):
        monkeypatch.setattr(module, "find_local", none_left)
    (wanted,) = lookup("192.0.2.1", 443)
    monkeypatch.setattr(original, "redirected_from", lambda client: wanted)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        client, _ = listener.accept()
        rule = Rule(Endpoint("127.0.0.1", listener.getsockname()[1]), Endpoint("original", 0), TRANSPARENT)
        with client:
            destination, port = Original(rule).wanted_by(client)
    assert (destination.host, port) == ("192.0.2.1", 443)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::1", "fe80::1"]
)
def test_special_addresses_are_refused(host: str) -> None:
    rule = Rule(Endpoint("::", 1), Endpoint("original", 0), TRANSPARENT)
    assert Original(rule).refuses(lookup(host, 80)[0])


JUDGE = """
import os, resource
from oinetd.net.sockets import lookup
from oinetd.upstream.original import is_forbidden
judges = [lambda host: is_forbidden(lookup(host, 80)[0])]
try:
    from oinetd._fastpath import is_forbidden_destination
except ImportError:
    pass
else:
    judges.append(is_forbidden_destination)
for judge in judges:
    print([judge(host) for host in ("10.77.0.1", "10.77.0.2", "fd77::1", "fd77::2", "10.77.0.3", "fd77::3")])
resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), 1024))
for judge in judges:
    try:
        print(judge("10.77.0.3"))
    except OSError as error:
        print(error.errno)
"""


@root
def test_every_address_of_the_machine_is_refused() -> None:
    """Also the second one of a network, from which no connection comes; nothing passes that cannot be judged."""
    words = ["addr add 10.77.0.1/24 dev v0", "addr add 10.77.0.2/24 dev v0", "addr add fd77::1/64 dev v0 nodad"]
    words = ["link add v0 type veth peer name v1", "link set v0 up", *words, "addr add fd77::2/64 dev v0 nodad"]
    setting = "; ".join(f"ip {each}" for each in words)
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", f'{setting}; exec "$@"', "sh", sys.executable, "-c", JUDGE],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    lanes = len(lines) // 2
    assert lanes == 2 - bool(available()), done.stderr
    assert lines == [str([True] * 4 + [False] * 2)] * lanes + [str(errno.EMFILE)] * lanes


@root
@in_lanes
async def test_transparent_listens_on_an_address_of_others(lane: str) -> None:
    """With a destination of its own the rule is served in every lane."""
    async with looking(wanted=1, headed=False) as upstream:
        port, (host, to) = free_port(), upstream.address
        line = f"0.0.0.0 {port} {host} {to} [transparent, {lane_options(lane)}]"
        async with served(lane, *parse_config(line).rules):
            peer = await dial(("127.0.0.1", port))
            await peer.send(b"x")
            assert (await upstream.taken.get()).data == b"x"
            peer.close()


ALLOW = "\nallow 192.0.2.0/24"


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("0.0.0.0 80 original" + ALLOW, "original needs the option transparent", 12),
        ("0.0.0.0 80 original [transparent=off]" + ALLOW, "original needs the option transparent", 12),
        ("0.0.0.0 80 original [transparent]", "original without allow", 12),
        ("0.0.0.0 53/udp original [transparent]" + ALLOW, "original is for rules that listen on TCP", 16),
        ("unix:/run/a original" + ALLOW, "original is for rules that listen on TCP", 13),
        ("0.0.0.0 80-81 original [transparent]" + ALLOW, "original needs one port", 15),
        ("0.0.0.0 0 original [transparent]" + ALLOW, "original needs one port", 11),
        ("0.0.0.0 80 original [transparent, accept-proxy]" + ALLOW, "original and accept-proxy", 12),
        ("0.0.0.0 80 original [transparent, balance=source]" + ALLOW, "balance has no effect on original", 35),
        ("0.0.0.0 53/udp 192.0.2.1 53/udp [transparent]", "transparent is for rules that listen on TCP", 1),
        ("unix:/run/a 192.0.2.1 80 [transparent]", "transparent has no effect on a unix socket", 27),
    ],
)
def test_what_contradicts_itself(text: str, message: str, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    problem = next(each for each in caught.value.problems if each.message.startswith(message))
    assert (problem.line, problem.column) == (1, column)
    assert problem.hint


def test_a_program_cannot_leave_transparent_out() -> None:
    with pytest.raises(ConfigError, match="original needs a rule for TCP with transparent"):
        Rule(Endpoint("0.0.0.0", 80), Endpoint("original", 0))


def test_it_is_printed_as_it_was_written() -> None:
    config = parse_config("0.0.0.0 1080 original [transparent]\nallow 192.0.2.0/24\noriginal 81 original 82")
    assert "0.0.0.0 1080  original  [transparent=on]" in render_config(config)
    assert "original 81  original 82" in render_config(config)
    assert parse_config(render_config(config)) == config


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("0.0.0.0 80 original", "meta nfproto ipv4 tproxy ip to :80 meta mark"),
        (":: 80 original", "meta l4proto tcp tproxy to :80 meta mark"),
        ("192.0.2.1 80 original", "meta nfproto ipv4 tproxy ip to 192.0.2.1:80 meta mark"),
        ("[2001:db8::1] 80 192.0.2.9 80", "meta nfproto ipv6 tproxy ip6 to [2001:db8::1]:80 meta mark"),
    ],
)
def test_the_lines_for_nftables(rule: str, line: str) -> None:
    found = list(transparent_lines(parse_config(f"{rule} [transparent, interface=eth7]\nallow *")))
    (taking,) = (each for each in found if " tproxy " in each and not each.startswith("#"))
    assert line in taking
    assert 'iifname "eth7"' in taking


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("0.0.0.0 80 original [transparent]", "meta l4proto tcp meta nfproto ipv4 redirect to :80"),
        (":: 80 original [transparent]", "meta l4proto tcp redirect to :80"),
        ("192.0.2.1 80 192.0.2.9 80 [transparent]", "meta l4proto tcp meta nfproto ipv4 dnat ip to 192.0.2.1:80"),
        ("2001:db8::1 80 original [transparent]", "meta l4proto tcp meta nfproto ipv6 dnat ip6 to [2001:db8::1]:80"),
    ],
)
def test_the_lines_for_nat(rule: str, line: str) -> None:
    """Connections of this machine itself only if it is known which of them are those of oinetd."""
    config, through = parse_config(rule + "\nallow *"), f"        fib daddr type != local {line}"
    found = list(transparent_lines(config, redirect=True, uid=77))
    assert through in found
    assert f"        meta skuid != 77 {through.strip()}" in found
    assert not any(each.startswith("ip ") or "tproxy" in each for each in found if not each.startswith("#"))
    found = list(transparent_lines(config, redirect=True))
    assert through in found
    assert not any("skuid" in each for each in found)


@pytest.mark.parametrize(
    ("address", "allowed", "wanted"),
    [
        ("127.0.0.1", "0", "listen on 0.0.0.0 to take others,"),
        ("127.0.0.9", "1", ""),
        ("::1", "1", "listen on :: to take others."),
        ("0.0.0.0", "0", ""),
    ],
)
def test_a_listener_on_loopback_to_which_nobody_else_can_be_redirected(
    address: str, allowed: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eth7").mkdir()
    (tmp_path / "eth7" / "route_localnet").write_text(f"{allowed}\n")
    monkeypatch.setattr("oinetd.process.transparent._INTERFACES", tmp_path)
    found = list(transparent_lines(parse_config(f"{address} 80 original [transparent]\nallow *"), redirect=True))
    told = [line for line in found if "of this machine itself reach" in line]
    assert [line.partition(": ")[2] for line in told] == ([wanted] if wanted else [])


def test_with_src_client_redirect_needs_the_routes() -> None:
    text = "0.0.0.0 80 original [transparent, src=client, interface=eth7]\nallow *"
    found = list(transparent_lines(parse_config(text), redirect=True, uid=77))
    assert any("fwmark" in each for each in found)
    assert '        iifname "eth7" fib daddr type != local meta l4proto tcp meta nfproto ipv4 redirect to :80' in found
    assert not any("skuid" in each for each in found)


def test_without_the_capability_the_option_is_named() -> None:
    class Refusing(socket.socket):
        def setsockopt(self, *_: object) -> None:  # type: ignore[override]
            raise PermissionError(errno.EPERM, "Operation not permitted")

    with Refusing() as sock, pytest.raises(RefusedOption, match=r"transparent: .*EPERM.*CAP_NET_ADMIN or CAP_NET_RAW"):
        ListenOptions(transparent=True).apply(sock)
