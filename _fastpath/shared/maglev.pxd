"""Fills the table of `balance=source`. `oinetd.upstream.maglev` says how, and computes what each server begins with."""

from libc.stdint cimport int16_t, uint32_t

from shared.group cimport TABLE_SIZE


cdef inline void maglev_fill(
    int16_t *table, uint32_t *places, const uint32_t *steps, const uint32_t *turns, const int16_t *members, int count
) noexcept nogil:
    """Fill a table for `count` servers, at least one, in the order of their names: in each round a server takes as many
    of its next free entries as it has `turns`. An entry is the number of its member; `places` is written over."""
    cdef int left = TABLE_SIZE
    cdef int i
    cdef uint32_t place, _turn
    for i in range(TABLE_SIZE):
        table[i] = -1
    while True:     # bounded: each round fills entries
        for i in range(count):
            place = places[i]
            for _turn in range(turns[i]):
                while table[place] >= 0:    # bounded: one is free, and the steps visit every entry
                    place += steps[i]
                    if place >= TABLE_SIZE:
                        place -= TABLE_SIZE
                table[place] = members[i]
                left -= 1
                if left == 0:
                    return
            places[i] = place
