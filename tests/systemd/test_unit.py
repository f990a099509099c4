"""The unit as it is shipped, under a real systemd."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.daemon.process import until
from tests.systemd.guest import Guest

Boot = Callable[..., Guest]

RULES = "127.0.0.1 80 127.0.0.1 8000\n"

ECHO = """\
import socket, threading
def serve(sock):
    with sock:
        while piece := sock.recv(65536):
            sock.sendall(piece)
server = socket.create_server(("127.0.0.1", 8000))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

ECHO_UNIT = """\
[Service]
Type=exec
ExecStart=/usr/bin/python3 /srv/echo.py
[Install]
WantedBy=multi-user.target
"""

CALL = """\
import socket
with socket.create_connection(("{host}", {port}), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(5).decode())
"""

CALLS_OVER_A_RESTART = """\
import socket, subprocess
restart = subprocess.Popen(["systemctl", "restart", "oinetd.service"])
calls = 0
while restart.poll() is None or calls < 10:
    with socket.create_connection(("127.0.0.1", 80), 20) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello", calls
    calls += 1
print(restart.returncode)
"""

SERVER = {
    "srv/echo.py": ECHO,
    "etc/systemd/system/echo.service": ECHO_UNIT,
}


def call(guest: Guest, host: str = "127.0.0.1", port: int = 80) -> str:
    """What comes back through the forwarder for `hello`."""
    return guest.python(CALL.format(host=host, port=port))


def serve(guest: Guest) -> None:
    """Start the server, then oinetd, and wait for both."""
    guest.run("systemctl", "stop", "rinetd")
    guest.run("systemctl", "start", "echo")
    until(lambda: guest.call("python3", "-c", CALL.format(host="127.0.0.1", port=8000)).returncode == 0, "the server")
    guest.run("systemctl", "start", "oinetd")


def test_the_configuration_of_rinetds_package_serves_unchanged(guest: Boot) -> None:
    one = guest(SERVER)
    conf = one.read("/etc/rinetd.conf")
    assert "logfile /var/log/rinetd.log" in conf.splitlines()
    serve(one)
    assert one.show("oinetd", "ActiveState") == "active"
    until(lambda: "warning: /etc/rinetd.conf: no forwarding rule" in one.journal(), "the warning")
    # Usual in rinetd's configurations, and a place where the service may not write.
    one.write("/etc/rinetd.conf", f"{conf}\npidlogfile /var/run/rinetd.pid\n{RULES}")
    one.run("systemctl", "reload", "oinetd")
    until(lambda: "listening on 127.0.0.1:80" in one.journal(), "the listener")
    assert call(one) == "hello"
    until(lambda: "done-remote-closed" in one.read("/var/log/rinetd.log"), "the line of the connection")
    # logrotate's file of the package, which copies and truncates.
    one.run("logrotate", "--force", "/etc/logrotate.d/rinetd")
    assert call(one) == "hello"
    until(lambda: one.read("/var/log/rinetd.log").count("done-remote-closed") == 1, "the line after the rotation")
    assert one.run("stat", "-c", "%U %a", "/var/log/rinetd.log") != "root 644"
    one.run("systemctl", "restart", "oinetd")
    assert call(one) == "hello"
    assert one.read("/run/oinetd/oinetd.pid").strip() == one.show("oinetd", "MainPID")
    one.run("systemctl", "stop", "oinetd")
    # No file outside of its folder stays with a user whose number another service may get.
    assert one.run("find", "/var/log", "-maxdepth", "1", "-type", "f", "-not", "-user", "root") == ""


def test_the_logs_of_the_examples_are_written_and_rotated(guest: Boot) -> None:
    one = guest({**SERVER, "etc/oinetd.conf": f"logfile /var/log/oinetd.log\n{RULES}"})
    serve(one)
    for reloads, log in enumerate(("/var/log/oinetd.log", "/var/log/oinetd/oinetd.log")):
        one.write("/etc/oinetd.conf", f"logfile {log}\n{RULES}")
        one.run("systemctl", "reload", "oinetd")
        until(lambda reloads=reloads: one.journal().count("reloaded") > reloads, "the reload")
        assert call(one) == "hello"
        until(lambda log=log: "done-remote-closed" in one.call("cat", log).stdout, "the line of the connection")
        one.run("logrotate", "--force", "/etc/logrotate.d/oinetd")
        assert call(one) == "hello"
        until(lambda log=log: one.call("cat", log).stdout.count("done-remote-closed") == 1, "a line in the new file")
        assert one.read(f"{log}.1").count("done-remote-closed") == 1


def test_a_reload_of_a_bad_file_fails_and_changes_nothing(guest: Boot) -> None:
    one = guest({**SERVER, "etc/oinetd.conf": RULES})
    serve(one)
    main = one.show("oinetd", "MainPID")
    one.write("/etc/oinetd.conf", "127.0.0.1 80 127.0.0.1\n")
    assert one.call("systemctl", "reload", "oinetd").returncode != 0
    until(lambda: "/etc/oinetd.conf:1" in one.journal(), "the place of the mistake")
    assert call(one) == "hello"
    assert one.show("oinetd", "ActiveState") == "active"
    one.write("/etc/oinetd.conf", f"{RULES}127.0.0.1 81 127.0.0.1 8000\n")
    one.run("systemctl", "reload", "oinetd")
    until(lambda: "listening on 127.0.0.1:81" in one.journal(), "the new rule")
    assert call(one, port=81) == "hello"
    assert one.show("oinetd", "MainPID") == main


def test_an_address_that_comes_late_is_served_when_it_is_there(guest: Boot) -> None:
    often = "[Service]\nRestartSec=100ms\n"  # the unit has 1 s
    place = "etc/systemd/system/oinetd.service.d/often.conf"
    one = guest({**SERVER, "etc/oinetd.conf": "192.0.2.1 80 127.0.0.1 8000\n", place: often})
    one.run("systemctl", "start", "echo")
    one.call("systemctl", "start", "oinetd")
    # More often than systemd's limit for starts, which is 5 in 10 s.
    until(lambda: int(one.show("oinetd", "NRestarts")) > 5, "more than five restarts")
    until(lambda: "network-online.target" in one.journal(), "the remedy")
    one.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    until(lambda: one.show("oinetd", "ActiveState") == "active", "the start")
    assert call(one, "192.0.2.1") == "hello"


def test_a_bad_configuration_is_not_tried_again(guest: Boot) -> None:
    one = guest({"etc/oinetd.conf": "nonsense\n"})
    assert one.call("systemctl", "start", "oinetd").returncode != 0
    until(lambda: one.show("oinetd", "ActiveState") == "failed", "the failure")
    assert one.show("oinetd", "NRestarts") == "0"
    assert one.show("oinetd", "ExecMainStatus") == "78"
    until(lambda: "/etc/oinetd.conf:1" in one.journal(), "the place of the mistake")


def test_under_the_unit_of_rinetd(guest: Boot) -> None:
    one = guest({**SERVER, "etc/rinetd.conf": f"logfile /var/log/rinetd.log\n{RULES}"})
    one.run("systemctl", "stop", "rinetd")
    one.run("systemctl", "start", "echo")
    one.run("ln", "-sf", "/usr/bin/oinetd", "/usr/sbin/rinetd")
    one.run("systemctl", "start", "rinetd")
    assert one.show("rinetd", "ActiveState") == "active"
    pid = one.read("/run/rinetd.pid").strip()
    assert one.show("rinetd", "MainPID") == pid
    assert "oinetd" in one.run("cat", f"/proc/{pid}/cmdline") or "rinetd" in one.run("cat", f"/proc/{pid}/cmdline")
    assert call(one) == "hello"
    until(lambda: "done-remote-closed" in one.read("/var/log/rinetd.log"), "the line of the connection")
    one.write("/etc/rinetd.conf", f"{RULES}127.0.0.1 81 127.0.0.1 8000\n")
    one.run("systemctl", "reload", "rinetd")
    until(lambda: one.call("python3", "-c", CALL.format(host="127.0.0.1", port=81)).returncode == 0, "the new rule")
    one.run("systemctl", "restart", "rinetd")
    assert call(one) == "hello"
    one.run("systemctl", "stop", "rinetd")
    assert one.show("rinetd", "Result") == "success"
    assert one.call("test", "-e", "/run/rinetd.pid").returncode == 1


def test_sockets_of_the_service_manager_bridge_a_restart(guest: Boot) -> None:
    socket_unit = "[Socket]\nListenStream=127.0.0.1:80\nBacklog=4096\n[Install]\nWantedBy=sockets.target\n"
    one = guest({**SERVER, "etc/oinetd.conf": RULES, "etc/systemd/system/oinetd.socket": socket_unit})
    one.run("systemctl", "start", "echo", "oinetd.socket")
    assert call(one) == "hello"
    one.run("systemctl", "stop", "oinetd.service")
    # The connection waits in the queue of the socket, and starts the service.
    assert call(one) == "hello"
    before = one.show("oinetd", "MainPID")
    assert one.python(CALLS_OVER_A_RESTART) == "0"
    assert one.show("oinetd", "MainPID") not in (before, "0")
    states = json.loads(one.run("systemctl", "list-units", "--output=json", "oinetd.*"))
    assert {(unit["unit"], unit["active"]) for unit in states} == {
        ("oinetd.service", "active"),
        ("oinetd.socket", "active"),
    }


UPGRADE_AND_CRASH = """\
import json, os, signal, socket, subprocess, time

def show(name):
    words = ["systemctl", "show", "-P", name, "oinetd.service"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()

def main_pid():
    return int(show("MainPID"))

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

with socket.create_connection(("127.0.0.1", 80), 20) as lasting:
    lasting.sendall(b"before")
    assert lasting.recv(6) == b"before"
    old = main_pid()
    done = subprocess.run(["oinetd", "upgrade", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)["pid"]
    assert main_pid() == new != old
    assert open("/run/oinetd/oinetd.pid").read() == f"{new}\\n"
    lasting.sendall(b"after")
    assert lasting.recv(5) == b"after"
    until(lambda: not os.path.exists(f"/proc/{old}"))
    assert show("ActiveState") == "active"
# systemd sees the end of a process that it did not start, and the next one has the sockets of it.
os.kill(new, signal.SIGKILL)
until(lambda: not os.path.exists(f"/proc/{new}"))
with socket.create_connection(("127.0.0.1", 80), 20) as early:
    early.sendall(b"early")
    assert early.recv(5) == b"early"
assert main_pid() not in (0, old, new)
print(show("NRestarts"), show("NFileDescriptorStore"))
"""


def test_an_upgrade_and_a_crash_under_the_service_manager(guest: Boot) -> None:
    """The main process is another one, and clients that come after a crash wait until the next one serves."""
    machine = guest({"etc/oinetd.conf": RULES, **SERVER})
    serve(machine)
    assert machine.python(UPGRADE_AND_CRASH).split() == ["1", "1"]
