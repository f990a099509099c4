"""Atomics, in the three strengths that are used.

`get`, `put`, `add` are relaxed: counters that are only looked at. `take`/`give` are acquire and release: a ring's
indices. `swap`, `see`, `show`, `raise_by` are sequentially consistent: two parties that each write one word and then
read the other's ("I pause" against "one is free now") and must not both miss it.
"""

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    static inline uint64_t oi_get(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void oi_put(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint64_t oi_add(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    static inline uint64_t oi_take(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void oi_give(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t oi_see(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void oi_show(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t oi_swap(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t oi_raise_by(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline int oi_replace(uint64_t *p, uint64_t old, uint64_t v) {
        return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    uint64_t oi_get(const uint64_t *word)
    void oi_put(uint64_t *word, uint64_t value)
    uint64_t oi_add(uint64_t *word, uint64_t value)
    uint64_t oi_take(const uint64_t *word)
    void oi_give(uint64_t *word, uint64_t value)
    uint64_t oi_see(const uint64_t *word)
    void oi_show(uint64_t *word, uint64_t value)
    uint64_t oi_swap(uint64_t *word, uint64_t value)
    uint64_t oi_raise_by(uint64_t *word, uint64_t value)
    bint oi_replace(uint64_t *word, uint64_t old, uint64_t value)
