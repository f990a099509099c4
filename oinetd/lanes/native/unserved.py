"""Rules that the native lane never serves."""

from __future__ import annotations

from oinetd.model import AcceptProxy, Protocol, Rule, Settings

__all__ = ["why_unserved"]


def why_unserved(rule: Rule, settings: Settings) -> tuple[str, str] | None:
    """Why the native lane does not serve `rule`, and the error if that is asked for; None if it does."""
    bind, connect = rule.bind.protocol, rule.connect.protocol
    if bind is not connect:
        reason, kind = "it serves rules between UDP and TCP", f"from {bind.value} to {connect.value}"
    elif bind is Protocol.UDP and settings.accept_proxy is not AcceptProxy.OFF:
        reason, kind = "it serves accept-proxy over UDP", "from udp with accept-proxy"
    else:
        return None
    return reason, f"the native engine serves no rule {kind}; [engine=auto] on this rule takes the Python lane"
