"""What an operator reads after a typical mistake, as full text; and that no text at all gets more than that."""

from __future__ import annotations

import pytest

from oinetd.config import parse_config
from oinetd.config.compile import PROBLEMS_MAX
from oinetd.errors import ConfigError

MISTAKES = {
    "words-missing": (
        "bindadress 80 x",
        """\
oinetd.conf:1:16: the connect port is missing
    bindadress 80 x
                   ^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "two-words-missing": (
        "0.0.0.0 80  # to be done",
        """\
oinetd.conf:1:11: the connect address and connect port are missing
    0.0.0.0 80  # to be done
              ^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "bind-port-missing": (
        "\t0.0.0.0 example.org 80",
        """\
oinetd.conf:1:10: the bind port is missing
    \t0.0.0.0 example.org 80
    \t        ^^^^^^^^^^^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "bind-address-missing": (
        "80 example.org 80",
        """\
oinetd.conf:1:1: the bind address is missing
    80 example.org 80
    ^^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "too-many-words": (
        "0.0.0.0 80 example.org 80 timeout=3",
        """\
oinetd.conf:1:27: unexpected 'timeout=3' after the four words of a rule
    0.0.0.0 80 example.org 80 timeout=3
                              ^^^^^^^^^
    hint: options go in brackets: [timeout=3]""",
    ),
    "address-and-port-in-one": (
        "0.0.0.0:80 [::1]:80",
        """\
oinetd.conf:1:1: '0.0.0.0:80' is an address and a port in one word
    0.0.0.0:80 [::1]:80
    ^^^^^^^^^^
    hint: write the port as a word of its own: 0.0.0.0 80
oinetd.conf:1:12: '[::1]:80' is an address and a port in one word
    0.0.0.0:80 [::1]:80
               ^^^^^^^^
    hint: write the port as a word of its own: [::1] 80""",
    ),
    "star-for-address": (
        "* 80 example.org 80",
        """\
oinetd.conf:1:1: '*' is not a valid address
    * 80 example.org 80
    ^
    hint: 0.0.0.0 means every IPv4 address, :: means every address""",
    ),
    "256": (
        "0 80 10.0.256.1 80",
        """\
oinetd.conf:1:11: '10.0.256.1' is not a valid IPv4 address: 256 is more than 255
    0 80 10.0.256.1 80
              ^^^""",
    ),
    "three-numbers": (
        "0 80 1.2.3 80",
        """\
oinetd.conf:1:6: '1.2.3' is not a valid IPv4 address: it needs four numbers from 0 to 255
    0 80 1.2.3 80
         ^^^^^
    hint: 0 alone means every IPv4 address; the last part of a name needs a letter""",
    ),
    "port-out-of-range": (
        "0 8000-70000 h 80",
        """\
oinetd.conf:1:8: port 70000 is out of range
    0 8000-70000 h 80
           ^^^^^
    hint: ports are 0 to 65535""",
    ),
    "unequal-ranges": (
        "0 8000-8010 h 8000-8009",
        """\
oinetd.conf:1:15: 11 ports to listen on, 10 ports to connect to
    0 8000-8010 h 8000-8009
                  ^^^^^^^^^
    hint: the two ranges of a rule must have the same length""",
    ),
    "unknown-service": (
        "0 htpp h 80",
        """\
oinetd.conf:1:3: 'htpp' is neither a port nor a service known for tcp
    0 htpp h 80
      ^^^^
    hint: a number, a range such as 8000-8010, or a name from /etc/services""",
    ),
    "misspelt-directive": (
        "conect-timeout 3",
        """\
oinetd.conf:1:1: unknown directive 'conect-timeout'
    conect-timeout 3
    ^^^^^^^^^^^^^^
    hint: did you mean 'connect-timeout'?""",
    ),
    "capitals": (
        "LogFile /var/log/x",
        """\
oinetd.conf:1:1: unknown directive 'LogFile'
    LogFile /var/log/x
    ^^^^^^^
    hint: directives are case-sensitive: write logfile""",
    ),
    "neither-directive-nor-rule": (
        "hello world",
        """\
oinetd.conf:1:1: 'hello' is neither a directive nor the beginning of a rule
    hello world
    ^^^^^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "equals-sign": (
        "relay=splice",
        """\
oinetd.conf:1:1: a directive and its value are two words
    relay=splice
    ^^^^^^^^^^^^
    hint: write relay splice""",
    ),
    "option-as-directive": (
        "timeout 3",
        """\
oinetd.conf:1:1: 'timeout' is an option of a rule, not a directive
    timeout 3
    ^^^^^^^
    hint: write [timeout=3] at the end of a rule""",
    ),
    "option-as-directive-with-a-mistake": (
        "mark=blue",
        """\
oinetd.conf:1:1: 'mark' is an option of a rule, not a directive
    mark=blue
    ^^^^
    hint: write [mark=N] at the end of a rule""",
    ),
    "option-of-a-group-as-directive": (
        "balance roundrobin",
        """\
oinetd.conf:1:1: 'balance' is an option of a group, not a directive
    balance roundrobin
    ^^^^^^^
    hint: write upstream NAME [balance=roundrobin]""",
    ),
    "option-of-a-server-as-directive": (
        "weight 3",
        """\
oinetd.conf:1:1: 'weight' is an option of a server, not a directive
    weight 3
    ^^^^^^
    hint: write upstream NAME address port [weight=3]""",
    ),
    "options-without-a-rule": (
        "0 80 h 80\n[bandwidth=10M, name=web]",
        """\
oinetd.conf:2:1: options stand at the end of the line of their rule
    [bandwidth=10M, name=web]
    ^^^^^^^^^^^^^^^
    hint: a rule is: bindaddress bindport connectaddress connectport [options]""",
    ),
    "value-missing": (
        "  logfile",
        """\
oinetd.conf:1:10: logfile needs a value
      logfile
             ^
    hint: logfile FILE""",
    ),
    "blanks-in-file-name": (
        "pidlogfile /run/my pid",
        """\
oinetd.conf:1:20: 'pid': pidlogfile takes one value
    pidlogfile /run/my pid
                       ^^^
    hint: put double quotes around a name with blanks""",
    ),
    "misspelt-value": (
        "engine nativ",
        """\
oinetd.conf:1:8: 'nativ' is not one of auto, native, python
    engine nativ
           ^^^^^
    hint: did you mean 'native'?""",
    ),
    "misspelt-option-and-its-neighbour": (
        "0 80 h 80 [relai=splice, max-connections=many]",
        """\
oinetd.conf:1:12: unknown option 'relai'
    0 80 h 80 [relai=splice, max-connections=many]
               ^^^^^
    hint: did you mean 'relay'?
oinetd.conf:1:42: 'many' is not a valid number
    0 80 h 80 [relai=splice, max-connections=many]
                                             ^^^^
    hint: a whole number, or off""",
    ),
    "directive-as-option": (
        "0 80 h 80 [logfile=/x]",
        """\
oinetd.conf:1:12: 'logfile' is a directive, not an option of a rule
    0 80 h 80 [logfile=/x]
               ^^^^^^^
    hint: write logfile /x on a line of its own""",
    ),
    "access-rule-as-option": (
        "0 80 h 80 [deny=192.0.2.7]",
        """\
oinetd.conf:1:12: 'deny' is a directive, not an option of a rule
    0 80 h 80 [deny=192.0.2.7]
               ^^^^
    hint: write deny 192.0.2.7 on a line of its own behind the rule, for this rule""",
    ),
    "options-not-closed": (
        "0 80 h 80 [relay=splice  # fast",
        """\
oinetd.conf:1:11: the ']' that closes the options is missing
    0 80 h 80 [relay=splice  # fast
              ^^^^^^^^^^^^^""",
    ),
    "keepalive-count": (
        "keepalive 60:10:200",
        """\
oinetd.conf:1:17: COUNT: '200' is out of range
    keepalive 60:10:200
                    ^^^
    hint: from 1 to 127""",
    ),
    "host-name-in-allow": (
        "allow example.org",
        """\
oinetd.conf:1:7: 'example.org' is not a valid pattern: clients are matched by their numeric addresses
    allow example.org
          ^^^^^^^^^^^
    hint: write an address, a pattern such as 192.0.2.*, or a network such as 192.0.2.0/24; names are not looked up""",
    ),
    "short-network": (
        "allow 10.1/16",
        """\
oinetd.conf:1:7: '10.1/16' is not a valid pattern: what stands before the / is not an address
    allow 10.1/16
          ^^^^^^^
    hint: write all four numbers: 10.1.0.0/16""",
    ),
    "listens-twice": (
        "0.0.0.0 80 a 80\n\n0 80 b 80",
        """\
oinetd.conf:3:1: 0 port 80 is already used by oinetd.conf:1
    0 80 b 80
    ^
    hint: remove one of the two rules, or change its port""",
    ),
    "beside-a-wildcard": (
        "127.0.0.1 8000-8010 a 8000-8010\n0.0.0.0 8005 b 80",
        """\
oinetd.conf:2:1: 0.0.0.0 port 8005 is already used by oinetd.conf:1 on 127.0.0.1
    0.0.0.0 8005 b 80
    ^^^^^^^
    hint: 0.0.0.0 includes 127.0.0.1, and the kernel allows only one of the two listeners""",
    ),
    "international-name": (
        "0 80 bücher.example 80",
        """\
oinetd.conf:1:6: 'bücher.example' has characters that a host name cannot have
    0 80 bücher.example 80
         ^^^^^^^^^^^^^^
    hint: in ASCII it is xn--bcher-kva.example""",
    ),
    "another-space": (
        "0 80\u00a0h 80",
        """\
oinetd.conf:1:5: the character U+00A0 is not a blank or a tab
    0 80\ufffdh 80
        ^
    hint: only blanks and tabs separate words""",
    ),
    "option-without-name": (
        "0 80 h 80 [=3]",
        """\
oinetd.conf:1:12: the name of the option is missing
    0 80 h 80 [=3]
               ^
    hint: an option is NAME=VALUE""",
    ),
    "equals-missing": (
        "0 80 h 80 [idle-timeout 10m]",
        """\
oinetd.conf:1:12: '=' is missing between 'idle-timeout' and its value
    0 80 h 80 [idle-timeout 10m]
               ^^^^^^^^^^^^^^^^
    hint: write idle-timeout=10m""",
    ),
    "equals-missing-twice": (
        "0 80 h 80 [relay splice, idle-timout 3m]",
        """\
oinetd.conf:1:12: '=' is missing between 'relay' and its value
    0 80 h 80 [relay splice, idle-timout 3m]
               ^^^^^^^^^^^^
    hint: write relay=splice
oinetd.conf:1:26: '=' is missing between 'idle-timout' and its value
    0 80 h 80 [relay splice, idle-timout 3m]
                             ^^^^^^^^^^^^^^
    hint: write idle-timeout=3m""",
    ),
    "semicolon": (
        "0 80 h 80 [timeout=3; src=127.0.0.1]",
        """\
oinetd.conf:1:21: options are separated by commas
    0 80 h 80 [timeout=3; src=127.0.0.1]
                        ^
    hint: write [timeout=3, src=127.0.0.1]""",
    ),
    "blank-between-options": (
        "0 80 h 80 [timeout=3 src=127.0.0.1]",
        """\
oinetd.conf:1:22: unexpected 'src=127.0.0.1' after the option's value
    0 80 h 80 [timeout=3 src=127.0.0.1]
                         ^^^^^^^^^^^^^
    hint: options are separated by commas""",
    ),
    "url": (
        "0 80 https://example.org/x?y",
        """\
oinetd.conf:1:6: 'https://example.org/x?y' is a URL; a rule takes a host and a port
    0 80 https://example.org/x?y
         ^^^^^^^^^^^^^^^^^^^^^^^
    hint: write example.org 443""",
    ),
    "url-with-port": (
        "0 80 tcp://user@example.org:8080 80",
        """\
oinetd.conf:1:6: 'tcp://user@example.org:8080' is a URL; a rule takes a host and a port
    0 80 tcp://user@example.org:8080 80
         ^^^^^^^^^^^^^^^^^^^^^^^^^^^
    hint: write example.org 8080""",
    ),
    "deny-all": (
        "deny all",
        """\
oinetd.conf:1:6: 'all' is not a valid pattern
    deny all
         ^^^
    hint: write *, which matches every address""",
    ),
    "netmask": (
        "allow 10.0.0.0/255.0.0.0",
        """\
oinetd.conf:1:7: '10.0.0.0/255.0.0.0' is not a valid pattern: a network takes a prefix length and not a mask
    allow 10.0.0.0/255.0.0.0
          ^^^^^^^^^^^^^^^^^^
    hint: write 10.0.0.0/8""",
    ),
    "send-proxy-version": (
        "0 80 h 80 [send-proxy=v3]",
        """\
oinetd.conf:1:23: 'v3' is not one of off, v1, v2, on
    0 80 h 80 [send-proxy=v3]
                          ^^""",
    ),
    "send-proxy-udp-rule": (
        "0 80 h 80/udp [send-proxy]",
        """\
oinetd.conf:1:1: send-proxy is for rules from TCP to TCP or from UDP to UDP
    0 80 h 80/udp [send-proxy]
    ^
    hint: remove send-proxy from this rule""",
    ),
    "send-proxy-between": (
        "upstream u h 53/udp [send-proxy]\n0 80 @u",
        """\
oinetd.conf:2:1: send-proxy is for rules from TCP to TCP or from UDP to UDP, and the server h:53 of the group has it
    0 80 @u
    ^
    hint: remove send-proxy from the server""",
    ),
    "send-proxy-version-of-udp": (
        "send-proxy v1\n0 53/udp h 53/udp",
        """\
oinetd.conf:2:1: version 1 of the PROXY protocol is not for datagrams
    0 53/udp h 53/udp
    ^
    hint: write send-proxy=v2, or send-proxy=off""",
    ),
    "send-proxy-version-of-udp-server": (
        "upstream u h 53/udp [send-proxy=v1]\n0 53/udp @u",
        """\
oinetd.conf:1:12: send-proxy=v1 is for TCP, and the server h:53 is reached over UDP
    upstream u h 53/udp [send-proxy=v1]
               ^^^^^^^^
    hint: write send-proxy=v2
oinetd.conf:1:10: the group 'u' has no server
    upstream u h 53/udp [send-proxy=v1]
             ^
    hint: write upstream u address port""",
    ),
    "send-proxy-udp-of-tcp": (
        "0 80 h 80 [send-proxy, send-proxy-udp=first]",
        """\
oinetd.conf:1:1: send-proxy-udp is for rules from UDP to UDP
    0 80 h 80 [send-proxy, send-proxy-udp=first]
    ^
    hint: remove send-proxy-udp from this rule""",
    ),
    "send-proxy-udp-alone": (
        "0 53/udp h 53/udp [send-proxy-udp=first]",
        """\
oinetd.conf:1:1: send-proxy-udp has no effect without send-proxy
    0 53/udp h 53/udp [send-proxy-udp=first]
    ^
    hint: add send-proxy=v2 to this rule""",
    ),
    "accept-proxy-trusts-nobody": (
        "0 80 h 80 [accept-proxy]\nallow *\n0 81 h 80 [accept-proxy]\ntrust *",
        """\
oinetd.conf:1:1: accept-proxy without trust: nobody may send a header
    0 80 h 80 [accept-proxy]
    ^
    hint: write trust and the address of the proxy on a line behind the rule; trust 0.0.0.0/0 is everybody""",
    ),
    "sni-address": (
        "0 443 h 443 [sni=192.0.2.1]",
        """\
oinetd.conf:1:18: '192.0.2.1' is an address
    0 443 h 443 [sni=192.0.2.1]
                     ^^^^^^^^^
    hint: clients name no server by its address: a rule without sni gets them""",
    ),
    "sni-word": (
        "0 443 h 443 [sni=a.example+b/c]",
        """\
oinetd.conf:1:28: 'b/c' is not a server name
    0 443 h 443 [sni=a.example+b/c]
                               ^^^
    hint: letters, digits, '-', '_' and '.', such as www.example.org; *.example.org for any first label""",
    ),
    "sni-twice": (
        "0 443 h 443 [sni=a.example]\n0 443 h 444 [sni=b.example+A.example]",
        """\
oinetd.conf:2:1: 0 port 443 is already used by oinetd.conf:1
    0 443 h 444 [sni=b.example+A.example]
    ^
    hint: remove one of the two rules, or change its port""",
    ),
    "sni-listener": (
        "0 443 h 443 [sni=a.example]\n0 443 h 444 [listen-backlog=9]",
        """\
oinetd.conf:2:1: listen-backlog differs from that of oinetd.conf:1, which shares the listener
    0 443 h 444 [listen-backlog=9]
    ^
    hint: rules that share a bind address agree on what belongs to the listener""",
    ),
    "proxy-tlv-word": (
        "proxy-tlv crc32c+uniqe-id",
        """\
oinetd.conf:1:18: 'uniqe-id' is not one of them
    proxy-tlv crc32c+uniqe-id
                     ^^^^^^^^
    hint: did you mean 'unique-id'?""",
    ),
    "proxy-tlv-version": (
        "proxy-tlv crc32c\n0 80 h 80 [send-proxy=v1]",
        """\
oinetd.conf:2:1: proxy-tlv needs version 2 of the PROXY protocol
    0 80 h 80 [send-proxy=v1]
    ^
    hint: write send-proxy=v2, or proxy-tlv=off""",
    ),
    "proxy-tlv-alone": (
        "0 80 h 80 [proxy-tlv=crc32c]",
        """\
oinetd.conf:1:1: proxy-tlv has no effect without send-proxy
    0 80 h 80 [proxy-tlv=crc32c]
    ^
    hint: add send-proxy=v2 to this rule""",
    ),
    "number": (
        "threads few",
        """\
oinetd.conf:1:9: 'few' is not a valid number
    threads few
            ^^^
    hint: a whole number, or auto""",
    ),
    "time": (
        "drain-timeout 10min",
        """\
oinetd.conf:1:15: '10min' is not a valid time
    drain-timeout 10min
                  ^^^^^
    hint: a number with s, m or h, such as 90s or 1.5h, or off""",
    ),
    "size": (
        "buffersize 64KB",
        """\
oinetd.conf:1:12: '64KB' is not a valid size
    buffersize 64KB
               ^^^^
    hint: bytes, or a number with K, M or G, such as 64K""",
    ),
    "address": (
        "1:2 80 h 80",
        """\
oinetd.conf:1:1: '1:2' is an address and a port in one word
    1:2 80 h 80
    ^^^
    hint: write the port as a word of its own: 1 2""",
    ),
    "ipv6-address": (
        "::g 80 h 80",
        """\
oinetd.conf:1:1: '::g' is not a valid IPv6 address
    ::g 80 h 80
    ^^^
    hint: such as 2001:db8::1, ::1 or fe80::1%eth0; brackets are allowed""",
    ),
    "destination-port-0": (
        "0 80 h 0",
        """\
oinetd.conf:1:8: port 0 cannot be a destination
    0 80 h 0
           ^
    hint: 0 is only for the bind side: it means any free port""",
    ),
    "option-in-capitals": (
        "0 80 h 80 [Relay=copy]",
        """\
oinetd.conf:1:12: unknown option 'Relay'
    0 80 h 80 [Relay=copy]
               ^^^^^
    hint: options are case-sensitive: write relay""",
    ),
    "protocol-in-capitals": (
        "0 80/UDP h 80",
        """\
oinetd.conf:1:6: unknown protocol 'UDP'
    0 80/UDP h 80
         ^^^
    hint: protocols are case-sensitive: write udp""",
    ),
}


def mistakes_of(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "oinetd.conf")
    return caught.value


@pytest.mark.parametrize("case", MISTAKES)
def test_text(case: str) -> None:
    text, expected = MISTAKES[case]
    assert str(mistakes_of(text)) == expected


def test_a_message_obeys_no_control_characters() -> None:
    error = mistakes_of("0 80 \x1b[31mh\udcff 80\nlogfile a b\x07\nallow 1.* \x9b2J")
    text = str(error)
    text.encode()
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_long_word_is_cut() -> None:
    problem = mistakes_of(f"0 80 {'h' * 200}_! 80").problems[0]
    assert len(problem.message) < 150


def test_a_long_line_is_told_without_being_shown() -> None:
    error = mistakes_of("0 80 h 80 " + "x" * 1_000_000)
    assert str(error) == "oinetd.conf:1: a line of 1000010 characters; the limit is 4096"


def test_a_long_comment_is_free() -> None:
    assert parse_config("# " + "x" * 1_000_000).rules == ()


def test_a_file_of_another_kind_is_given_up() -> None:
    assert len(mistakes_of("x\n" * 3 * PROBLEMS_MAX).problems) == PROBLEMS_MAX


def test_line_column_and_hint_of_the_error_are_those_of_the_first_problem() -> None:
    error = mistakes_of("\nrelay spice\nallow")
    assert (error.line, error.column, error.hint) == (2, 7, "did you mean 'splice'?")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "line",
    [
        "[" * 4000,
        "[" + ":" * 4000 + " 80 h 80",
        "0 80 h 80 " + "[" * 4000,
        "0 80 h 80 [" + "," * 4000 + "]",
        "0 80 h 80 [" + "a=b," * 1000 + "]",
        "." * 4000 + " 80 h 80",
        "9" * 4000 + " " + "9" * 90,
        "logfile " + '"' * 4000,
        "keepalive " + ":" * 4000,
        "allow " + "*a" * 120,
        "a " * 2000,
        "-" * 4000,
    ],
    ids=lambda line: line[:16],
)
def test_time_is_bounded(line: str) -> None:
    """A hundred of the worst lines: quadratic work in any of them would run into the test's timeout."""
    with pytest.raises(ConfigError):
        parse_config(f"{line}\n" * 100 + "x y")


def test_a_file_of_another_kind_fills_no_screen() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("nonsense\n" * 1000, "x")
    lines = str(caught.value).splitlines()
    assert lines[-1] == "and 800 more errors, not shown"
    assert sum(line.startswith("x:") for line in lines) == 200
    assert len(caught.value.problems) == 1000
