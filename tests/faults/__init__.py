"""Faults on purpose: `python -m tests.faults --seed N --minutes M` (root) runs oinetd where things go wrong.

Packets are lost, servers are frozen and killed, names change, fail and hang, descriptors run out, the disk of the log
is full, configurations change and are bad, oinetd is killed. Meanwhile clients send keyed streams. After each round the
invariants of `invariants.py` are checked. The seed makes the decisions, so that a run can be repeated.
"""
