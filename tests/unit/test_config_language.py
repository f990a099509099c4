"""The language, point by point. The points, M as rinetd does it and D where oinetd is deliberately better:

M1  words are separated by blanks and tabs       M11 src= and timeout=; a timeout of 0 is 72 seconds
M2  blanks around lines, empty lines             M12 an option that is named twice: the last holds
M3  CRLF                                         M13 allow and deny: *, ? and what else a pattern may have
M4  # begins a comment, also glued to a word     M14 before the first rule global, after a rule its own, all count
M5  keywords are case-sensitive                  M15 logfile: the last one holds, quotes are taken off
M6  addresses: dotted quad, 0, IPv6, name        M16 logcommon
M7  ports: numbers and services                  M17 pidlogfile
M8  port 0 on the bind side                      M18 inside the name of a file, # belongs to the name
M9  /tcp and /udp on each side, tcp where none   M19 a file without a rule is a configuration
M10 one block of options, blanks and commas

D1  the last line counts without a newline       D9  0.0.0.0 and :: side by side
D2  a byte order mark is skipped                 D10 networks in allow and deny
D3  every mistake is found before anything       D11 logformat
D4  IPv6 in brackets, with a scope               D12 oinetd's own directives
D5  a trailing dot                               D13 those of one rule are its options too
D6  names that begin with digits                 D14 sizes take K, M and G
D7  ports outside 0-65535 are errors             D15 times take s, m and h; off and 0 switch off
D8  ranges of equal length                       D16 the defaults
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from oinetd.config import parse_config, parse_rule
from oinetd.errors import ConfigError
from oinetd.model import (
    NO_OPTIONS,
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
    RelayMode,
    Rule,
    RuleOptions,
    SendProxy,
    SendProxyUdp,
    Settings,
    SourcePrefix,
    Verb,
)

RULE = Rule(Endpoint("0.0.0.0", 80), Endpoint("192.0.2.1", 8080))
LINE = "0.0.0.0 80 192.0.2.1 8080"


def rules(*expected: Rule) -> Callable[[Config], bool]:
    return lambda config: config.rules == expected


def options(**said: object) -> Callable[[Config], bool]:
    return lambda config: config.rules[0].options == RuleOptions(**said)


def bind(host: str, port: int = 80, last: int = -1) -> Callable[[Config], bool]:
    return lambda config: config.rules[0].bind == Endpoint(host, port, Protocol.TCP, last)


def connect(host: str, port: int = 8080, last: int = -1) -> Callable[[Config], bool]:
    return lambda config: config.rules[0].connect == Endpoint(host, port, Protocol.TCP, last)


def access(*said: str) -> Callable[[Config], bool]:
    return lambda config: [str(rule) for rule in config.access] == list(said)


def settings(**said: object) -> Callable[[Config], bool]:
    return lambda config: config.settings == Settings(**said)


def log(file: str = "", form: LogFormat = LogFormat.RINETD) -> Callable[[Config], bool]:
    return lambda config: config.log == LogSettings(file, form)


def whole(**said: object) -> Callable[[Config], bool]:
    return lambda config: config == Config(**said)


ACCEPTED: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "M1-blanks": ("0.0.0.0   80  192.0.2.1      8080\n", rules(RULE)),
    "M1-tabs": ("0.0.0.0\t80\t\t192.0.2.1 \t 8080\n", rules(RULE)),
    "M2-leading-and-trailing": (f"  \t{LINE} \t \n", rules(RULE)),
    "M2-empty-lines": (f"\n \n\t\n{LINE}\n\n", rules(RULE)),
    "M3-crlf": (f"# x\r\n{LINE}\r\n\r\n", rules(RULE)),
    "M3-crlf-after-blanks": (f"{LINE} \r\nlogcommon\r\n", rules(RULE)),
    "M4-comment-line": (f"# {LINE}\n   # {LINE}\n{LINE}\n", rules(RULE)),
    "M4-comment-behind": (f"{LINE} # x\n", rules(RULE)),
    "M4-comment-glued": (f"{LINE}#x\n", rules(RULE)),
    "M4-comment-glued-to-options": (f"{LINE} [timeout=3]#[x\n", options(udp_timeout_s=3.0)),
    "M4-comment-glued-to-keyword": ("logcommon#x\n", log(form=LogFormat.COMMON)),
    "M4-comment-glued-to-pattern": ("allow 10.*#x\n", access("allow 10.*")),
    "M4-comment-only-sign": ("#\n", whole()),
    "M6-dotted-quad": ("127.0.0.1 80 192.0.2.1 8080\n", bind("127.0.0.1")),
    "M6-bare-0": ("0 80 192.0.2.1 8080\n", bind("0")),
    "M6-ipv6": ("2001:db8::1 80 192.0.2.1 8080\n", bind("2001:db8::1")),
    "M6-ipv6-any": (":: 80 192.0.2.1 8080\n", bind("::")),
    "M6-ipv6-mapped": ("::ffff:127.0.0.1 80 192.0.2.1 8080\n", bind("::ffff:127.0.0.1")),
    "M6-name": ("localhost 80 Www.Example-1.org 8080\n", connect("Www.Example-1.org")),
    "M6-name-underscore": ("localhost 80 my_host.x 8080\n", connect("my_host.x")),
    "M6-connect-to-0": ("localhost 80 0 8080\n", connect("0")),
    "M7-service": (
        "0 http 192.0.2.1 http-alt\n",
        lambda c: (c.rules[0].bind.port, c.rules[0].connect.port) == (80, 8080),
    ),
    "M7-leading-zeros": ("0 00080 192.0.2.1 08080\n", bind("0")),
    "M8-port-0": ("127.0.0.1 0 192.0.2.1 8080\n", bind("127.0.0.1", 0)),
    "M8-port-0-twice": ("0 0 h 1\n0 0 h 1\n127.0.0.1 0 h 1\n", lambda c: len(c.rules) == 3),
    "M9-tcp": ("0.0.0.0 80/tcp 192.0.2.1 8080/tcp\n", rules(RULE)),
    "M9-tcp-on-one-side": ("0.0.0.0 http/tcp 192.0.2.1 8080\n", rules(RULE)),
    "M9-udp": ("0 53/udp 192.0.2.1 5353/udp\n", lambda c: str(c.rules[0]) == "0 53/udp -> 192.0.2.1 5353/udp"),
    "M9-udp-on-one-side": ("0 53/udp h 53\n0 53 h 53/udp\n", lambda c: len(c.rules) == 2),
    "M9-udp-service": ("0 tftp/udp h 69/udp [timeout=5]\n", lambda c: c.rules[0].bind.port == 69),
    "M9-udp-range": ("0 8000-8010/udp h 9000-9010/udp\n", lambda c: len(list(c.rules[0].routes())) == 11),
    "M10-options": (f"{LINE} [src=192.0.2.9,timeout=3]\n", options(source="192.0.2.9", udp_timeout_s=3.0)),
    "M10-blanks-inside": (
        f"{LINE} [ \tsrc = 192.0.2.9 , timeout=  3 ]\n",
        options(source="192.0.2.9", udp_timeout_s=3.0),
    ),
    "M10-glued-to-port": (f"{LINE}[timeout=3]\n", options(udp_timeout_s=3.0)),
    "M11-src-name": (f"{LINE} [src=localhost]\n", options(source="localhost")),
    "M11-src-ipv6": (f"{LINE} [src=2001:db8::1]\n", options(source="2001:db8::1")),
    "M11-src-brackets": (
        f"{LINE} [src=[fe80::1%eth0], timeout=3]\n",
        options(source="fe80::1%eth0", udp_timeout_s=3.0),
    ),
    "M11-timeout-0": (f"{LINE} [timeout=0]\n", options(udp_timeout_s=72.0)),
    "M11-timeout-off": (f"{LINE} [timeout=off]\n", options(udp_timeout_s=0.0)),
    "M12-last-option-holds": (f"{LINE} [timeout=3,timeout=4]\n", options(udp_timeout_s=4.0)),
    "M13-wildcards": ("allow 192.168.*.?\n", access("allow 192.168.*.?")),
    "M13-everybody": ("deny *\n", access("deny *")),
    "M13-ipv6": ("allow fe80:*\ndeny 2001:618:*:E43F\n", access("allow fe80:*", "deny 2001:618:*:E43F")),
    "M13-never-matches": (
        "allow 1.2\ndeny 300.1.1.1\nallow 1.[23].4.5\n",
        access("allow 1.2", "deny 300.1.1.1", "allow 1.[23].4.5"),
    ),
    "M14-global": (f"allow 10.*\ndeny 10.1.*\n{LINE}\n", access("allow 10.*", "deny 10.1.*")),
    "M14-own": (
        f"deny *\n{LINE}\nallow 1.*\nallow 2.*\ndeny 1.1.*\n0 81 h 81\nallow 3.*\n",
        lambda c: (
            [[str(a) for a in r.access] for r in c.rules] == [["allow 1.*", "allow 2.*", "deny 1.1.*"], ["allow 3.*"]]
        ),
    ),
    "M15-logfile": ("logfile /var/log/x.log\n", log("/var/log/x.log")),
    "M15-last-holds": ("logfile /a\nlogfile /b\n", log("/b")),
    "M15-quotes": ('logfile "/var/log/x.log"\n', log("/var/log/x.log")),
    "M15-quotes-blanks-and-sign": ('logfile "/var/log/x #1\t.log" # x\n', log("/var/log/x #1\t.log")),
    "M15-quotes-comment-glued": ('logfile "/var/log/x"#x\n', log("/var/log/x")),
    "M15-quote-inside": ("logfile /var/log/a\"b'c\n", log("/var/log/a\"b'c")),
    "M16-logcommon": ("logcommon\n", log(form=LogFormat.COMMON)),
    "M16-later-wins": ("logcommon\nlogformat json\n", log(form=LogFormat.JSON)),
    "M16-later-wins-too": ("logformat json\nlogcommon\n", log(form=LogFormat.COMMON)),
    "M17-pidlogfile": ("pidlogfile /run/x.pid\n", whole(pid_file="/run/x.pid")),
    "M18-sign-in-name": ("logfile /var/log/c#b\n", log("/var/log/c#b")),
    "M18-comment-behind-name": ("logfile /var/log/c #b\n", log("/var/log/c")),
    "M19-empty": ("", whole()),
    "M19-no-rule": ("logfile /x\n", log("/x")),
    "D1-no-newline": (f"logcommon\n{LINE}", rules(RULE)),
    "D2-byte-order-mark": (f"\ufeff{LINE}\n", rules(RULE)),
    "D2-byte-order-mark-and-comment": (f"\ufeff# x\n{LINE}\n", rules(RULE)),
    "D4-brackets": ("[::1] 80 [2001:db8::1] 8080\n", connect("[2001:db8::1]")),
    "D4-brackets-and-options": ("[::1] 80 [::2] 8080 [timeout=3]\n", options(udp_timeout_s=3.0)),
    "D4-scope": ("fe80::1%eth0 80 192.0.2.1 8080\n", bind("fe80::1%eth0")),
    "D4-scope-in-brackets": ("[fe80::1%eth0] 80 192.0.2.1 8080\n", bind("[fe80::1%eth0]")),
    "D5-trailing-dot": ("0 80 www.example.org. 8080\n", connect("www.example.org.")),
    "D6-digits-first": ("0 80 3com.4you 8080\n", connect("3com.4you")),
    "D6-digits-then-letters": ("0 80 10.0.0.1x 8080\n", connect("10.0.0.1x")),
    "D8-ranges": ("0 8000-8010 192.0.2.1 9000-9010\n", connect("192.0.2.1", 9000, 9010)),
    "D8-range-and-protocol": ("0 8000-8010/tcp 192.0.2.1 9000-9010\n", bind("0", 8000, 8010)),
    "D9-two-wildcards": ("0.0.0.0 80 h 80\n:: 80 h 80\n", lambda c: len(c.rules) == 2),
    "D10-network": ("allow 10.0.0.0/8\ndeny 2001:db8::/32\n", access("allow 10.0.0.0/8", "deny 2001:db8::/32")),
    "D10-host-bits": ("allow 10.1.2.3/8\n", access("allow 10.1.2.3/8")),
    "D11-json": ("logformat json\n", log(form=LogFormat.JSON)),
    "D12-engine": ("engine native\n", settings(engine=EngineChoice.NATIVE)),
    "D12-relay": ("relay copy\n", settings(relay=RelayMode.COPY)),
    "D12-threads": ("threads 4\n", whole(threads=4)),
    "D12-threads-auto": ("threads 4\nthreads auto\n", whole()),
    "D12-busy-poll": ("busy-poll 50\n", whole(busy_poll_us=50)),
    "D12-busy-poll-off": ("busy-poll off\n", whole(busy_poll_us=0)),
    "D12-busy-poll-auto": ("busy-poll 0\nbusy-poll auto\n", whole(busy_poll_us=-1)),
    "D12-watch": ("watch on\n", whole(watch=True)),
    "D12-listen-backlog": ("listen-backlog 128\n", settings(listen_backlog=128)),
    "D12-max-connections": ("max-connections 1000\n", whole(max_connections=1000)),
    "D12-max-connections-off": ("max-connections 1\nmax-connections off\n", whole()),
    "D12-per-source": ("max-connections-per-source 8\n", whole(max_connections_per_source=8)),
    "D12-source-prefix": ("source-prefix 24/48\n", whole(source_prefix=SourcePrefix(24, 48))),
    "D12-on-deny": ("on-deny reset\n", settings(on_deny=OnDeny.RESET)),
    "D12-on-deny-option": (f"{LINE} [on-deny=reset]\n", options(on_deny=OnDeny.RESET)),
    "D12-max-lifetime": ("max-lifetime 2h\n", settings(max_lifetime_s=7200.0)),
    "D12-max-lifetime-option": (f"{LINE} [max-lifetime=90]\n", options(max_lifetime_s=90.0)),
    "D12-accept-proxy": (
        f"trust 192.0.2.0/24\n{LINE} [accept-proxy]\n",
        lambda c: (
            c.rules[0].options.accept_proxy is AcceptProxy.ON and c.access == (AccessRule(Verb.TRUST, "192.0.2.0/24"),)
        ),
    ),
    "D12-accept-proxy-optional": (
        f"{LINE} [accept-proxy=optional]\ntrust 10.*\nproxy-timeout 2s\n",
        lambda c: c.rules[0].options.accept_proxy is AcceptProxy.OPTIONAL and c.settings.proxy_timeout_s == 2.0,
    ),
    "D12-accept-proxy-of-unix": ("unix:/run/x 127.0.0.1 80 [accept-proxy]\n", lambda c: len(c.rules) == 1),
    "D12-sni": (
        f"{LINE} [sni=A.Example.org.+*.example.net]\n",
        options(sni=("a.example.org", "*.example.net")),
    ),
    "D12-alpn": (f"{LINE} [alpn=h2+http/1.1]\n", options(alpn=("h2", "http/1.1"))),
    "D12-sni-shared": (
        f"{LINE} [sni=a.example]\n{LINE} [sni=a.example, alpn=h2]\n{LINE} [alpn=h2]\n{LINE}\n",
        lambda c: len({rule.identity for rule in c.rules}) == 4,
    ),
    "D12-sni-trust-of-one": (
        f"{LINE} [sni=a.example, accept-proxy]\n{LINE} [accept-proxy]\ntrust *\n",
        lambda c: len(c.rules) == 2,
    ),
    "D12-peek-timeout": ("peek-timeout 3s\n", settings(peek_timeout_s=3.0)),
    "D12-send-proxy": ("send-proxy v1\n", settings(send_proxy=SendProxy.V1)),
    "D12-send-proxy-on": (f"{LINE} [send-proxy=on]\n", options(send_proxy=SendProxy.V2)),
    "D12-send-proxy-bare": (f"{LINE} [timeout=3, send-proxy]\n", options(udp_timeout_s=3.0, send_proxy=SendProxy.V2)),
    "D12-send-proxy-of-udp": ("send-proxy v2\n0 53/udp h 53/udp\n0 53 h 53\n", lambda c: len(c.rules) == 2),
    "D12-send-proxy-udp": (
        "send-proxy v2\nsend-proxy-udp first\n0 53/udp h 53/udp\n",
        lambda c: c.settings_of(c.rules[0]).send_proxy_udp is SendProxyUdp.FIRST,
    ),
    "D12-send-proxy-udp-option": (
        "0 53/udp h 53/udp [send-proxy, send-proxy-udp=first]\n",
        options(send_proxy=SendProxy.V2, send_proxy_udp=SendProxyUdp.FIRST),
    ),
    "D12-proxy-tlv": (
        "send-proxy v2\nproxy-tlv unique-id+crc32c\n",
        settings(send_proxy=SendProxy.V2, proxy_tlv=(ProxyTlv.CRC32C, ProxyTlv.UNIQUE_ID)),
    ),
    "D12-proxy-tlv-off": (f"proxy-tlv crc32c\n{LINE} [send-proxy=v1, proxy-tlv=off]\n", lambda c: len(c.rules) == 1),
    "D12-keepalive-on": ("keepalive off\nkeepalive on\n", whole()),
    "D12-keepalive-off": ("keepalive off\n", settings(keepalive=KeepAlive(0, 10, 6))),
    "D12-keepalive-figures": ("keepalive 2m:15s:3\n", settings(keepalive=KeepAlive(120, 15, 3))),
    "D12-anywhere": (f"{LINE}\nconnect-timeout 3\n", settings(connect_timeout_s=3.0)),
    "D12-last-holds": ("relay copy\nrelay splice\n", settings(relay=RelayMode.SPLICE)),
    "D13-options": (
        f"{LINE} [engine=python, relay=splice, buffersize=8K, pipesize=1M, listen-backlog=9, connect-timeout=1s,"
        " idle-timeout=2m, half-close-timeout=3s, write-stall-timeout=4s, max-lifetime=5h, dns-refresh=off,"
        " keepalive=off, accept-proxy=off, proxy-timeout=3, peek-timeout=4, send-proxy=v2,"
        " proxy-tlv=crc32c, max-connections=5, max-connections-per-source=6]\n",
        options(
            engine=EngineChoice.PYTHON,
            relay=RelayMode.SPLICE,
            buffer_bytes=8192,
            pipe_bytes=1048576,
            listen_backlog=9,
            connect_timeout_s=1.0,
            idle_timeout_s=120.0,
            half_close_timeout_s=3.0,
            write_stall_timeout_s=4.0,
            max_lifetime_s=18000.0,
            dns_refresh_s=0.0,
            keepalive=KeepAlive(idle_s=0),
            max_connections=5,
            max_connections_per_source=6,
            accept_proxy=AcceptProxy.OFF,
            proxy_timeout_s=3.0,
            peek_timeout_s=4.0,
            send_proxy=SendProxy.V2,
            proxy_tlv=(ProxyTlv.CRC32C,),
        ),
    ),
    "D14-bytes": ("buffersize 4096\n", settings(buffer_bytes=4096)),
    "D14-K": ("buffersize 8K\n", settings(buffer_bytes=8192)),
    "D14-k": ("buffersize 8k\n", settings(buffer_bytes=8192)),
    "D14-M": ("pipesize 1M\n", settings(pipe_bytes=1 << 20)),
    "D14-G": ("pipesize 1G\n", settings(pipe_bytes=1 << 30)),
    "D15-seconds": ("idle-timeout 90\n", settings(idle_timeout_s=90.0)),
    "D15-s": ("idle-timeout 90s\n", settings(idle_timeout_s=90.0)),
    "D15-m": ("idle-timeout 5m\n", settings(idle_timeout_s=300.0)),
    "D15-h": ("idle-timeout 2h\n", settings(idle_timeout_s=7200.0)),
    "D15-fraction": ("connect-timeout 0.5s\n", settings(connect_timeout_s=0.5)),
    "D15-fraction-of-hours": ("connect-timeout 1.1h\n", settings(connect_timeout_s=3960.0)),
    "D15-off": ("connect-timeout off\n", settings(connect_timeout_s=0.0)),
    "D15-zero": ("half-close-timeout 0\n", settings(half_close_timeout_s=0.0)),
    "D15-drain": ("drain-timeout 1m\n", whole(drain_timeout_s=60.0)),
    "D15-upgrade": ("upgrade-timeout 2m\n", whole(upgrade_timeout_s=120.0)),
    "D16-defaults": (
        "",
        lambda c: (
            c.settings
            == Settings(
                engine=EngineChoice.AUTO,
                relay=RelayMode.AUTO,
                buffer_bytes=65536,
                pipe_bytes=262144,
                listen_backlog=4096,
                connect_timeout_s=10.0,
                idle_timeout_s=0.0,
                half_close_timeout_s=3600.0,
                write_stall_timeout_s=3600.0,
                max_lifetime_s=0.0,
                dns_refresh_s=60.0,
                keepalive=KeepAlive(60, 10, 6),
                accept_proxy=AcceptProxy.OFF,
                proxy_timeout_s=5.0,
                peek_timeout_s=10.0,
                send_proxy=SendProxy.OFF,
                send_proxy_udp=SendProxyUdp.EVERY,
                proxy_tlv=(),
            )
            and (c.drain_timeout_s, c.threads, c.busy_poll_us, c.max_connections) == (10.0, 0, -1, 0)
        ),
    ),
    "nothing-but-latin-1-comment": ("# caf\udce9\nlogcommon # \udcff\n", log(form=LogFormat.COMMON)),
    "latin-1-file-name": ("logfile /var/log/caf\udce9\n", log("/var/log/caf\udce9")),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    text, holds = ACCEPTED[case]
    assert holds(parse_config(text))


def test_every_mistake_is_told_in_the_order_of_the_text() -> None:  # D3
    text = "relay spice\n0 70000 1.2.3 nosuch [foo=1]\n0 80 h 80\nallow x\n0 80 h 81\nthreads\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    places = [(problem.line, problem.column) for problem in caught.value.problems]
    assert places == [(1, 7), (2, 3), (2, 9), (2, 15), (2, 23), (4, 7), (5, 1), (6, 8)]


def test_access_rules_behind_a_faulty_rule_are_not_global() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("0 80 h\nallow 10.*\nallow x\n")
    assert [problem.line for problem in caught.value.problems] == [1, 3]


def test_origins_name_file_and_line() -> None:
    config = parse_config("# x\n\n0 80 h 80\n0 81 h 81", "some.conf")
    assert [str(rule.origin) for rule in config.rules] == ["some.conf:3", "some.conf:4"]


def test_ports_of_services_are_those_of_the_system() -> None:
    assert parse_rule("0 http h https").bind.port == socket.getservbyname("http", "tcp")


class TestParseRule:
    """`parse_rule`: exactly one rule."""

    def test_rule(self) -> None:
        rule = parse_rule("0.0.0.0 80 192.0.2.1 8080 [relay=splice, max-connections=100]  # x\n")
        assert rule.bind == RULE.bind
        assert rule.options == RuleOptions(relay=RelayMode.SPLICE, max_connections=100)

    def test_plain_rule_has_no_options(self) -> None:
        assert parse_rule(LINE).options is NO_OPTIONS

    def test_comments_and_empty_lines_do_no_harm(self) -> None:
        assert parse_rule(f"\n# x\n{LINE}\n\n") == RULE

    @pytest.mark.parametrize(
        "text", ["", "# x", "logfile /x", "allow *", f"{LINE}\n{LINE}", f"{LINE}\nallow *", "0 80", "include x"]
    )
    def test_anything_else_is_an_error(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_rule(text)


def test_access_rules_are_kept_as_written() -> None:
    config = parse_config("allow 10.1.2.3/8\ndeny FE80:*\n")
    assert config.access == (AccessRule(Verb.ALLOW, "10.1.2.3/8"), AccessRule(Verb.DENY, "FE80:*"))
