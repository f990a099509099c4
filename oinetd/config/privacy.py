"""Whose text a message may show: an error in a file goes to readers who may not be allowed to read the file.

A process of root's reads every file, also one that a link in a directory of somebody else's leads to, and its messages
go to a log that others read. So root shows the text of a file only if everyone may read it; any other user has read it
with that user's own rights, and shows it. A directory on the way to an included file counts, unless it is on the way to
the main file, too: whoever named that one can get there.

What is not shown is the line and each word of it that a message quotes; file, line, column and the rest of the message
stay.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

__all__ = ["HIDDEN_HINT", "everyone_may_read", "without_words_of"]

HIDDEN_HINT = "not everyone may read this file, so its text is not shown"

_QUOTED = re.compile(r"'.*'")
_PUNCTUATION = ".,:;!?…'\"()"


def everyone_may_read(fd: int, path: str, main: str) -> bool:
    """Whether a message may show the text of the open file `path`; `main` is the configuration's main file."""
    if os.geteuid() != 0:
        return True
    if not os.fstat(fd).st_mode & stat.S_IROTH:
        return False
    try:
        # Not where the name leads now, but what is open.
        way = Path(os.readlink(f"/proc/self/fd/{fd}")).parents
        known = Path(os.path.realpath(main)).parents
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in way if folder not in known)
    except OSError:
        return path == main


def without_words_of(text: str, message: str) -> str:
    """`message` with `…` for whatever it quotes of the line `text`."""
    words = [word for word in re.split(r"[\s\[\],=\"]+", text) if len(word) > 1]

    def hidden(match: re.Match[str]) -> str:
        token = match[0]
        core = token.strip(_PUNCTUATION)
        if len(core) > 1 and (core in text or any(word in token for word in words)):
            return "…"
        return token

    return re.sub(r"\S+", hidden, _QUOTED.sub("'…'", message))
