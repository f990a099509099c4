"""Datagrams in batches: one recvmmsg takes them, one sendmmsg gives them on, and nothing is copied in between.

What is received is put in order by sender, so that the datagrams of each are neighbours: a group, which is sent as it
lies in the batch (`datagram_send`). Trains that arrive (UDP_GRO) are taken apart by their segment size, so that
boundaries are those of the sender whatever the kernel did on the way.

A datagram may be empty. A train's datagrams have one size, but for the last, which may be shorter and not empty.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from base.address cimport MAPPED_PREFIX
from shared.forged cimport is_forged
from base.linux cimport (
    AF_INET6, EAGAIN, EINTR, IPPROTO_IP, MSG_DONTWAIT, c_setsockopt, errno, in_addr, in6_addr, sockaddr_in6, socklen_t,
    ssize_t,
)
from state.return_address cimport ReturnAddress, return_address_hash, return_address_same

cdef extern from "<sys/random.h>" nogil:
    ssize_t c_getrandom "getrandom"(void *data, size_t size, unsigned int flags)
    enum:
        GRND_NONBLOCK

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <sys/socket.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    """
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    int c_recvmmsg "recvmmsg"(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout) nogil
    int c_sendmmsg "sendmmsg"(int fd, mmsghdr *messages, unsigned int count, int flags) nogil
    ssize_t c_sendmsg "sendmsg"(int fd, const msghdr *message, int flags) nogil
    cmsghdr *CMSG_FIRSTHDR(msghdr *message) nogil
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *here) nogil
    void *CMSG_DATA(cmsghdr *here) nogil
    size_t CMSG_LEN(size_t size) nogil
    size_t CMSG_SPACE(size_t size) nogil
    enum:
        IPPROTO_IPV6, IP_PKTINFO, IPV6_PKTINFO, SOL_UDP, UDP_SEGMENT, UDP_GRO

cdef enum:
    MESSAGES_MAX = 64           # one recvmmsg; more of them gain nothing that shows
    MESSAGE_BYTES = 65536       # above every datagram (65,507 bytes, over IPv6 65,527) and every train
    MESSAGE_STRIDE = 67008      # not a power of two: the heads of all places would share one set of the caches
    DATAGRAMS_MAX = MESSAGES_MAX * 128
    PARTS_MAX = 1024
    CONTROL_BYTES = 128         # pktinfo of both families and a segment size take 96

cdef struct Datagram:
    char *data
    uint32_t size

cdef struct Group:
    ReturnAddress sender
    uint64_t hash               # of the sender; 0 if it was not asked for
    int first, count            # among the datagrams
    int head, tail              # its messages, linked by `next_message`

cdef struct Batch:
    char *memory
    uint64_t seed               # of the senders' hashes
    mmsghdr named[MESSAGES_MAX]
    mmsghdr plain[MESSAGES_MAX]     # for connected sockets
    int named_used, plain_used  # those that the kernel wrote to, the first ones
    iovec places[MESSAGES_MAX]
    sockaddr_in6 names[MESSAGES_MAX]
    uint8_t controls[MESSAGES_MAX][CONTROL_BYTES]
    int next_message[MESSAGES_MAX]
    Group groups[MESSAGES_MAX]
    int group_count
    Datagram datagrams[DATAGRAMS_MAX]
    int datagram_count
    int forged                  # datagrams that were received and dropped: see `forged`
    mmsghdr out[MESSAGES_MAX]
    iovec parts[PARTS_MAX]
    uint8_t out_controls[MESSAGES_MAX][CONTROL_BYTES]
    int out_counts[MESSAGES_MAX]    # the datagrams of each message
    const uint8_t *head         # what `batch_send_headed` puts before each datagram; between two of them there is none
    uint32_t head_bytes


cdef inline void _prepare(Batch *self, msghdr *message, int i) noexcept nogil:
    message.msg_iov = &self.places[i]
    message.msg_iovlen = 1
    message.msg_control = &self.controls[i][0]
    message.msg_controllen = CONTROL_BYTES


cdef inline Batch *batch_new() noexcept nogil:
    """An empty batch; NULL if there is no memory. Pages that no datagram ever reached take none."""
    cdef Batch *self = <Batch *> calloc(1, sizeof(Batch))
    if self == NULL:
        return NULL
    self.memory = <char *> malloc(<size_t> MESSAGES_MAX * MESSAGE_STRIDE)
    if self.memory == NULL:
        free(self)
        return NULL
    for i in range(MESSAGES_MAX):
        self.places[i].iov_base = self.memory + <size_t> i * MESSAGE_STRIDE
        self.places[i].iov_len = MESSAGE_BYTES
        _prepare(self, &self.named[i].msg_hdr, i)
        _prepare(self, &self.plain[i].msg_hdr, i)
        self.named[i].msg_hdr.msg_name = &self.names[i]
        self.named[i].msg_hdr.msg_namelen = sizeof(sockaddr_in6)
    # Without entropy the addresses of the heap have to do.
    if c_getrandom(&self.seed, sizeof(self.seed), GRND_NONBLOCK) != sizeof(self.seed):
        self.seed = <uint64_t> self.memory
    return self


cdef inline void batch_free(Batch *self) noexcept nogil:
    if self != NULL:
        free(self.memory)
        free(self)


cdef inline bint take_trains(int fd) noexcept nogil:
    """Let the kernel hand over several datagrams of one sender in one message; False if it cannot."""
    cdef int on = 1
    return c_setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)) == 0


cdef inline void _renew(mmsghdr *messages, int used, bint named) noexcept nogil:
    """Make headers that the kernel wrote to good for another call."""
    cdef int i
    for i in range(used):
        messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in6) if named else 0
        messages[i].msg_hdr.msg_controllen = CONTROL_BYTES


cdef inline int batch_receive(Batch *self, int fd, int at_most, bint named) noexcept nogil:
    """Take what there is, at most this many messages; the number of them, 0 for none now, or -errno.

    Fewer than asked for means that there were no more, or that an error is next. `named` asks for the senders;
    without it, for a connected socket, all is one group.
    """
    cdef mmsghdr *messages = &self.named[0] if named else &self.plain[0]
    cdef int *used = &self.named_used if named else &self.plain_used
    cdef int got
    self.group_count = self.datagram_count = self.forged = 0
    _renew(messages, used[0], named)
    used[0] = 0
    got = c_recvmmsg(fd, messages, min(at_most, <int> MESSAGES_MAX), MSG_DONTWAIT, NULL)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    used[0] = got
    _sort(self, messages, got, named)
    return got


cdef inline void _local_four(ReturnAddress *sender, const in_pktinfo *info, bint mapped) noexcept nogil:
    """Answer from the address that the kernel names: where it was written to, or the interface's for a broadcast.

    The way back is for the routing table to choose.
    """
    cdef in_pktinfo *four = <in_pktinfo *> sender.local
    cdef in6_pktinfo *six = <in6_pktinfo *> sender.local
    cdef uint8_t *ip = <uint8_t *> &six.ipi6_addr
    memset(sender.local, 0, sizeof(sender.local))
    if mapped:
        memcpy(ip, MAPPED_PREFIX, 12)
        memcpy(&ip[12], &info.ipi_spec_dst, 4)
        sender.local_size = sizeof(in6_pktinfo)
    else:
        four.ipi_spec_dst = info.ipi_spec_dst
        sender.local_size = sizeof(in_pktinfo)


cdef inline void _local_six(ReturnAddress *sender, const in6_pktinfo *info) noexcept nogil:
    """Answer from the address that was written to; a multicast address can be no source."""
    cdef in6_pktinfo *six = <in6_pktinfo *> sender.local
    if info.ipi6_addr.s6_addr[0] == 0xff:
        return
    six[0] = info[0]
    if not (six.ipi6_addr.s6_addr[0] == 0xfe and six.ipi6_addr.s6_addr[1] & 0xc0 == 0x80):
        six.ipi6_ifindex = 0                # only link-local addresses need theirs
    sender.local_size = sizeof(in6_pktinfo)


cdef inline uint32_t _read_control(msghdr *message, ReturnAddress *sender, bint six, bint *over_four) noexcept nogil:
    """Note in `sender` where the message was sent to; answer the size of its segments, 0 if it is one datagram.

    `six` says that the socket is an IPv6 one, `over_four` whether the kernel says that the message came over IPv4.
    """
    cdef cmsghdr *here = CMSG_FIRSTHDR(message)
    cdef uint32_t segment = 0
    over_four[0] = False
    while here != NULL:
        if here.cmsg_level == SOL_UDP and here.cmsg_type == UDP_GRO:
            memcpy(&segment, CMSG_DATA(here), sizeof(int))
        elif here.cmsg_level == IPPROTO_IP and here.cmsg_type == IP_PKTINFO:
            over_four[0] = True
            _local_four(sender, <in_pktinfo *> CMSG_DATA(here), six)
        elif here.cmsg_level == IPPROTO_IPV6 and here.cmsg_type == IPV6_PKTINFO and not over_four[0]:
            _local_six(sender, <in6_pktinfo *> CMSG_DATA(here))
        here = CMSG_NXTHDR(message, here)
    return segment


cdef inline int _group_of(Batch *self, int last, const ReturnAddress *sender, uint64_t hash) noexcept nogil:
    """The group of a sender, most often that of the message before; `group_count` if it has none yet."""
    cdef int at
    if last < self.group_count and self.groups[last].hash == hash:
        if return_address_same(&self.groups[last].sender, sender):
            return last
    for at in range(self.group_count):
        if self.groups[at].hash == hash and return_address_same(&self.groups[at].sender, sender):
            return at
    return self.group_count


cdef inline void _sort(Batch *self, mmsghdr *messages, int got, bint named) noexcept nogil:
    """Give every message to the group of its sender, then lay the datagrams out group by group."""
    cdef int i, at = 0
    cdef uint32_t segments[MESSAGES_MAX]
    cdef ReturnAddress sender
    cdef uint64_t hash = 0
    cdef Group *group
    cdef msghdr *message
    cdef bint over_four
    for i in range(got):
        message = &messages[i].msg_hdr
        memset(&sender, 0, sizeof(sender))
        segments[i] = _read_control(message, &sender, named and self.names[i].sin6_family == AF_INET6, &over_four)
        if named:
            if is_forged(&self.names[i], over_four):
                self.forged += _length_of(messages[i].msg_len, segments[i])
                continue
            sender.place_size = message.msg_namelen
            memcpy(&sender.place, &self.names[i], message.msg_namelen)
            hash = return_address_hash(&sender, self.seed)
        else:
            memset(sender.local, 0, sizeof(sender.local))
            sender.local_size = 0
        at = _group_of(self, at, &sender, hash)
        group = &self.groups[at]
        self.next_message[i] = -1
        if at == self.group_count:
            self.group_count += 1
            memcpy(&group.sender, &sender, sizeof(sender))
            group.hash = hash
            group.head = i
        else:
            self.next_message[group.tail] = i
        group.tail = i
    for at in range(self.group_count):
        group = &self.groups[at]
        group.first = self.datagram_count
        i = group.head
        while i >= 0:
            _split(self, <char *> self.places[i].iov_base, messages[i].msg_len, segments[i])
            i = self.next_message[i]
        group.count = self.datagram_count - group.first


cdef inline int _length_of(uint32_t size, uint32_t segment) noexcept nogil:
    """How many datagrams a message is."""
    return <int> ((size + segment - 1) // segment) if segment and size else 1


cdef inline void _split(Batch *self, char *data, uint32_t left, uint32_t segment) noexcept nogil:
    """Add one message's datagrams. A train has at most 128, so that there is room for all."""
    cdef uint32_t size
    while self.datagram_count < DATAGRAMS_MAX:
        size = min(left, segment) if segment else left
        self.datagrams[self.datagram_count].data = data
        self.datagrams[self.datagram_count].size = size
        self.datagram_count += 1
        data += size
        left -= size
        if left == 0:
            return
