"""What the language does not know, by the points of `test_config_language`: an error with its place, never more."""

from __future__ import annotations

import pytest

from oinetd.config import parse_config
from oinetd.errors import ConfigError

LINE = "0.0.0.0 80 192.0.2.1 8080"

REFUSED = {
    "M4-comment-in-options": f"{LINE} [timeout=3 # ]\n",
    "M5-keyword": "LogFile /x\n",
    "M5-protocol": "0 80/TCP h 80\n",
    "M5-option": f"{LINE} [Timeout=3]\n",
    "M7-unknown-service": "0 no-such-service h 80\n",
    "M7-signed": "0 +80 h 80\n",
    "M7-protocol-apart": "0 80 /tcp h 80\n",
    "M8-connect-to-port-0": "0 80 h 0\n",
    "M9-two-protocols": "0 53/tcp/udp h 53\n",
    "M10-empty-block": f"{LINE} []\n",
    "M10-two-blocks": f"{LINE} [timeout=3][timeout=3]\n",
    "M10-comma-behind": f"{LINE} [timeout=3,]\n",
    "M10-no-comma": f"{LINE} [timeout=3 src=192.0.2.1]\n",
    "M10-word-behind": f"{LINE} [timeout=3] x\n",
    "M10-not-closed": f"{LINE} [timeout=3\n",
    "M11-negative-timeout": f"{LINE} [timeout=-1]\n",
    "M13-host-name": "allow localhost\n",
    "M13-two-patterns": "allow 10.*, 11.*\n",
    "M13-two-directives": "allow 10.* deny 11.*\n",
    "M13-none": "deny\n",
    "M15-two-words": "logfile /a b\n",
    "M15-no-name": "logfile\n",
    "M15-only-comment": "logfile #x\n",
    "M15-empty-name": 'logfile ""\n',
    "M15-quote-not-closed": 'logfile "/a b\n',
    "M16-value": "logcommon x\n",
    "M17-no-name": "pidlogfile\n",
    "D4-lone-bracket": "[ 80 h 80\n",
    "D4-bracket-not-closed": "[::1 80 h 80\n",
    "D4-ipv4-in-brackets": "[127.0.0.1] 80 h 80\n",
    "D4-empty-scope": "fe80::1% 80 h 80\n",
    "D4-not-ipv6": "1:2 80 h 80\n",
    "D5-two-dots": "0 80 example.org.. 80\n",
    "D6-256": "256.1.1.1 80 h 80\n",
    "D6-three-numbers": "0 80 1.2.3 80\n",
    "D6-ends-in-number": "0 80 example.1 80\n",
    "D6-no-letter": "0 80 example.- 80\n",
    "D6-hexadecimal": "0 80 0x7f000001 80\n",
    "D6-leading-zero": "0 80 010.0.0.1 80\n",
    "D6-trailing-dot": "0 80 10.0.0.1. 80\n",
    "D7-70000": "0 70000 h 80\n",
    "D7-huge": f"0 {'9' * 4000} h 80\n",
    "D8-unequal": "0 8000-8010 h 80\n",
    "D8-backwards": "0 8010-8000 h 8010-8000\n",
    "D8-from-0": "0 0-10 h 0-10\n",
    "D8-beyond": "0 65530-65540 h 1-11\n",
    "D10-source-prefix-of-one-family": "source-prefix 64\n",
    "D10-source-prefix-too-long": "source-prefix 32/129\n",
    "D10-source-prefix-signed": "source-prefix -1/64\n",
    "D10-prefix-too-long": "allow 10.0.0.0/33\n",
    "D10-short-network": "allow 10/8\n",
    "D10-wildcard-and-prefix": "allow 10.*/8\n",
    "D10-netmask": "allow 10.0.0.0/255.0.0.0\n",
    "D10-scope-and-prefix": "allow fe80::%eth0/64\n",
    "D12-threads": "threads 1000000\n",
    "D12-keepalive-two": "keepalive 60:10\n",
    "D12-keepalive-range": "keepalive 60:10:128\n",
    "D12-include-in-text": "include x\n",
    "D14-unit": "buffersize 64KB\n",
    "D14-zero": "buffersize 0\n",
    "D14-too-much": "buffersize 2G\n",
    "D15-unit": "idle-timeout 5d\n",
    "D15-too-short": "idle-timeout 0.0001\n",
    "D15-too-long": "idle-timeout 9999999999\n",
    "D15-not-ascii": "idle-timeout ٣\n",
    "NUL": "0 80 h 80\0\n",
    "carriage-return": "0 80 h 80\r0 81 h 81\n",
    "long-line": f"0 80 {'h' * 5000} 80\n",
    "another-space": "0 80\u00a0h 80\n",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(REFUSED[case], "conf")
    for problem in caught.value.problems:
        assert (problem.file, problem.line) == ("conf", 1)
        assert problem.column or case == "long-line"
