"""The language of groups of servers: what it means, what is written, and what an operator reads after a mistake."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd.bounds import SERVERS_MAX, UPSTREAMS_MAX
from oinetd.config import load_config, parse_config, render_config
from oinetd.config.server_file import parse_servers
from oinetd.config.vocabulary import GROUP_OPTIONS, SERVER_OPTIONS
from oinetd.errors import ConfigError
from oinetd.model import Config, Endpoint, Protocol, Rule, RuleOptions, SendProxy
from oinetd.servers import (
    AllDown,
    Balance,
    Check,
    GroupOptions,
    OnDown,
    Passive,
    Resolve,
    Server,
    StatusRange,
    Upstream,
)

EVERYTHING = r"""
0.0.0.0 80   @web       [max-connections=2000]
upstream web 10.0.0.7 8080 [weight=3]              # the first line makes the group
upstream web [::1] 8080[max-connections=5,src=10.0.0.1,check-port=81,connect-timeout=2s,send-proxy]
upstream web app.example.org 8080 [backup]
upstream web [balance=source, check=http, check-path=/healthz, check-interval=2s]
0.0.0.0 5432 10.0.0.5,[::1],::2 5432 [balance=first, src=10.0.0.9]
upstream dns 10.0.0.5 53/udp
0.0.0.0 53/udp @dns
upstream many _http._tcp.example.org [resolve=srv]
upstream many file:/run/web.servers [weight=2]
upstream many unix:/run/app.sock [backup]
0.0.0.0 81 @many
upstream range 10.0.0.1 9000-9009
0.0.0.0 8000-8009 @range
"""


def test_what_the_lines_mean() -> None:
    config = parse_config(EVERYTHING)
    web = Upstream(
        "web",
        (
            Server(Endpoint("10.0.0.7", 8080), weight=3),
            Server(
                Endpoint("[::1]", 8080),
                max_connections=5,
                source="10.0.0.1",
                check_port=81,
                connect_timeout_s=2.0,
                send_proxy=SendProxy.V2,
            ),
            Server(Endpoint("app.example.org", 8080), backup=True),
        ),
        GroupOptions(balance=Balance.SOURCE, check=Check.HTTP, check_path="/healthz"),
    )
    assert config.upstreams[0] == web
    assert config.rules[0] == Rule.to(Endpoint("0.0.0.0", 80), web, RuleOptions(max_connections=2000))
    assert [server.name for server in web.servers] == ["10.0.0.7:8080", "[::1]:8080", "app.example.org:8080"]
    unnamed = config.rules[1]
    assert unnamed.connect == Endpoint("10.0.0.5,[::1],::2", 5432)
    assert unnamed.upstream == Upstream(
        "",
        tuple(Server(Endpoint(host, 5432)) for host in ("10.0.0.5", "[::1]", "::2")),
        GroupOptions(balance=Balance.FIRST),
    )
    assert unnamed.options.source == "10.0.0.9"
    assert config.rules[2].connect == Endpoint("@dns", 0, Protocol.UDP)
    srv, file, unix = config.upstreams[2].servers
    assert (srv.name, srv.resolve, srv.is_address) == ("_http._tcp.example.org", Resolve.SRV, False)
    assert (unix.name, unix.is_address, unix.backup) == ("unix:/run/app.sock", True, True)
    assert (file.name, file.is_file, file.weight) == ("file:/run/web.servers", True, 2)


def test_the_routes_of_a_range() -> None:
    rule = parse_config(EVERYTHING).rules[4]
    routes = list(rule.routes())
    assert [(route.bind.port, route.offset) for route in routes] == [(8000 + at, at) for at in range(10)]
    assert {str(route.connect) for route in routes} == {"@range"}


def test_every_option_of_a_group() -> None:
    config = parse_config(
        "0.0.0.0 80 @g\nupstream g 10.0.0.1 80\n"
        "upstream g [balance=random, check=send, check-method=HEAD, check-host=example.org, check-status=200-299+404,"
        r' check-send="PING \"x\"\r\n\t\\\x00 # ] , ;", check-expect=+PONG, check-timeout=250ms, check-rise=1,'
        " check-fall=9, check-fast=0.1s, check-down=1m, check-port=99, passive=5/1m, on-down=reset, slow-start=30s,"
        " drain-spread=10s, all-down=refuse, all-backups, resolve=each, allow-special=on, src=::1]\n"
    )
    assert config.upstreams[0].options == GroupOptions(
        balance=Balance.RANDOM, check=Check.SEND, check_method="HEAD", check_host="example.org",
        check_status=(StatusRange(200, 299), StatusRange(404, 404)),
        check_send=b'PING "x"\r\n\t\\\0 # ] , ;', check_expect=b"+PONG", check_timeout_s=0.25, check_rise=1,
        check_fall=9, check_fast_s=0.1, check_down_s=60.0, check_port=99, passive=Passive(5, 60.0),
        on_down=OnDown.RESET, slow_start_s=30.0, drain_spread_s=10.0, all_down=AllDown.REFUSE, all_backups=True,
        resolve=Resolve.EACH,
        allow_special=True, source="::1",
    )  # fmt: skip


def test_one_host_and_an_option_of_a_group_are_a_group() -> None:
    (rule,) = parse_config("0.0.0.0 80 app.example.org 80 [check=tcp]").rules
    assert rule.upstream is not None
    assert [server.name for server in rule.upstream.servers] == ["app.example.org:80"]
    assert parse_config("0.0.0.0 80 app.example.org 80").rules[0].upstream is None


def test_the_protocol_of_srv_records_is_in_their_name() -> None:
    config = parse_config("0 53/udp @dns\nupstream dns _dns._udp.example.org [resolve=srv]\n")
    assert config.rules[0].connect.protocol is Protocol.UDP
    assert parse_config(render_config(config)) == config


def test_a_file_of_servers_is_for_one_protocol() -> None:
    config = parse_config("0 53/udp @dns\nupstream dns file:/run/dns.servers /udp [weight=2]\n")
    assert config.rules[0].connect.protocol is Protocol.UDP
    assert parse_config(render_config(config)) == config
    (server,) = parse_servers("10.0.0.1 53/udp\n", "x", Protocol.UDP)
    assert server.endpoint == Endpoint("10.0.0.1", 53, Protocol.UDP)
    for text, protocol, message, hint in (
        ("10.0.0.1 53/udp\n", Protocol.TCP, "over TCP, and this one over UDP", "file:x /udp"),
        ("10.0.0.1 53\n", Protocol.UDP, "over UDP, and this one over TCP", "write 53/udp"),
        ("unix:/run/x\n", Protocol.UDP, "over UDP, and this one over TCP", "unix sockets"),
        ("10.0.0.1 53/udp [send-proxy=v1]\n", Protocol.UDP, "send-proxy=v1 is for TCP", "send-proxy=v2"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            parse_servers(text, "x", protocol)
        (problem,) = caught.value.problems
        assert hint in problem.hint
        assert (problem.line, problem.column) == (1, 1)
    with pytest.raises(ConfigError, match="unexpected '53/udp' after the server") as caught:
        parse_config("0 53/udp @dns\nupstream dns file:/run/dns.servers 53/udp\n")
    assert "/udp says that it is for UDP" in caught.value.problems[0].hint


def test_passive_off() -> None:
    (rule,) = parse_config("0.0.0.0 80 a,b 80 [passive=off]").rules
    assert rule.upstream is not None
    assert rule.upstream.options.passive == Passive(0, 0.0)


def test_lines_of_a_group_in_an_included_file(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "more.conf").write_text("upstream web 10.0.0.2 80\nupstream web [balance=first]\n")
    (folder / "main.conf").write_text("0.0.0.0 80 @web\nupstream web 10.0.0.1 80\ninclude more.conf\n")
    (web,) = load_config(folder / "main.conf").upstreams
    assert [server.name for server in web.servers] == ["10.0.0.1:80", "10.0.0.2:80"]
    assert web.options.balance is Balance.FIRST
    assert web.servers[1].origin.file.endswith("more.conf")


MISTAKES = {
    "no-name": ("upstream", "2:9: the name of the group is missing"),
    "no-server": ("upstream web", "2:13: a server or options of the group are missing"),
    "bad-name": ("upstream we/b 10.0.0.1 80", "2:10: 'we/b' is not a valid name of a group"),
    "long-name": (f"upstream {'a' * 65} 10.0.0.1 80", "2:10: the name has 65 characters; the limit is 64"),
    "no-port": ("upstream web 10.0.0.1", "2:22: the port of the server is missing"),
    "port-in-one": ("upstream web 10.0.0.1:80", "2:14: '10.0.0.1:80' is an address and a port in one word"),
    "port-0": ("upstream web 10.0.0.1 0", "2:23: port 0 cannot be a destination"),
    "too-many": ("upstream web 10.0.0.1 80 81", "2:26: unexpected '81' after the server"),
    "srv-with-port": ("upstream web _a._tcp.b.c 80 [resolve=srv]", "2:26: unexpected '80' after the server"),
    "file-not-absolute": ("upstream web file:web", "2:14: the path of the file is not absolute"),
    "group-option-of-server": (
        "upstream web 10.0.0.1 80 [check=tcp]",
        "2:27: 'check' is an option of a group, not of a server",
    ),
    "server-option-of-group": ("upstream web [weight=3]", "2:15: 'weight' is an option of a server, not of a group"),
    "group-option-beside-a-group": (
        "0.0.0.0 80 @ok [check=tcp]",
        "2:17: 'check' is an option of a group, not of a rule",
    ),
    "server-option-of-rule": ("0.0.0.0 80 a,b 80 [backup]", "2:20: 'backup' is an option of a server, not of a rule"),
    "rule-option-of-server": (
        "upstream web 10.0.0.1 80 [relay=copy]",
        "2:27: 'relay' is an option of a rule, not of a server",
    ),
    "unknown-option": ("upstream web [balanse=first]", "2:15: unknown option 'balanse'"),
    "unknown-value": ("upstream web [balance=leastcon]", "2:23: 'leastcon' is not one of leastconn"),
    "needs-a-value": ("upstream web [balance]", "2:15: balance needs a value"),
    "switch": ("upstream web [all-backups=yes]", "2:27: 'yes' is not one of on, off"),
    "weight": ("upstream web 10.0.0.1 80 [weight=257]", "2:34: '257' is out of range"),
    "interval-off": ("upstream web [check-interval=off]", "2:30: 'off' is not a valid time"),
    "interval-0": ("upstream web [check-interval=0]", "2:30: '0' is not a valid time"),
    "passive": ("upstream web [passive=3]", "2:23: '3' is not a limit of failures"),
    "passive-0": ("upstream web [passive=0/3s]", "2:23: '0' is out of range"),
    "passive-time": ("upstream web [passive=3/x]", "2:25: 'x' is not a valid time"),
    "status": ("upstream web [check-status=200+299-2]", "2:32: '299-2' is not a status code or a range of them"),
    "path-lf": (r'upstream web [check-path="/a\nb"]', "2:26: the path of a check cannot have a LF"),
    "path-nul": (r'upstream web [check-path="/a\x00"]', "2:26: the path of a check cannot have a NUL"),
    "path-blank": ('upstream web [check-path="/a b"]', "2:26: the path of a check cannot have a blank"),
    "path-relative": ("upstream web [check-path=a]", "2:26: 'a' is not a path"),
    "method-cr": (r'upstream web [check-method="GET\r"]', "2:28: the method of a check cannot have a CR"),
    "method": ("upstream web [check-method=G:T]", "2:28: 'G:T' is not a method"),
    "host-cr": (r'upstream web [check-host="a\r\nb"]', "2:26: the text of a check cannot have a CR"),
    "host-control": (r'upstream web [check-host="a\x1b"]', "2:26: the text of a check has characters other than"),
    "escape": (r'upstream web [check-send="a\q"]', r"2:28: unknown escape '\q'"),
    "escape-x": (r'upstream web [check-send="\x1"]', r"2:27: unknown escape '\x'"),
    "open-quote": ('upstream web [check-send="abc]', "2:26: the closing quote is missing"),
    "after-quote": ('upstream web [check-send="a"b]', "2:29: unexpected 'b' after the option's value"),
    "long-text": (f"upstream web [check-send={'a' * 257}]", "2:26: a text of 257 bytes; the limit is 256"),
    "no-group": ("0.0.0.0 80 @webb", "2:12: there is no group 'webb'"),
    "group-with-port": ("0.0.0.0 80 @ok 80", "2:16: unexpected '80' after the group"),
    "group-without-bind-port": ("0.0.0.0 @ok", "2:9: the bind port is missing before the group"),
    "group-alone": ("@ok", "2:1: '@ok' is neither a directive nor the beginning of a rule"),
    "range": ("0.0.0.0 90-91 @ok", "2:15: 2 ports to listen on, 1 port of the server 10.0.0.1:80"),
    "empty-host": ("0.0.0.0 80 a,,b 80", "2:14: a host is missing before or after the comma"),
    "bad-host": ("0.0.0.0 80 a,10.0.0.256 80", "2:21: '10.0.0.256' is not a valid IPv4 address"),
    "host-twice": ("0.0.0.0 80 a,b,A 80", "2:16: the server A:80 is named twice"),
    "group-of-nobody": ("upstream e [balance=first]", "2:10: the group 'e' has no server"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_its_place(name: str) -> None:
    line, wanted = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        parse_config(f"upstream ok 10.0.0.1 80\n{line}\n0.0.0.0 8080 @ok\n", "x")
    assert str(caught.value).startswith(f"x:{wanted}")


def test_what_is_wrong_with_a_group_as_a_whole_names_the_other_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "upstream web 10.0.0.1 80\n0.0.0.0 80 @web\nupstream web 10.0.0.1 80\nupstream web 10.0.0.2 80/udp", "x"
        )
    assert (
        str(caught.value)
        == """\
x:3:14: the server 10.0.0.1:80 is in the group web twice, also at x:1
    upstream web 10.0.0.1 80
                 ^^^^^^^^^^^
x:4:14: udp and tcp in one group
    upstream web 10.0.0.2 80/udp
                 ^^^^^^^^^^^^^^^
    hint: the server at x:1 decides; write another group"""
    )


def test_a_misspelled_group_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'web'"):
        parse_config("upstream web 10.0.0.1 80\n0.0.0.0 80 @wbe")


def test_a_group_that_nobody_uses_is_a_warning() -> None:
    config = parse_config("upstream web 10.0.0.1 80\n0.0.0.0 80 a 80\n", "x")
    assert [str(warning).splitlines()[0] for warning in config.warnings] == [
        "x:1:10: no rule uses the group 'web': its servers are neither used nor checked"
    ]
    assert not parse_config("upstream web 10.0.0.1 80\n0.0.0.0 80 @web\n").warnings


def test_a_server_that_is_the_listener_of_the_rule_is_a_warning() -> None:
    config = parse_config("upstream web 10.0.0.1 80\nupstream web 127.0.0.1 8080\n127.0.0.1 8080 @web\n")
    assert "is the rule's own listener" in str(config.warnings[0])


def test_limits() -> None:
    servers = "\n".join(f"upstream web 10.0.{at // 256}.{at % 256} 80" for at in range(SERVERS_MAX + 1))
    with pytest.raises(ConfigError, match=f"more than {SERVERS_MAX} servers"):
        parse_config(f"0.0.0.0 80 @web\n{servers}")
    groups = "\n".join(f"upstream g{at} 10.0.0.1 80" for at in range(UPSTREAMS_MAX + 1))
    with pytest.raises(ConfigError, match=f"more than {UPSTREAMS_MAX} groups"):
        parse_config(groups)


def test_values_of_a_program_are_checked() -> None:
    server = Server(Endpoint("10.0.0.1", 80))
    with pytest.raises(ValueError, match="twice"):
        Upstream("web", (server, server))
    with pytest.raises(ValueError, match="weight is 300"):
        Server(Endpoint("10.0.0.1", 80), weight=300)
    with pytest.raises(ValueError, match="two protocols"):
        Upstream("web", (server, Server(Endpoint("10.0.0.1", 81, Protocol.UDP))))
    with pytest.raises(TypeError, match="not of type Server"):
        Upstream("web", ("10.0.0.1",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no server"):
        Rule.to(Endpoint("0.0.0.0", 80), Upstream("web"))
    other = Upstream("web", (Server(Endpoint("10.0.0.2", 80)),))
    with pytest.raises(ValueError, match="two upstreams have the name web"):
        Config(
            rules=(
                Rule.to(Endpoint("0.0.0.0", 80), Upstream("web", (server,))),
                Rule.to(Endpoint("0.0.0.0", 81), other),
            )
        )
    with pytest.raises(ValueError, match="check_interval_s is 0"):
        GroupOptions(check_interval_s=0)


def test_the_groups_of_rules_belong_to_the_configuration() -> None:
    web = Upstream("web", (Server(Endpoint("10.0.0.1", 80)),))
    assert Config(rules=(Rule.to(Endpoint("0.0.0.0", 80), web),)).upstreams == (web,)


# Written and read again

times = st.sampled_from([0.001, 0.25, 1.0, 1.5, 90.0, 3600.0])
texts = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=""), min_size=1, max_size=20)
group_options = st.builds(
    GroupOptions,
    balance=st.sampled_from(Balance),
    check=st.sampled_from(Check),
    check_method=st.sampled_from(["GET", "HEAD", "X-!"]),
    check_path=texts.map(lambda text: f"/{text}"),
    check_host=st.just("") | texts,
    check_status=st.lists(st.sampled_from([StatusRange(200, 299), StatusRange(404, 404)]), min_size=1).map(tuple),
    check_send=st.binary(max_size=64),
    check_expect=st.binary(max_size=64),
    check_interval_s=times,
    check_timeout_s=times,
    check_rise=st.integers(1, 9),
    check_fall=st.integers(1, 9),
    check_fast_s=times,
    check_down_s=times,
    check_port=st.integers(0, 65535),
    passive=st.just(Passive(0, 0.0)) | st.builds(Passive, st.integers(1, 9), times),
    on_down=st.sampled_from(OnDown),
    slow_start_s=st.just(0.0) | times,
    drain_spread_s=st.just(0.0) | times,
    all_down=st.sampled_from(AllDown),
    all_backups=st.booleans(),
    resolve=st.sampled_from([Resolve.ONE, Resolve.EACH]),
    allow_special=st.booleans(),
)


@st.composite
def upstreams(draw: st.DrawFn, name: str) -> Upstream:
    servers = []
    for at in range(draw(st.integers(1, 4))):
        where = draw(
            st.sampled_from(
                [f"10.0.0.{at}", f"[2001:db8::{at}]", f"host{at}.example", f"_a{at}._tcp.x", f"file:/a{at}"]
            )
        )
        port = 0 if where[0] in "_f" else draw(st.integers(1, 65535))
        servers.append(
            Server(
                Endpoint(where, port),
                draw(st.integers(0, 256)),
                draw(st.booleans()),
                draw(st.integers(0, 9)),
                draw(st.none() | st.just("10.9.9.9")),
                draw(st.none() | st.integers(1, 65535)),
                draw(st.none() | times),
                Resolve.SRV if where[0] == "_" else draw(st.none() | st.sampled_from([Resolve.ONE, Resolve.EACH])),
                draw(st.none() | st.sampled_from(SendProxy)),
            )
        )
    return Upstream(name, tuple(servers), draw(group_options))


@settings(deadline=None)
@given(
    upstreams("web"),
    group_options,
    st.lists(st.sampled_from(["a.b", "::1", "[::2]", "10.0.0.1"]), min_size=1, unique=True),
)
def test_what_is_written_reads_back_equal(web: Upstream, options: GroupOptions, hosts: list[str]) -> None:
    unnamed = Upstream("", tuple(Server(Endpoint(host, 80)) for host in hosts), options)
    config = Config(
        rules=(
            Rule(Endpoint("0.0.0.0", 81), Endpoint(",".join(hosts), 80), upstream=unnamed),
            Rule.to(Endpoint("0.0.0.0", 80), web),
        )
    )
    text = render_config(config)
    assert parse_config(text) == config
    assert render_config(parse_config(text)) == text


def test_every_option_is_written() -> None:
    web = parse_config(EVERYTHING).upstreams[0]
    text = render_config(Config(rules=(Rule.to(Endpoint("0.0.0.0", 80), web),)))
    group_line = next(line for line in text.splitlines() if line.startswith("upstream web ["))
    silent = {"check-host", "check-send", "check-expect", "check-port", "src"}  # empty by default
    assert {name for name in GROUP_OPTIONS if f"{name}=" in group_line} >= set(GROUP_OPTIONS) - silent
    assert all(f"{name}=" in text for name in SERVER_OPTIONS if name not in ("resolve",))


def test_what_cannot_be_said_is_not_written() -> None:
    unnamed = Upstream("", (Server(Endpoint("a", 80), weight=2), Server(Endpoint("b", 80))))
    with pytest.raises(ValueError, match="configuration"):
        render_config(Config(rules=(Rule(Endpoint("0.0.0.0", 81), Endpoint("a,b", 80), upstream=unnamed),)))


ALPHABET = '@,[]=" \\x0rn#.:/-_0123456789abcdefupstreamwebcheck\t'


@settings(deadline=None, max_examples=300)
@given(
    st.text(ALPHABET, max_size=60),
    st.sampled_from(["upstream ", "upstream web [", "0 80 @", "0 80 ", 'upstream w [check-send="']),
)
def test_any_line_is_read_or_refused(text: str, begin: str) -> None:
    try:
        config = parse_config(begin + text + "\n")
    except ConfigError as error:
        for problem in error.problems:
            assert problem.message
            assert 1 <= problem.column <= len(begin + text) + 1
    else:
        assert parse_config(render_config(config)) == config


@settings(deadline=None, max_examples=200)
@given(st.text(ALPHABET + "\n", max_size=80))
def test_any_file_of_servers_is_read_or_refused(text: str) -> None:
    try:
        servers = parse_servers(text, "/run/web.servers")
    except ConfigError as error:
        for problem in error.problems:
            assert problem.message
            assert problem.line
    else:
        assert len({server.name.lower() for server in servers}) == len(servers)


def test_a_group_is_not_missed_where_its_lines_have_the_mistakes() -> None:
    text = "0.0.0.0 80 @web\n0.0.0.0 81 @wbe\nupstream web 10.0.0.1 80 [wieght=3]\nupstream web [check=tcp]\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert [(problem.line, problem.hint) for problem in caught.value.problems] == [
        (2, "did you mean 'web'?"),
        (3, "did you mean 'weight'?"),
    ]
