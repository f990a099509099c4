"""What a program gets wrong when it makes a configuration itself: said at once, and with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from oinetd import AccessRule, Config, ConfigError, Endpoint, Forwarder, Rule, Verb
from oinetd.config import parse_rule

RULE = "127.0.0.1 8080 127.0.0.1 80"

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a text as a rule": (
        {"rules": (RULE,)},
        f"'{RULE}' is not of type Rule; use parse_rule for a text",
    ),
    "a text as all rules": ({"rules": RULE}, f"'{RULE}' is not a tuple of Rule"),
    "a text as an access rule": (
        {"access": ("deny 10.*",)},
        "'deny 10.*' is not of type AccessRule; such as AccessRule(Verb.DENY, \"192.0.2.*\")",
    ),
}


@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=WRONG)
def test_a_value_of_another_type(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Config(**values)
    assert str(caught.value) == message


def test_an_access_rule_of_a_rule() -> None:
    texts: Any = ("10.*",)
    with pytest.raises(TypeError, match="is not of type AccessRule"):
        Rule(Endpoint("::", 1), Endpoint("h", 1), access=texts)


def test_a_list_will_do() -> None:
    rules: Any = [parse_rule(RULE)]
    assert list(Config(rules=rules, access=(AccessRule(Verb.DENY, "10.*"),)).rules) == rules


async def test_a_forwarder_takes_a_configuration() -> None:
    message = f"'{RULE}' is not of type Config; use parse_config for a text, load_config for a file"
    text: Any = RULE
    with pytest.raises(TypeError) as caught:
        Forwarder(text)
    assert str(caught.value) == message
    async with Forwarder(Config()) as forwarder:
        with pytest.raises(TypeError) as caught:
            await forwarder.reload(text)
        assert str(caught.value) == message
        assert forwarder.config == Config()


def test_port_0_cannot_be_a_destination() -> None:
    with pytest.raises(ConfigError, match=r"^port 0 cannot be a destination$"):
        Rule(Endpoint("127.0.0.1", 80), Endpoint("h", 0))


def test_what_sessions_tell_a_forwarder_is_its_own_affair() -> None:
    assert not {"opened", "closed", "left"} & set(dir(Forwarder))
