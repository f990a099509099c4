"""`python -m tests.faults --seed N --minutes M [--plant NAME]`; exit code 0 if every invariant held, 1 if not."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults.driver import ROUND_S, Driver
from tests.faults.invariants import Broken
from tests.faults.kinds import KINDS
from tests.faults.memory import Memory
from tests.faults.plants import LEAKS, PLANTS, Plant
from tests.faults.stage import Stage

INSIDE = "OINETD_FAULTS_INSIDE"
PREPARE = """\
ip link set lo up
mount -t tmpfs -o size=64m,mode=700 tmpfs "$1"
mkdir "$1/apart"
mount -t tmpfs -o size=16m,mode=700 tmpfs "$1/apart"
printf 'nameserver 127.0.0.1\\noptions timeout:1 attempts:1\\n' > "$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
mkdir -p /run/netns
mount -t tmpfs -o size=64k tmpfs /run/netns
shift
exec "$@"
"""
"""Run by sh in a network and a mount namespace of its own: they end with the last process in them."""


def main() -> int:
    """Start again inside of namespaces, then run."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--round", type=float, default=ROUND_S, help="seconds of one round")
    parser.add_argument("--plant", choices=PLANTS, default="", help="a fault that has to be found")
    parser.add_argument("--only", choices=sorted(KINDS), nargs="*", default=(), help="no other faults than these")
    said = parser.parse_args()
    if os.environ.get(INSIDE) is None:
        if os.geteuid() != 0:
            print("network namespaces need root", file=sys.stderr)
            return 77
        with tempfile.TemporaryDirectory(prefix="oinetd-faults-") as folder:
            again = [sys.executable, "-m", "tests.faults", *sys.argv[1:], "--seed", str(said.seed)]
            words = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
            prepare = ["sh", "-euc", PREPARE, "sh", folder, *again]
            try:
                return subprocess.run([*words, *prepare], env={**os.environ, INSIDE: folder}, check=False).returncode
            finally:
                Memory.remove(Path(folder).name)
    print(f"seed {said.seed}", flush=True)
    stage = Stage(Path(os.environ[INSIDE]), said.seed, leak=LEAKS.get(said.plant, ""))
    driver = Driver(stage, said.seed, Plant(said.plant), said.only)
    try:
        stage.open()
        asyncio.run(driver.run(said.minutes * 60, said.round))
    except Broken as broken:
        tell(driver, f"BROKEN after {driver.rounds} rounds: {broken}")
        return 1
    except Exception:
        tell(driver, f"the driver failed after {driver.rounds} rounds")
        raise
    finally:
        stage.close()
    failed = stage.control.failed if stage.control is not None else 0
    told = f"{driver.rounds} rounds, {driver.load.ended} connections ended, {driver.load.broken} broke"
    told += f" {dict(driver.load.why)}, {stage.upgrades} upgrades, {driver.moved} moves, {failed} calls failed"
    if stage.memory is not None:
        told += f", memory was short {stage.memory.refused} times"
    print(f"{told}, {driver.load.checked} bytes compared: every invariant held", flush=True)
    return 0


def tell(driver: Driver, why: str) -> None:
    """Print what happened at the end, and what the daemon said, which goes with the folder of the run."""
    said, daemon = driver.stage.said, getattr(driver.stage, "daemon", None)
    print(*driver.events[-30:], why, sep="\n")
    if daemon is not None:
        print(f"process {daemon.pid} of oinetd", "lives" if (code := daemon.poll()) is None else f"ended with {code}")
    print(said.read_text(errors="replace")[-5000:] if said.exists() else "oinetd has not been started")
    print(f"connections that the kernel gave up: {kernel_aborts()}", flush=True)


def kernel_aborts() -> dict[str, int]:
    """How often the kernel of this namespace ended a connection by itself, and why."""
    names, numbers = Path("/proc/net/netstat").read_text().splitlines()[:2]
    counts = dict(zip(names.split()[1:], map(int, numbers.split()[1:]), strict=True))
    return {name: count for name, count in counts.items() if count and name.startswith(("TCPAbort", "TCPMemory"))}


if __name__ == "__main__":
    code = 70
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever still runs: this is process 1 of a namespace, and ends all of it
