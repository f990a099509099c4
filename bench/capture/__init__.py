"""Whether every byte went by: TCP sequence numbers on both legs of a forwarder, seen by a packet ring and by tcpdump."""
