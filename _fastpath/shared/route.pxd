"""What the kernel's routing does with an address. It is asked by rtnetlink (10 us); nothing is sent there.

The source that a connect gets does not tell that of every address: that of a second IPv4 address of a network is the
first one of it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from base.address cimport Address, address_is_four
from base.socket cimport is_shortage
from base.linux cimport (
    AF_INET, AF_INET6, AF_NETLINK, NETLINK_ROUTE, NLM_F_REQUEST, RTA_DST,
    RTM_GETROUTE, RTM_NEWROUTE, RTN_LOCAL, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW, c_close, c_recv, c_send, c_socket,
    errno, nlmsghdr, rtattr, rtmsg,
)

cdef enum:
    ANSWER_BYTES = 1024

    ROUTE_UNKNOWN = -1          # the kernel does not say
    ROUTE_AWAY = 0              # to another machine, or nowhere
    ROUTE_HERE = 1              # to this machine: to an address of it, or by a local route

cdef struct RouteQuestion:
    nlmsghdr head
    rtmsg route
    rtattr to
    uint8_t ip[16]

cdef struct RouteAnswer:
    nlmsghdr head
    rtmsg route
    uint8_t rest[ANSWER_BYTES]


cdef inline int route_of(const Address *address) noexcept nogil:
    """Where packets to an address go: ROUTE_..., or -errno without a descriptor or memory to ask."""
    cdef uint32_t skipped = 12 if address_is_four(address) else 0
    cdef uint32_t size = sizeof(RouteQuestion) - skipped
    cdef int fd = c_socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE)
    cdef RouteQuestion question
    cdef RouteAnswer answer
    cdef long got = -1
    if fd < 0:
        return -errno if is_shortage(errno) else ROUTE_UNKNOWN
    memset(&question, 0, sizeof(question))
    question.head.nlmsg_len = size
    question.head.nlmsg_type = RTM_GETROUTE
    question.head.nlmsg_flags = NLM_F_REQUEST
    question.route.rtm_family = AF_INET if skipped else AF_INET6
    question.route.rtm_dst_len = <uint8_t> (8 * (16 - skipped))
    question.to.rta_len = <uint16_t> (sizeof(rtattr) + 16 - skipped)
    question.to.rta_type = RTA_DST
    memcpy(question.ip, &address.ip[skipped], 16 - skipped)
    if c_send(fd, &question, size, 0) == <long> size:
        got = c_recv(fd, &answer, sizeof(answer), 0)    # the kernel has answered by now
    c_close(fd)
    if got < <long> sizeof(nlmsghdr):
        return ROUTE_UNKNOWN
    if answer.head.nlmsg_type != RTM_NEWROUTE or got < <long> (sizeof(nlmsghdr) + sizeof(rtmsg)):
        return ROUTE_AWAY       # an error: there is no route
    return ROUTE_HERE if answer.route.rtm_type == RTN_LOCAL else ROUTE_AWAY
