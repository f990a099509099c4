"""Rules that the native lane never serves."""

from __future__ import annotations

from oinetd.model import Rule

__all__ = ["why_unserved"]


def why_unserved(rule: Rule) -> tuple[str, str] | None:
    """Why the native lane does not serve `rule`, and the error if that is asked for; None if it does."""
    bind, connect = rule.bind.protocol, rule.connect.protocol
    if bind is connect:
        return None
    error = f"the native engine serves no rule from {bind.value} to {connect.value}; "
    return "it serves rules between UDP and TCP", f"{error}[engine=auto] on this rule takes the Python lane"
