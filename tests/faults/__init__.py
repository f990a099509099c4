"""Faults on purpose: `python -m tests.faults --seed N --minutes M` (root) runs oinetd where things go wrong.

Packets are lost and forged, servers are frozen and killed, names change, fail and hang, descriptors run out, system
calls and allocations of the reactors fail, buffers are small, the disk of the log is full, the wall clock jumps,
configurations change and are bad, oinetd is upgraded and killed. Meanwhile clients send keyed streams. After each round
the invariants of `invariants.py` are checked. The seed makes the decisions, so that a run can be repeated.
"""
