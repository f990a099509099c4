"""UDP: rules with datagrams on one side or on both, in the Python lane.

`batch` moves datagrams in numbers, `table` holds the sessions and ends those that are silent, `session` is the life of
one, `leg` its two kinds of upstream; `listener` gives datagrams to sessions, and `stream` serves rules that listen on
TCP and connect by UDP.
"""

__all__ = ()
