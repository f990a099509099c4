"""Whether every byte went by: TCP sequence numbers on both legs of a forwarder, by a packet ring and by tcpdump."""
