"""Datagrams in batches: one recvmmsg takes them, one sendmmsg gives them on, and nothing is copied in between.

What is received is put in order by sender, so that the datagrams of each are neighbours: a group. A group is sent as
it lies in the batch. Neighbours of one size leave as a train (UDP_SEGMENT): the kernel takes the way down to the
device once for all of them. Trains that arrive (UDP_GRO) are taken apart by their segment size, so that boundaries are
those of the sender whatever the kernel did on the way.

A datagram may be empty. A train's datagrams have one size, but for the last, which may be shorter and not empty.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from linux cimport (
    AF_INET, AF_INET6, EAGAIN, ECONNREFUSED, EINTR, ENOBUFS, ENOMEM, IPPROTO_IP, MSG_DONTWAIT, MSG_NOSIGNAL,
    c_setsockopt, errno, in_addr, in6_addr, sockaddr_in6, socklen_t, ssize_t,
)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
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
    cmsghdr *CMSG_FIRSTHDR(msghdr *message) nogil
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *here) nogil
    void *CMSG_DATA(cmsghdr *here) nogil
    size_t CMSG_LEN(size_t size) nogil
    size_t CMSG_SPACE(size_t size) nogil
    enum:
        EMSGSIZE, IPPROTO_IPV6, IP_PKTINFO, IPV6_PKTINFO, SOL_UDP, UDP_SEGMENT, UDP_GRO

cdef enum:
    MESSAGES_MAX = 64           # one recvmmsg; more of them gain nothing that shows
    MESSAGE_BYTES = 65536       # above every datagram (65,507 bytes, over IPv6 65,527) and every train
    TRAIN_LENGTH_MAX = 64       # UDP_MAX_SEGMENTS of Linux before 6.9, which has 128
    TRAIN_BYTES_MAX = 65507     # what one IPv4 packet may carry, which is what a train is until it leaves
    DATAGRAMS_MAX = MESSAGES_MAX * 128
    PARTS_MAX = 1024
    CONTROL_BYTES = 128         # pktinfo of either family and a segment size take 64

cdef struct Datagram:
    char *data
    uint32_t size

cdef struct ReturnAddress:      # no padding that is not zero: its bytes are the key of a session
    sockaddr_in6 place          # of either family: who sent it
    uint32_t place_size
    uint32_t local_size         # of what is valid in `local`; 0 where the socket is bound to one address
    uint8_t local[20]           # in_pktinfo or in6_pktinfo: the address of ours that was written to

cdef struct Group:
    ReturnAddress sender
    int first, count            # among the datagrams
    int head, tail              # its messages, linked by `next_message`

cdef struct Sent:
    int count                   # datagrams that the kernel took
    uint64_t bytes
    int error                   # the last errno of those that it did not take

cdef struct Batch:
    char *memory
    mmsghdr messages[MESSAGES_MAX]
    iovec places[MESSAGES_MAX]
    sockaddr_in6 names[MESSAGES_MAX]
    uint8_t controls[MESSAGES_MAX][CONTROL_BYTES]
    int next_message[MESSAGES_MAX]
    Group groups[MESSAGES_MAX]
    int group_count
    Datagram datagrams[DATAGRAMS_MAX]
    int datagram_count
    mmsghdr out[MESSAGES_MAX]
    iovec parts[PARTS_MAX]
    uint8_t out_controls[MESSAGES_MAX][CONTROL_BYTES]
    int out_counts[MESSAGES_MAX]    # the datagrams of each message


cdef inline Batch *batch_new() noexcept nogil:
    """An empty batch; NULL where there is no memory. Pages that no datagram ever reached take none."""
    cdef Batch *self = <Batch *> calloc(1, sizeof(Batch))
    if self == NULL:
        return NULL
    self.memory = <char *> malloc(<size_t> MESSAGES_MAX * MESSAGE_BYTES)
    if self.memory == NULL:
        free(self)
        return NULL
    for i in range(MESSAGES_MAX):
        self.places[i].iov_base = self.memory + <size_t> i * MESSAGE_BYTES
        self.places[i].iov_len = MESSAGE_BYTES
        self.messages[i].msg_hdr.msg_iov = &self.places[i]
        self.messages[i].msg_hdr.msg_iovlen = 1
    return self


cdef inline void batch_free(Batch *self) noexcept nogil:
    if self != NULL:
        free(self.memory)
        free(self)


cdef inline bint take_trains(int fd) noexcept nogil:
    """Let the kernel hand over several datagrams of one sender in one message; False where it cannot."""
    cdef int on = 1
    return c_setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)) == 0


# Receiving

cdef inline int batch_receive(Batch *self, int fd, int at_most, bint named) noexcept nogil:
    """Take what there is, at most so many messages; the number of them, 0 for none now, or -errno.

    `named` asks for the senders; without it, for a connected socket, all is one group.
    """
    cdef int i, got
    cdef msghdr *message
    self.group_count = self.datagram_count = 0
    at_most = min(at_most, <int> MESSAGES_MAX)
    for i in range(at_most):
        message = &self.messages[i].msg_hdr
        message.msg_name = &self.names[i] if named else NULL
        message.msg_namelen = sizeof(sockaddr_in6) if named else 0
        message.msg_control = &self.controls[i][0]
        message.msg_controllen = CONTROL_BYTES
    got = c_recvmmsg(fd, self.messages, at_most, MSG_DONTWAIT, NULL)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    _sort(self, got, named)
    return got


cdef inline uint32_t _read_control(msghdr *message, ReturnAddress *sender) noexcept nogil:
    """Note in `sender` where the message was sent to; answer the size of its segments, 0 where it is one datagram."""
    cdef cmsghdr *here = CMSG_FIRSTHDR(message)
    cdef in_pktinfo *four
    cdef in6_pktinfo *six
    cdef uint32_t segment = 0
    while here != NULL:
        if here.cmsg_level == SOL_UDP and here.cmsg_type == UDP_GRO:
            memcpy(&segment, CMSG_DATA(here), sizeof(int))
        elif here.cmsg_level == IPPROTO_IP and here.cmsg_type == IP_PKTINFO:
            memcpy(sender.local, CMSG_DATA(here), sizeof(in_pktinfo))
            four = <in_pktinfo *> sender.local
            # For a broadcast this is the interface's address. The way back is for the routing table to choose.
            four.ipi_ifindex = 0
            memset(&four.ipi_addr, 0, sizeof(in_addr))
            sender.local_size = sizeof(in_pktinfo)
        elif here.cmsg_level == IPPROTO_IPV6 and here.cmsg_type == IPV6_PKTINFO:
            memcpy(sender.local, CMSG_DATA(here), sizeof(in6_pktinfo))
            six = <in6_pktinfo *> sender.local
            if six.ipi6_addr.s6_addr[0] == 0xff:        # a multicast address can be no source
                memset(sender.local, 0, sizeof(in6_pktinfo))
            else:
                if not (six.ipi6_addr.s6_addr[0] == 0xfe and six.ipi6_addr.s6_addr[1] & 0xc0 == 0x80):
                    six.ipi6_ifindex = 0                # only link-local addresses need theirs
                sender.local_size = sizeof(in6_pktinfo)
        here = CMSG_NXTHDR(message, here)
    return segment


cdef inline void _sort(Batch *self, int got, bint named) noexcept nogil:
    """Give every message to the group of its sender, then lay the datagrams out group by group."""
    cdef int i, at = 0, last = 0
    cdef uint32_t segments[MESSAGES_MAX]
    cdef ReturnAddress sender
    cdef Group *group
    cdef msghdr *message
    for i in range(got):
        message = &self.messages[i].msg_hdr
        memset(&sender, 0, sizeof(sender))
        segments[i] = _read_control(message, &sender)
        if named:
            sender.place_size = message.msg_namelen
            memcpy(&sender.place, &self.names[i], message.msg_namelen)
        else:
            memset(sender.local, 0, sizeof(sender.local))
            sender.local_size = 0
        # Most often it is the sender of the message before.
        at = last
        if at == self.group_count or memcmp(&self.groups[at].sender, &sender, sizeof(sender)) != 0:
            at = 0
            while at < self.group_count and memcmp(&self.groups[at].sender, &sender, sizeof(sender)) != 0:
                at += 1
        last = at
        group = &self.groups[at]
        self.next_message[i] = -1
        if at == self.group_count:
            self.group_count += 1
            memcpy(&group.sender, &sender, sizeof(sender))
            group.head = i
        else:
            self.next_message[group.tail] = i
        group.tail = i
    for at in range(self.group_count):
        group = &self.groups[at]
        group.first = self.datagram_count
        i = group.head
        while i >= 0:
            _split(self, <char *> self.places[i].iov_base, self.messages[i].msg_len, segments[i])
            i = self.next_message[i]
        group.count = self.datagram_count - group.first


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


# Sending

cdef inline int _train_length(const Batch *self, int first, int end, bint single) noexcept nogil:
    """How many datagrams from `first` on can leave as one message."""
    cdef uint32_t size = self.datagrams[first].size
    cdef uint32_t total = size
    cdef int at = first + 1
    if single or size == 0:
        return 1
    while at < end and at - first < TRAIN_LENGTH_MAX:
        if self.datagrams[at].size > size or self.datagrams[at].size == 0:
            break
        total += self.datagrams[at].size
        if total > TRAIN_BYTES_MAX:
            break
        at += 1
        if self.datagrams[at - 1].size < size:
            break       # a shorter one ends the train
    return at - first


cdef inline cmsghdr *_address(msghdr *message, void *control, const ReturnAddress *to) noexcept nogil:
    """Say where to and where from, in `control`; the place for the next control message, which is not counted yet."""
    cdef cmsghdr *here
    cdef bint four
    message.msg_name = NULL
    message.msg_namelen = 0
    message.msg_control = control
    message.msg_controllen = CONTROL_BYTES
    memset(control, 0, CONTROL_BYTES)
    here = CMSG_FIRSTHDR(message)
    message.msg_controllen = 0
    if to == NULL:
        return here
    message.msg_name = <void *> &to.place
    message.msg_namelen = to.place_size
    if to.local_size:
        four = to.local_size == sizeof(in_pktinfo)
        here.cmsg_level = IPPROTO_IP if four else IPPROTO_IPV6
        here.cmsg_type = IP_PKTINFO if four else IPV6_PKTINFO
        here.cmsg_len = CMSG_LEN(to.local_size)
        memcpy(CMSG_DATA(here), to.local, to.local_size)
        message.msg_controllen = CMSG_SPACE(to.local_size)
        here = <cmsghdr *> (<char *> control + message.msg_controllen)
    return here


cdef inline char *_end_of(const iovec *part) noexcept nogil:
    return <char *> part.iov_base + part.iov_len


cdef inline int _compose(
    Batch *self, int slot, int part, int first, int count, const ReturnAddress *to
) noexcept nogil:
    """Make message `slot` of the datagrams, with its parts from `part` on; the next free part."""
    cdef msghdr *message = &self.out[slot].msg_hdr
    cdef cmsghdr *here
    cdef uint16_t segment
    cdef int i
    cdef Datagram *datagram
    message.msg_iov = &self.parts[part]
    message.msg_iovlen = 0
    for i in range(first, first + count):
        datagram = &self.datagrams[i]
        if message.msg_iovlen and _end_of(&self.parts[part - 1]) == datagram.data:
            self.parts[part - 1].iov_len += datagram.size
        else:
            self.parts[part].iov_base = datagram.data
            self.parts[part].iov_len = datagram.size
            message.msg_iovlen += 1
            part += 1
    here = _address(message, &self.out_controls[slot][0], to)
    if count > 1:
        segment = self.datagrams[first].size
        here.cmsg_level = SOL_UDP
        here.cmsg_type = UDP_SEGMENT
        here.cmsg_len = CMSG_LEN(sizeof(segment))
        memcpy(CMSG_DATA(here), &segment, sizeof(segment))
        message.msg_controllen += CMSG_SPACE(sizeof(segment))
    self.out_counts[slot] = count
    return part


cdef inline bint _hopeless(int error) noexcept nogil:
    """Whether what follows would fare no better: the queue is full, or nobody listens."""
    return error == EAGAIN or error == ENOBUFS or error == ENOMEM or error == ECONNREFUSED


cdef inline void batch_send(
    Batch *self, int fd, int first, int count, const ReturnAddress *to, bint single, Sent *sent
) noexcept nogil:
    """Send datagrams in order, to `to` or where `fd` is connected to; `single` makes no trains.

    What the kernel does not take now is lost, as it would be in a network. A train that it refuses as such (a
    segment above the path's MTU, a device without checksums) goes one by one.
    """
    cdef int end = first + count, at = first
    cdef int slots, part, done, took, length, i, error
    cdef bint again
    while at < end:
        slots = part = 0
        done = at
        while done < end and slots < MESSAGES_MAX and part + TRAIN_LENGTH_MAX <= PARTS_MAX:
            length = _train_length(self, done, end, single)
            part = _compose(self, slots, part, done, length, to)
            slots += 1
            done += length
        done = 0
        again = True
        while done < slots:     # bounded: each turn sends a message, gives one up, or is the second try for one
            took = c_sendmmsg(fd, &self.out[done], slots - done, MSG_DONTWAIT | MSG_NOSIGNAL)
            if took > 0:
                for i in range(done, done + took):
                    sent.count += self.out_counts[i]
                    sent.bytes += self.out[i].msg_len
                    at += self.out_counts[i]
                done += took
                again = True
                continue
            error = errno
            if error == EINTR:
                continue
            if _hopeless(error):
                sent.error = error
                return
            if self.out_counts[done] > 1:
                _send_singly(self, fd, at, self.out_counts[done], to, sent)
                if sent.error and _hopeless(sent.error):
                    return
            elif again:
                # The error of an earlier datagram (a router's word about its size) is told to the next one.
                again = False
                continue
            else:
                sent.error = error
            at += self.out_counts[done]
            done += 1
            again = True


cdef inline void _send_singly(
    Batch *self, int fd, int first, int count, const ReturnAddress *to, Sent *sent
) noexcept nogil:
    """Send the datagrams of a train that was refused; the messages that wait in `out` stay as they are."""
    cdef mmsghdr one
    cdef iovec part
    cdef int i
    cdef uint8_t control[CONTROL_BYTES]
    memset(&one, 0, sizeof(one))
    one.msg_hdr.msg_iov = &part
    one.msg_hdr.msg_iovlen = 1
    _address(&one.msg_hdr, &control[0], to)
    for i in range(first, first + count):
        part.iov_base = self.datagrams[i].data
        part.iov_len = self.datagrams[i].size
        if c_sendmmsg(fd, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1:
            sent.count += 1
            sent.bytes += self.datagrams[i].size
        else:
            sent.error = errno
            if _hopeless(errno):
                return
