"""Sending datagrams that lie in a batch: one sendmmsg for all of them, and trains if neighbours have one size.

A train (UDP_SEGMENT) is one message that the kernel cuts into datagrams: it takes the way down to the device once for
all of them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from state.datagram cimport (
    CONTROL_BYTES, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, IPPROTO_IPV6, IPV6_PKTINFO, IP_PKTINFO,
    MESSAGES_MAX, PARTS_MAX, SOL_UDP, UDP_SEGMENT, Batch, Datagram, c_sendmmsg, c_sendmsg, cmsghdr, in_pktinfo, iovec,
    msghdr,
)
from base.linux cimport (
    EAGAIN, ECONNREFUSED, EINTR, EMSGSIZE, ENOBUFS, ENOMEM, IPPROTO_IP, MSG_DONTWAIT, MSG_NOSIGNAL, c_send, errno,
    ssize_t,
)
from state.return_address cimport ReturnAddress

cdef enum:
    TRAIN_LENGTH_MAX = 64       # UDP_MAX_SEGMENTS of Linux before 6.9, which has 128
    TRAIN_BYTES_MAX = 65507     # what one IPv4 packet may carry, which is what a train is until it leaves
    HEADED_BYTES_MAX = 65507    # of a datagram with a head; as in `oinetd.net.datagrams`

cdef struct Sent:
    int count                   # datagrams that the kernel took
    uint64_t bytes
    int error                   # the last errno of those that it did not take


cdef inline int _train_length(const Batch *self, int first, int end, bint single) noexcept nogil:
    """How many datagrams from `first` on can leave as one message."""
    cdef uint32_t size = self.datagrams[first].size
    cdef uint32_t total = self.head_bytes + size
    cdef int at = first + 1
    if single or size == 0:
        return 1
    while at < end and at - first < TRAIN_LENGTH_MAX:
        if self.datagrams[at].size > size or self.datagrams[at].size == 0:
            break
        total += self.head_bytes + self.datagrams[at].size
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
        if self.head_bytes:
            self.parts[part].iov_base = <void *> self.head
            self.parts[part].iov_len = self.head_bytes
            self.parts[part + 1].iov_base = datagram.data
            self.parts[part + 1].iov_len = datagram.size
            message.msg_iovlen += 2
            part += 2
        elif message.msg_iovlen and _end_of(&self.parts[part - 1]) == datagram.data:
            self.parts[part - 1].iov_len += datagram.size
        else:
            self.parts[part].iov_base = datagram.data
            self.parts[part].iov_len = datagram.size
            message.msg_iovlen += 1
            part += 1
    here = _address(message, &self.out_controls[slot][0], to)
    if count > 1:
        segment = <uint16_t> (self.head_bytes + self.datagrams[first].size)
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
    if count == 1:
        _send_one(self, fd, &self.datagrams[first], to, sent)
        return
    while at < end:
        slots = part = 0
        done = at
        while done < end and slots < MESSAGES_MAX and part + 2 * TRAIN_LENGTH_MAX <= PARTS_MAX:
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
                    sent.bytes += self.out[i].msg_len - <uint32_t> self.out_counts[i] * self.head_bytes
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


cdef inline void _send_one(
    const Batch *self, int fd, const Datagram *datagram, const ReturnAddress *to, Sent *sent
) noexcept nogil:
    """Send a datagram by itself, which is cheaper than as a batch of one."""
    cdef msghdr message
    cdef iovec parts[2]
    cdef int last = 1 if self.head_bytes else 0
    cdef uint8_t control[CONTROL_BYTES]
    cdef ssize_t size
    cdef int _try
    if to != NULL or last:
        memset(&message, 0, sizeof(message))
        parts[0].iov_base = <void *> self.head
        parts[0].iov_len = self.head_bytes
        parts[last].iov_base = datagram.data
        parts[last].iov_len = datagram.size
        message.msg_iov = &parts[0]
        message.msg_iovlen = last + 1
        _address(&message, &control[0], to)
    for _try in range(2):       # the error of an earlier datagram is told to the next one: a second try tells
        if to == NULL and not last:
            size = c_send(fd, datagram.data, datagram.size, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            size = c_sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if size >= 0:
            sent.count += 1
            sent.bytes += <uint64_t> size - self.head_bytes
            return
        if _hopeless(errno):
            break
    sent.error = errno


cdef inline void _send_singly(
    Batch *self, int fd, int first, int count, const ReturnAddress *to, Sent *sent
) noexcept nogil:
    """Send the datagrams of a train that was refused; the messages that wait in `out` stay as they are."""
    cdef int i, error
    for i in range(first, first + count):
        error = sent.error
        sent.error = 0
        _send_one(self, fd, &self.datagrams[i], to, sent)
        if sent.error == 0:
            sent.error = error
        elif _hopeless(sent.error):
            return


cdef inline void batch_send_headed(
    Batch *self, int fd, int first, int count, const uint8_t *head, uint32_t size, bint once, Sent *sent
) noexcept nogil:
    """Send datagrams in order where `fd` is connected to, each behind `head`, which is in no count.

    `once`: only the first one that the kernel takes is behind it. What does not fit into one datagram is lost.
    """
    cdef int end = first + count, at = first, then
    while at < end:
        if size + self.datagrams[at].size > HEADED_BYTES_MAX:
            sent.error = EMSGSIZE
            at += 1
            continue
        then = at + 1
        while not once and then < end and size + self.datagrams[then].size <= HEADED_BYTES_MAX:
            then += 1
        self.head = head
        self.head_bytes = size
        batch_send(self, fd, at, then - at, NULL, False, sent)
        self.head = NULL
        self.head_bytes = 0
        at = then
        if _hopeless(sent.error):
            return
        if once and sent.count:
            if at < end:
                batch_send(self, fd, at, end - at, NULL, False, sent)
            return
