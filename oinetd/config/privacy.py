"""Hides the text of a file in error messages, if their readers may not be allowed to read the file.

Root reads every file, also through a link in another user's directory, and its messages go to a log that other users
read. So a process of root shows the text of a file only if every user may read it. A process of another user has read
it with this user's rights, and shows it. The directories above an included file count as well, except those above the
main file, which the operator has named.

The line is hidden, and each word of it that the message quotes. File, line number, column and the rest of the message
are shown.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

__all__ = ["HIDDEN_HINT", "everyone_may_read", "without_words_of"]

HIDDEN_HINT = "this file is not world-readable, so its text is not shown"

_QUOTED = re.compile(r"'.*'")
_PUNCTUATION = ".,:;!?…'\"()"


def everyone_may_read(fd: int, path: str, main: str) -> bool:
    """Whether a message may show the text of the open file `path`; `main` is the configuration's main file."""
    if os.geteuid() != 0:
        return True
    if not os.fstat(fd).st_mode & stat.S_IROTH:
        return False
    try:
        # The path of the open file, not the present target of `path`.
        way = Path(os.readlink(f"/proc/self/fd/{fd}")).parents
        known = Path(os.path.realpath(main)).parents
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in way if folder not in known)
    except OSError:
        return path == main


def without_words_of(text: str, message: str) -> str:
    """`message` with `…` for each word that it quotes from the line `text`."""
    words = [word for word in re.split(r"[\s\[\],=\"]+", text) if len(word) > 1]

    def hidden(match: re.Match[str]) -> str:
        token = match[0]
        core = token.strip(_PUNCTUATION)
        if len(core) > 1 and (core in text or any(word in token for word in words)):
            return "…"
        return token

    return re.sub(r"\S+", hidden, _QUOTED.sub("'…'", message))
