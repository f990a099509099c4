"""Ends of sessions, counted: what Python learns of them if it wants no record of each.

A record costs Python some microseconds, as much as a tenth of a short connection; a count costs it none. A table has a
place for each pair of policy and ending, found by a hash; if two pairs want one place, the table has to be emptied.
"""

from libc.stdint cimport uint64_t

from shared.ring cimport Record

cdef enum:
    TOTALS_PLACES = 64          # a power of two: some policies with the four usual endings

cdef struct Totals:
    uint64_t tag                # the policy's
    uint64_t ending
    uint64_t count              # 0 is a free place


cdef inline bint totals_add(Totals *table, const Record *record) noexcept nogil:
    """Count a closed session; false if its place is taken by others."""
    cdef Totals *self = &table[(record.tag * 4 + record.ending) & (TOTALS_PLACES - 1)]
    if self.count == 0:
        self.tag = record.tag
        self.ending = record.ending
    elif self.tag != record.tag or self.ending != record.ending:
        return False
    self.count += 1
    return True
