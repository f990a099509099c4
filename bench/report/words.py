"""What the sections of the pages are called, and what is said at the head of each."""

from __future__ import annotations

__all__ = ["INTRODUCTIONS", "ORDER", "TITLES"]

ORDER = ("throughput", "latency", "rate", "mixed", "scaling", "moves", "upgrade", "failover", "bandwidth", "udp",
         "connections", "micro")  # fmt: skip
"""Of the experiments; lab and capture stand behind them."""

TITLES = {
    "throughput": "Throughput",
    "latency": "Round trips",
    "rate": "Connections a second, and idle ones",
    "mixed": "Small messages beside bulk, and beside idle connections",
    "scaling": "More threads, more connections",
    "moves": "Connections that change their thread",
    "upgrade": "Replaced under load",
    "failover": "One of four servers fails",
    "bandwidth": "Bandwidths",
    "udp": "Datagrams",
    "connections": "The table of engines",
    "micro": "What one exchange costs",
    "lab": "Where the time goes",
    "capture": "Whether every byte went by",
}
INTRODUCTIONS = {
    "throughput": "Streams between two namespaces, through each forwarder in a third one; the end that gets them "
    "checks every byte. CPU is the forwarder's own processor time for 10⁹ bytes: the figure to compare. On few cores, "
    "client and server take the processor from the forwarder, and the throughput shows what they leave. The kernel "
    "does much of the work of receiving in soft interrupts, and charges it to what ran on that core just then: so CPU "
    "holds some work of others, and others hold some of the forwarder's.",
    "latency": "Requests and answers of equal size, on one connection and on many, with every connection waiting for "
    "its answer before it asks again. Percentiles are of all round trips.",
    "rate": "Each connection is opened, carries 64 bytes each way and is closed. Idle connections have carried one "
    "byte and are then silent.",
    "mixed": "64-byte requests at a fixed rate through one route of a forwarder: alone, while four streams go through "
    "another route as fast as they can, and while thousands of connections are held there. Each latency is from the "
    "time that the request was due, so a stall counts for all the requests that it kept waiting. On few cores, client "
    "and server of the streams take the processor, too: see direct.",
    "scaling": "Round trips of 64 bytes on connections that stay, and connections that ask once, with one to as many "
    "threads as there are cores. Imbalance is the work of the busiest thread or process by the mean of all: 1 is even, "
    "the number of threads is all in one. oinetd lets one thread do what one can do, so its imbalance means something "
    "only if the busiest one is near a whole core.",
    "moves": "A move is measured between two threads of oinetd without a load beside it: many silent connections at "
    "one word, and one connection at a time between two of its round trips. Then 64 connections that one thread has "
    "become busy with messages of 16 KiB in one direction, while every forwarder has a buffer of 2 KiB. So it has more "
    "to do than client and server together, and there is an idle core: without one, oinetd wakes no other thread, "
    "because that would only cost. HAProxy and nginx leave a connection where it was accepted.",
    "upgrade": "Each forwarder is replaced while clients come, wait, ask and stream: oinetd by `oinetd upgrade`, "
    "HAProxy by a new process that takes the listeners from the old one (`-x`, `-sf`), nginx by HUP. Connections left "
    "behind are those that processes of before the last replacement still have.",
    "failover": "Four servers behind each forwarder, with the same checks and timeouts if it has them. One is "
    "killed, frozen (it accepts, and says nothing), gone (every packet is lost), refused by a firewall, or slowed to a "
    "tenth, while 64 short "
    "connections at a time, or requests on 64 connections that stay, go through. Connections that stand on a killed "
    "server are lost with it whatever the forwarder does.",
    "bandwidth": "Downloads through a bound, each direction of a connection, or all of a source or of a rule together. "
    "Reached: what passed in the timed part, of what was asked for. HAProxy has its filter `bwlim-out`, which copies. "
    "Without a bound, clients ask for the same number of bytes a second: the difference is what bounding costs. Of "
    "datagrams twice as many are offered as may pass, and the far end counts.",
    "udp": "UDP to UDP. With a number under way, a datagram is sent when the answer to an earlier one is here: "
    "percentiles are of all round trips, and each is two datagrams forwarded. With a number offered, the client sends "
    "at that rate whatever becomes of them, and the server counts. CPU is for a million datagrams that arrived.",
    "connections": "Each column is the client's and the same for all engines. Socket creation: socket() and connect(). "
    "Job setup: from connected until a first byte has come through. Download: from the request to the last byte, all "
    "connections at once. Run time: from the first socket() to the last close().",
    "micro": "One exchange at a time on one connection: eight bytes up, a payload down. A line through the forwarder's "
    "processor time says what an exchange costs and what each byte adds.",
    "lab": "wrk through oinetd to nginx, observed in four layers: counters, call stacks, tracepoints of each stage, "
    "scheduling. The loads are timed without observation first.",
    "capture": "A packet ring of the bench's own beside tcpdump, on both legs of the forwarder, on the same traffic. "
    "What was sent is known from the senders. With segmentation offloaded, a packet may be 64 KiB.",
}
