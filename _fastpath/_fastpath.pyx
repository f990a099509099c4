# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The native data plane of oinetd: what of it Python can see.

Everything that runs without Python is in the `.pxd` files beside this one, as inline functions.
"""

from linux cimport (
    EAGAIN, EINVAL, F_GETPIPE_SZ, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK, SPLICE_F_NONBLOCK,
    c_close, c_fcntl, c_pipe2, c_splice, errno,
)


def _number(path):
    """The number in a file of /proc; -1 where there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return -1


def kernel_features():
    """What this kernel and this process offer to the data plane.

    `splice_errno` is 0, or the errno with which splice is refused (a seccomp filter); sizes are bytes, -1 is
    unknown.
    """
    cdef int ends[2]
    cdef int refused = 0
    cdef int default_bytes, raised_bytes
    if c_pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0:
        raise OSError(errno, "no pipe can be made")
    default_bytes = c_fcntl(ends[1], F_GETPIPE_SZ)
    raised_bytes = c_fcntl(ends[1], F_SETPIPE_SZ, <int>(256 * 1024))
    # Both ends of one pipe: a kernel that has splice answers EINVAL, a filter answers for itself.
    if c_splice(ends[0], NULL, ends[1], NULL, 1, SPLICE_F_NONBLOCK) < 0:
        refused = errno
    c_close(ends[0])
    c_close(ends[1])
    return {
        "splice_errno": 0 if refused in (0, EINVAL, EAGAIN) else refused,
        "pipe_default_bytes": default_bytes,
        "pipe_raised_bytes": raised_bytes,
        "pipe_max_bytes": _number("/proc/sys/fs/pipe-max-size"),
        "pipe_user_pages_soft": _number("/proc/sys/fs/pipe-user-pages-soft"),
    }


# The load client of the bench: see load.pxd and load_server.pxd.

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

cimport load
cimport load_server


cdef list histogram_pairs(const uint64_t *histogram):
    return [(index, histogram[index]) for index in range(load.HISTOGRAM_BUCKETS) if histogram[index]]


def load_round_trips(fds, size_t request_bytes, size_t answer_bytes, double duration_s, bytes request=b""):
    """Round trips on connected, blocking sockets: `(operations, elapsed_ns, histogram)`; raises OSError.

    `request` is what is sent, zeros where it is empty. The histogram is a list of `(bucket, count)`.
    """
    cdef int count = len(fds)
    cdef load.LoadTotals totals
    cdef int *descriptors = <int *>calloc(count, sizeof(int))
    cdef uint64_t *histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef bytes payload = request or bytes(request_bytes)
    cdef const char *data = payload
    cdef int status
    if descriptors == NULL or histogram == NULL:
        free(descriptors)
        free(histogram)
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        for index in range(count):
            descriptors[index] = fds[index]
        with nogil:
            status = load.load_round_trips(
                descriptors, count, data, request_bytes, answer_bytes, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "a round trip failed")
        return totals.operations, totals.elapsed_ns, histogram_pairs(histogram)
    finally:
        free(descriptors)
        free(histogram)


def load_connections(bytes address, int count, size_t size, double duration_s):
    """Short connections: `(operations, failures, errno, elapsed_ns, histogram)`; `address` is a `struct sockaddr`."""
    cdef load.LoadTotals totals
    cdef uint64_t *histogram = <uint64_t *>calloc(load.HISTOGRAM_BUCKETS, sizeof(uint64_t))
    cdef uint64_t duration_ns = <uint64_t>(duration_s * 1e9)
    cdef const char *name = address
    cdef load.socklen_t length = len(address)
    cdef bytes payload = bytes(size)
    cdef const char *data = payload
    cdef int status
    if histogram == NULL:
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        with nogil:
            status = load.load_connections(
                <const load.sockaddr *>name, length, count, data, size, duration_ns, histogram, &totals)
        if status < 0:
            raise OSError(-status, "the connections failed")
        return totals.operations, totals.failures, totals.first_errno, totals.elapsed_ns, histogram_pairs(histogram)
    finally:
        free(histogram)


def load_downloads(bytes address, int count, uint64_t size):
    """`count` connections, each downloading `size` bytes: `(elapsed_ns, [(socket_ns, setup_ns, download_ns), …])`."""
    cdef load.LoadTotals totals
    cdef load.LoadTimes *times = <load.LoadTimes *>calloc(count, sizeof(load.LoadTimes))
    cdef const char *name = address
    cdef load.socklen_t length = len(address)
    cdef int status
    if times == NULL:
        raise MemoryError
    totals = load.LoadTotals(0, 0, 0, 0)
    try:
        with nogil:
            status = load.load_downloads(<const load.sockaddr *>name, length, count, size, times, &totals)
        if status < 0:
            raise OSError(-status, "a download failed")
        return totals.elapsed_ns, [
            (times[index].socket_ns, times[index].setup_ns, times[index].download_ns) for index in range(count)]
    finally:
        free(times)


def load_serve(int listener, int stop_fd, bint source):
    """Serve the bench's loads on a listening, non-blocking socket until `stop_fd` is readable; the number served."""
    cdef uint64_t accepted = 0
    cdef int status
    with nogil:
        status = load_server.load_serve(
            listener, stop_fd, load_server.LOAD_SOURCE if source else load_server.LOAD_ECHO, &accepted)
    if status < 0:
        raise OSError(-status, "the server failed")
    return accepted
