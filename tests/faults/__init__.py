"""Faults on purpose: `python -m tests.faults --seed N --minutes M` (root) runs oinetd where things go wrong.

Packets are lost and forged, servers are frozen and killed, names change, fail and hang, descriptors run out, system
calls and allocations of the reactors fail, buffers are small, the disk of the log is full, the wall clock jumps,
configurations and files of servers change and are bad, operators drain servers and kill sessions, oinetd is upgraded
and killed. Meanwhile clients send keyed streams and datagrams by every kind of rule (`ways.py`): in both lanes,
copied and spliced, to groups with checks, with PROXY headers in and out, by TLS names, through unix sockets, with a
bandwidth and a rate, by `original` to another machine; and connections change their reactor every few turns. After
each round the invariants of `invariants.py` are checked. The seed makes the decisions, so that a run can be repeated.
`--plant NAME` is a fault that has to be found.
"""
