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
