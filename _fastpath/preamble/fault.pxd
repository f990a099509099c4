"""Why bytes before the relay are refused: the numbers of `oinetd.preamble.progress.Fault`."""

cdef enum:
    FAULT_SIGNATURE = 1
    FAULT_LINE_TOO_LONG = 2
    FAULT_LONE_CR = 3
    FAULT_LONE_LF = 4
    FAULT_WORDS = 5
    FAULT_ADDRESS = 6
    FAULT_PORT = 7
    FAULT_VERSION = 8
    FAULT_COMMAND = 9
    FAULT_FAMILY = 10
    FAULT_TOO_LONG = 11
    FAULT_ADDRESSES_SHORT = 12
    FAULT_TLV = 13
    FAULT_UNIQUE_ID = 14
    FAULT_CHECKSUM_SIZE = 15
    FAULT_CHECKSUM = 16
    FAULT_DATAGRAM = 17
    FAULT_RECORD = 18
    FAULT_HELLO_TOO_LONG = 19
    FAULT_HELLO = 20
    FAULT_EXTENSION_TWICE = 21
    FAULT_SERVER_NAME = 22
    FAULT_PROTOCOLS = 23

cdef enum:                      # what a parser says of the bytes so far
    FOUND_MORE = 0              # it needs more
    FOUND_WHOLE = 1
    FOUND_INVALID = 2
