"""Sessions that are on their way to another process or have gone there, and those that were to end meanwhile."""

from __future__ import annotations

__all__ = ["Away"]


class Away:
    """Numbers of sessions. Whoever wants to end one asks here first: a word to one that nobody has would be lost."""

    __slots__ = ("_ids", "killed")

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self.killed: set[int] = set()

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._ids

    def leave(self, session_id: int) -> None:
        """A session is on its way."""
        self._ids.add(session_id)

    def come_back(self, session_id: int) -> bool:
        """It goes on here; whether it was to end."""
        self._ids.discard(session_id)
        if session_id not in self.killed:
            return False
        self.killed.discard(session_id)
        return True

    def kill(self, session_id: int) -> bool:
        """Whether it is away; then the process that has it in the end will end it."""
        if session_id not in self._ids:
            return False
        self.killed.add(session_id)
        return True

    def forget(self) -> None:
        """The upgrade is over."""
        self._ids.clear()
        self.killed.clear()
