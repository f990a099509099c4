"""What is in deploy/, debian/ and pyproject.toml for others' programs: they accept it, and it agrees with itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.offline import without_network

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
FOR_DEVELOPERS = {"test", "package", "check"}


def said(*words: str) -> str:
    """What a checking program says: nothing, if it is content. Skips the test if the program is missing."""
    if shutil.which(words[0], path=PATH) is None:
        pytest.skip(f"{words[0]} is missing (Debian: apt install {words[0]})")
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, env={**os.environ, "PATH": PATH}
    )
    return done.stdout if done.stdout or not done.returncode else f"status {done.returncode}"


def keepalived_says(file: Path) -> str:
    """What keepalived says of the file, on a machine with a network card."""
    said("keepalived", "--version")
    check = 'ip link add eth0 type veth peer name v1; exec keepalived --config-test --use-file="$1"'
    return said(*without_network(), "sh", "-euc", check, "sh", str(file))


@pytest.mark.parametrize("name", ["keepalived.conf", "ipvs.conf"])
def test_keepalived_accepts_its_files(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "keepalived" / name).read_text()
    # This machine has neither the user nor the command.
    text = text.replace("script_user oinetd", "script_user root").replace("/usr/bin/oinetd", "/bin/true")
    (tmp_path / name).write_text(text)
    assert keepalived_says(tmp_path / name) == ""


def test_a_check_of_keepalived_is_a_check(tmp_path: Path) -> None:
    text = (DEPLOY / "keepalived" / "ipvs.conf").read_text()
    (tmp_path / "bad.conf").write_text(text.replace("lb_algo mh", "lb_algo x"))
    assert "Invalid lvs_scheduler" in keepalived_says(tmp_path / "bad.conf")


@pytest.mark.parametrize("name", ["bird.conf", "router.conf"])
def test_bird_accepts_its_files(name: str) -> None:
    assert said("bird", "-p", "-c", str(DEPLOY / "bird" / name)) == ""


def test_nft_accepts_the_rules_of_a_router() -> None:
    before = without_network()
    said("nft", "--version")
    assert said(*before, "nft", "--check", "--file", str(DEPLOY / "bird" / "router.nft")) == ""


def test_the_kernel_accepts_the_resilient_group_of_the_page() -> None:
    page = (ROOT / "docs" / "several-machines.md").read_text()
    (command,) = re.findall(r"`(ip nexthop add [^`]* resilient [^`]*)`", page)
    links = "ip link add v0 up type veth peer name v1; ip link set v1 up; ip address add 10.0.0.1/24 dev v0"
    hops = "; ".join(f"ip nexthop add id {number} via 10.0.0.1{number} dev v0" for number in (1, 2, 3))
    text = said(*without_network(), "sh", "-euc", f"{links}; {hops}; {command}; ip nexthop show id 10")
    if "not supported" in text or "Unsupported" in text:
        pytest.skip("this kernel has no resilient next-hop groups")
    assert re.match(r"id 10 group 1/2/3 type resilient buckets 512 idle_timer 120 ", text), text


def test_an_engine_and_umoci_make_the_same_image() -> None:
    docker = dict(re.findall(r"^(\w+) (.+)$", (DEPLOY / "container" / "Dockerfile").read_text(), re.MULTILINE))
    umoci = dict(re.findall(r"--config\.(\w+) (\S+)", (DEPLOY / "container" / "image.sh").read_text()))
    assert docker["USER"] == umoci["user"]
    assert (docker["ENTRYPOINT"], docker["CMD"]) == (f'["{umoci["entrypoint"]}"]', f'["{umoci["cmd"]}"]')
    assert (docker["ENV"], docker["STOPSIGNAL"]) == (umoci["env"], umoci["stopsignal"])
    assert docker["HEALTHCHECK"].endswith('CMD ["/usr/bin/oinetd", "health"]')


def test_one_extra_has_all_the_others() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    named = re.fullmatch(r"oinetd\[([\w,]+)\]", everything)
    assert named is not None
    assert set(named[1].split(",")) == set(extras) - FOR_DEVELOPERS


def test_the_package_of_debian_suggests_what_extras_need() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {
        f"python3-{re.split('[<>=]', need)[0]}"
        for name in set(extras) - FOR_DEVELOPERS - {"all"}
        for need in extras[name]
    }
    (suggested,) = re.findall(r"^Suggests: (.*)$", (ROOT / "debian" / "control").read_text(), re.MULTILINE)
    assert wanted < set(suggested.split(", "))


def test_wheels_are_configured_for_each_python_and_system() -> None:
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["build"] == [f"cp3{minor}-*" for minor in (11, 12, 13, 14)] + ["cp314t-*"]
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    linux = wheels["linux"]
    for arch in ("x86_64", "aarch64"):
        assert arch in linux["archs"]
        assert {f"manylinux-{arch}-image", f"musllinux-{arch}-image"} < set(linux)
