"""What the data plane takes from Linux and the C library: declarations only, one place for all of them."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EACCES, EAGAIN, EINTR, EINPROGRESS, EINVAL, EMSGSIZE, ENOSYS, EPERM, EPIPE, EMFILE, ENFILE, ENOBUFS, ENOMEM
        ECONNRESET, ECONNABORTED, EPROTO, ETIMEDOUT, ECANCELED, EAFNOSUPPORT, EADDRNOTAVAIL, ENETDOWN, EHOSTUNREACH
        ENOENT, ECONNREFUSED, ENOTCONN, ENOPROTOOPT, ELOOP, EIO

cdef extern from "<assert.h>" nogil:
    # NDEBUG stays undefined: the invariants are checked in production too.
    void c_assert "assert"(bint condition)

cdef extern from "<unistd.h>" nogil:
    ctypedef int64_t ssize_t
    int c_close "close"(int fd)
    ssize_t c_read "read"(int fd, void *data, size_t size)
    ssize_t c_write "write"(int fd, const void *data, size_t size)
    int usleep(unsigned int microseconds)
    long sysconf(int name)
    int gettid()
    enum:
        _SC_PAGESIZE

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd *fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN

cdef extern from "<sys/resource.h>" nogil:
    struct rusage:
        long ru_nivcsw
    int getrusage(int who, rusage *usage)
    enum:
        RUSAGE_THREAD

cdef extern from "<fcntl.h>" nogil:
    int c_pipe2 "pipe2"(int *fds, int flags)
    int c_fcntl "fcntl"(int fd, int command, ...)
    ssize_t c_splice "splice"(int fd_in, void *off_in, int fd_out, void *off_out, size_t size, unsigned int flags)
    enum:
        O_NONBLOCK, O_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ, SPLICE_F_MOVE, SPLICE_F_NONBLOCK

cdef extern from "<sys/eventfd.h>" nogil:
    int c_eventfd "eventfd"(unsigned int value, int flags)
    enum:
        EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int c_epoll_create1 "epoll_create1"(int flags)
    int c_epoll_ctl "epoll_ctl"(int epfd, int op, int fd, epoll_event *event)
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event *events, int count, int timeout_ms)
    enum:
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
        EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLET, EPOLLEXCLUSIVE

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef uint16_t sa_family_t
    struct sockaddr:
        sa_family_t sa_family
    struct sockaddr_storage:
        sa_family_t ss_family
    struct linger:
        int l_onoff
        int l_linger
    int c_socket "socket"(int family, int kind, int protocol)
    int c_accept4 "accept4"(int fd, sockaddr *address, socklen_t *size, int flags)
    int c_bind "bind"(int fd, const sockaddr *address, socklen_t size)
    int c_connect "connect"(int fd, const sockaddr *address, socklen_t size)
    int c_getsockname "getsockname"(int fd, sockaddr *address, socklen_t *size)
    int c_getpeername "getpeername"(int fd, sockaddr *address, socklen_t *size)
    int c_shutdown "shutdown"(int fd, int how)
    int c_getsockopt "getsockopt"(int fd, int level, int name, void *value, socklen_t *size)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void *value, socklen_t size)
    ssize_t c_recv "recv"(int fd, void *data, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags)
    enum:
        AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_NONBLOCK, SOCK_CLOEXEC
        SHUT_WR, SOL_SOCKET
        SO_BROADCAST, SO_DOMAIN, SO_ERROR, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_PEERCRED, SO_RCVBUF
        MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, SO_RCVLOWAT

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]

cdef extern from *:
    """
    struct oi_ucred { int pid; unsigned int uid; unsigned int gid; };   /* struct ucred needs _GNU_SOURCE */
    """
    struct ucred "oi_ucred":
        int pid
        uint32_t uid
        uint32_t gid

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    enum:
        IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP

cdef extern from *:
    """
    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif
    """
    enum:
        IP_BIND_ADDRESS_NO_PORT

cdef extern from *:
    """
    #define OI_SO_ORIGINAL_DST 80   /* of linux/netfilter_ipv4.h, and of ip6_tables.h, at both levels */
    """
    enum:
        SO_ORIGINAL_DST "OI_SO_ORIGINAL_DST"

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_MAXSEG, TCP_NODELAY, TCP_QUICKACK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)
    int inet_pton(int family, const char *text, void *address)

cdef extern from "<net/if.h>" nogil:
    char *if_indextoname(unsigned int index, char *name)
    enum:
        IF_NAMESIZE

cdef extern from "<sys/ioctl.h>" nogil:
    int c_ioctl "ioctl"(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>" nogil:
    enum:
        SIOCOUTQ

cdef extern from "<linux/rtnetlink.h>" nogil:
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
    struct rtmsg:
        uint8_t rtm_family
        uint8_t rtm_dst_len
        uint8_t rtm_type
    struct rtattr:
        uint16_t rta_len
        uint16_t rta_type
    enum:
        NETLINK_ROUTE, NLM_F_REQUEST, RTM_NEWROUTE, RTM_GETROUTE, RTA_DST, RTN_LOCAL

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    ctypedef int clockid_t
    int clock_gettime(int clock, timespec *now)
    enum:
        CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *signals)
    enum:
        SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *thread, const void *attributes, void *(*body)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **answer)
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)
    int pthread_getcpuclockid(pthread_t thread, clockid_t *clock)
    int pthread_setname_np(pthread_t thread, const char *name)
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_broadcast(pthread_cond_t *condition)
