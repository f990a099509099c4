"""Properties: what is written reads back equal; and no text makes the parser do anything but answer or refuse."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.admin_settings import AdminAddress, AdminSettings, AdminSocket
from oinetd.bounds import (
    BACKLOG_MAX,
    BUSY_POLL_US_MAX,
    CONNECTIONS_MAX,
    KEEPALIVE_COUNT_MAX,
    KEEPALIVE_S_MAX,
    SIZE_BYTES_MAX,
    THREADS_MAX,
    TIME_S_MAX,
    TIME_S_MIN,
)
from oinetd.config import parse_config, render_config
from oinetd.config.vocabulary import DIRECTIVES, GROUP_OPTIONS, OPTIONS, SERVER_OPTIONS
from oinetd.errors import ConfigError
from oinetd.model import (
    AcceptProxy,
    AccessRule,
    Config,
    Endpoint,
    EngineChoice,
    KeepAlive,
    LogFormat,
    LogSettings,
    OnDeny,
    Protocol,
    ProxyTlv,
    Rate,
    RelayMode,
    Rule,
    RuleOptions,
    SendProxy,
    SendProxyUdp,
    Settings,
    SourcePrefix,
    Verb,
)
from oinetd.servers import GroupOptions, Server

PORTS_A_RULE = 64

label = st.from_regex(r"[a-z0-9_]([a-zA-Z0-9_-]{0,10}[a-zA-Z0-9])?", fullmatch=True)
names = st.builds(
    lambda labels, last, dot: ".".join([*labels, last]) + dot,
    st.lists(label, max_size=3),
    st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["", "."]),
)
ipv4 = st.ip_addresses(v=4).map(str) | st.just("0")
scoped = st.builds(
    lambda address, scope: address + scope, st.ip_addresses(v=6).map(str), st.sampled_from(["", "%eth0"])
)
hosts = names | ipv4 | scoped | scoped.map(lambda address: f"[{address}]")

times = (
    st.just(0.0)
    | st.integers(1, TIME_S_MAX).map(float)
    | st.floats(TIME_S_MIN, TIME_S_MAX, allow_nan=False)
    | st.integers(1, 8000).map(lambda hours: hours * 3600.0)
)
sizes = st.integers(1, SIZE_BYTES_MAX) | st.integers(1, 1024).map(lambda kibibytes: kibibytes * 1024)
counts = st.integers(0, CONNECTIONS_MAX)
keepalives = st.builds(
    KeepAlive,
    st.integers(0, KEEPALIVE_S_MAX),
    st.integers(1, KEEPALIVE_S_MAX),
    st.integers(1, KEEPALIVE_COUNT_MAX),
)
file_names = st.text(
    st.characters(codec="utf-8", exclude_characters='\0\n\r"') | st.sampled_from(list("# \t\udce9[]")), min_size=1
) | st.from_regex(r"[^\0\n\r\t #\"][^\0\n\r\t ]{0,20}", fullmatch=True)
patterns = (
    st.from_regex(r"[0-9a-fA-F:.*?\[\]]{1,30}", fullmatch=True)
    | st.ip_addresses().map(str)
    | st.builds(lambda address, bits: f"{address}/{bits}", st.ip_addresses().map(str), st.integers(0, 32))
)
access = st.lists(st.builds(AccessRule, st.sampled_from(Verb), patterns), max_size=4).map(tuple)

rates = st.just(Rate()) | st.builds(
    Rate, st.integers(1, 1_000_000), st.sampled_from([1, 60, 3600]), st.integers(0, 1_000_000)
)
shared = {
    "engine": st.sampled_from(EngineChoice),
    "relay": st.sampled_from(RelayMode),
    "buffer_bytes": sizes,
    "pipe_bytes": sizes,
    "listen_backlog": st.integers(1, BACKLOG_MAX),
    "connect_timeout_s": times,
    "idle_timeout_s": times,
    "half_close_timeout_s": times,
    "write_stall_timeout_s": times,
    "max_lifetime_s": times,
    "dns_refresh_s": times,
    "keepalive": keepalives,
    "on_deny": st.sampled_from(OnDeny),
    "accept_proxy": st.sampled_from(AcceptProxy),
    "proxy_timeout_s": times,
    "peek_timeout_s": times,
    "send_proxy": st.sampled_from([SendProxy.OFF, SendProxy.V2]),
    "send_proxy_udp": st.sampled_from(SendProxyUdp),
    "proxy_tlv": st.sets(st.sampled_from(ProxyTlv)).map(lambda said: tuple(tlv for tlv in ProxyTlv if tlv in said)),
    "rate": rates,
    "rate_per_source": rates,
    "bandwidth_bytes": st.just(0) | sizes,
    "bandwidth_per_source_bytes": st.just(0) | sizes,
    "bandwidth_per_rule_bytes": st.just(0) | sizes,
}
users = st.from_regex(r"[a-z0-9_][-a-z0-9_.]{0,31}", fullmatch=True)
unix_sockets = st.from_regex(r"unix:(/|@)[a-z]{1,20}/[-a-z0-9@=,:._]{2,60}[a-z]", fullmatch=True)
server_names = st.from_regex(r"(\*\.)?[a-z0-9_]{1,8}\.[a-z]{2,4}", fullmatch=True)
rule_options = st.fixed_dictionaries(
    {},
    optional={
        **shared,
        "unix_mode": st.integers(0, 0o777),
        "unix_owner": users | users.map(lambda user: f"{user}:33") | st.just(":www-data"),
        "peer_user": users,
        "sni": st.lists(server_names, min_size=1, max_size=3, unique=True).map(tuple),
        "alpn": st.lists(st.from_regex(r"[a-z0-9/.-]{1,9}", fullmatch=True), min_size=1, max_size=3, unique=True).map(
            tuple
        ),
        "freebind": st.booleans(),
        "transparent": st.booleans(),
        "interface": st.from_regex(r"[a-z][a-z0-9.-]{0,14}", fullmatch=True),
        "defer_accept_s": times,
        "out_interface": st.from_regex(r"[a-z][a-z0-9.-]{0,14}", fullmatch=True),
        "mark": st.integers(0, 0xFFFFFFFF),
        "dscp": st.integers(0, 63),
        "fastopen": st.booleans(),
        "mptcp": st.booleans(),
        "congestion": st.sampled_from(["bbr", "cubic"]),
        "name": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
        "source": ipv4 | scoped | names,
        "udp_timeout_s": times,
        "max_connections": counts,
        "max_connections_per_source": counts,
    },
).map(lambda said: RuleOptions(**said))


protocols = st.sampled_from(Protocol)


@st.composite
def rule_sets(draw: st.DrawFn) -> tuple[Rule, ...]:
    """Rules of which no two can be in each other's way: each has ports of its own, or port 0."""
    rules = []
    for index in range(draw(st.integers(0, 5))):
        width = draw(st.just(0) | st.integers(1, PORTS_A_RULE - 1))
        first = 1 + index * PORTS_A_RULE
        if width == 0 and draw(st.booleans()):
            first = 0
        to = draw(st.integers(1, 65535 - width))
        bind = Endpoint(draw(hosts), first, draw(protocols), last_port=first + width)
        connect = Endpoint(draw(hosts), to, draw(protocols), last_port=to + width)
        if width == 0:
            bind = draw(st.just(bind) | unix_sockets.map(lambda host, nth=index: Endpoint(f"{host}{nth}", 0)))
            connect = draw(st.just(connect) | unix_sockets.map(lambda host: Endpoint(host, 0)))
        rules.append(Rule(bind, connect, fitting(draw(rule_options), bind, connect), draw(access)))
    return tuple(rules)


def fitting(options: RuleOptions, bind: Endpoint, connect: Endpoint) -> RuleOptions:
    """The options without those that only a unix socket, or only TCP, may have."""
    unfit = [] if bind.host.startswith("unix:/") else ["unix_mode", "unix_owner"]
    unfit += ["freebind", "interface", "defer_accept_s", "transparent"] if bind.is_unix else []
    unfit += ["out_interface", "mark", "dscp"] if connect.is_unix else ["peer_user"]
    unfit += ["fastopen", "mptcp", "congestion"] if bind.is_unix and connect.is_unix else []
    unfit += ["transparent"] if bind.protocol is Protocol.UDP else []
    unfit += ["accept_proxy"] if bind.protocol is Protocol.UDP else []
    unfit += ["sni", "alpn"] if Protocol.UDP in (bind.protocol, connect.protocol) else []
    unfit += ["send_proxy", "proxy_tlv"] if bind.protocol is not connect.protocol else []
    unfit += ["send_proxy_udp"] if Protocol.TCP in (bind.protocol, connect.protocol) else []
    options = dataclasses.replace(options, **dict.fromkeys(unfit))
    sends = options.proxy_tlv or options.send_proxy_udp
    return dataclasses.replace(options, send_proxy=SendProxy.V2) if sends else options


admins = st.builds(
    AdminSettings,
    st.lists(
        st.builds(
            AdminSocket,
            st.just("") | st.from_regex(r"/[a-zA-Z0-9_./-]{1,40}", fullmatch=True),
            st.integers(0, 0o777),
            st.from_regex(r"([a-z0-9]{1,8}(:[a-z0-9]{1,8})?)?", fullmatch=True),
        ),
        max_size=3,
        unique_by=lambda each: each.path,
    ).map(tuple),
    st.lists(
        st.builds(AdminAddress, st.sampled_from(["127.0.0.1", "::1", "[::1]"]), st.integers(0, 65535), st.booleans())
        | st.builds(AdminAddress, hosts, st.integers(0, 65535), st.just(False), st.just(True)),
        max_size=3,
        unique=True,
    ).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    st.just("") | file_names,
)

configs = st.builds(
    Config,
    rules=rule_sets(),
    access=access.map(lambda rules: (AccessRule(Verb.TRUST, "*"), *rules)),
    settings=st.builds(Settings, **shared),
    threads=st.integers(0, THREADS_MAX),
    busy_poll_us=st.integers(-1, BUSY_POLL_US_MAX),
    max_connections=counts,
    max_connections_per_source=counts,
    source_prefix=st.builds(SourcePrefix, st.integers(0, 32), st.integers(0, 128)),
    max_udp_sessions=counts,
    drain_timeout_s=times,
    upgrade_timeout_s=times,
    watch=st.booleans(),
    log=st.builds(LogSettings, st.just("") | file_names, st.sampled_from(LogFormat)),
    pid_file=st.just("") | file_names,
    admin=admins,
)


@settings(deadline=None)
@given(configs)
def test_what_is_written_reads_back_equal(config: Config) -> None:
    text = render_config(config)
    assert parse_config(text) == config
    assert render_config(parse_config(text)) == text


def test_every_setting_is_written() -> None:
    written = {line.split()[0] for line in render_config(Config()).splitlines() if line and line[0] != "#"}
    silent = {"include", "allow", "deny", "trust", "logcommon", "logfile", "pidlogfile", "upstream"}
    silent |= {"admin-host", "admin-token-file", "metrics"}
    assert written == set(DIRECTIVES) - silent


@pytest.mark.parametrize(
    "config",
    [
        Config(log=LogSettings("/var/log/a\nb")),
        Config(log=LogSettings('/var/log/a "b"')),
        Config(rules=(Rule(Endpoint("a b", 80), Endpoint("h", 80)),)),
        Config(rules=(Rule(Endpoint("", 80), Endpoint("h", 80)),)),
        Config(access=(AccessRule(Verb.ALLOW, "1.* # x"),)),
    ],
)
def test_what_cannot_be_said_is_not_written(config: Config) -> None:
    with pytest.raises(ValueError, match="configuration"):
        render_config(config)


def test_table_and_model_name_the_same_things() -> None:
    of_settings = {f"settings.{item.name}" for item in dataclasses.fields(Settings)}
    of_config = {item.name for item in dataclasses.fields(Config)} - {
        "rules",
        "access",
        "settings",
        "log",
        "upstreams",
        "admin",
        "warnings",
        "sources",
    }
    assert {entry.setting for entry in DIRECTIVES.values() if entry.setting} == (
        of_settings | of_config | {"log.file", "log.format", "admin.token_file"}
    )
    assert {entry.option for entry in OPTIONS.values()} == {item.name for item in dataclasses.fields(RuleOptions)}
    assert {entry.group for entry in GROUP_OPTIONS.values()} == {item.name for item in dataclasses.fields(GroupOptions)}
    of_servers = {item.name for item in dataclasses.fields(Server)} - {"endpoint", "origin"}
    assert {entry.server for entry in SERVER_OPTIONS.values()} == of_servers


SEEDS = [
    "unix:/run/a.sock unix:@b [mode=660, owner=a:b, peer-uid=33]\n0.0.0.0 80 unix:/run/c\nunix:@d ::1 80\n",
    "# comment\n0.0.0.0 80 192.0.2.1 8080\nallow 10.*\ndeny 10.0.0.0/8\n",
    '[::1] 8000-8010/tcp fe80::1%eth0 http-8010 [src=[::1], timeout = 3]#x\nlogfile "/a b"\n',
    "logcommon\nlogformat json\npidlogfile /run/x\nkeepalive 60:10:6\nbuffersize 64K\nidle-timeout 1.5h\n",
    ":: 80 example.org. 80 [relay=splice, max-connections=5]\r\n\ufeffthreads auto\r\nbusy-poll 50\r\ninclude x*\r\n",
    "admin auto [mode=660, owner=root:adm]\nadmin 127.0.0.1 9080 [page]\nmetrics ::1 9469\nadmin-host a.example\n",
]
ALPHABET = "0123456789abcdefx.:[]%/-_#\"'=,*? \t\n\r\0\x0b\x1b\ufeff\udcff\u00a0ü٣KMGsmh"


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """A sound configuration after a few cuts, insertions, repetitions and exchanges."""
    text = "".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 12))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.text(ALPHABET, max_size=4) | st.just(text[start:end] * 2) | st.sampled_from(sorted(DIRECTIVES)))
        text = text[:start] + piece + text[end:]
    return text


@settings(deadline=None, max_examples=400)
@given(mutants() | st.text(ALPHABET, max_size=60) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        config = parse_config(text)
    except ConfigError as error:
        str(error).encode()
        lines = text.removeprefix("\ufeff").split("\n")
        for problem in error.problems:
            line = lines[problem.line - 1]
            assert 1 <= problem.column <= len(line) + 1
            assert problem.column - 1 + problem.width <= len(line) + 1
            assert problem.message
    else:
        assert parse_config(render_config(config)) == config
