"""Checks that captures see every byte: TCP sequence numbers on both legs of a forwarder, by packet ring and tcpdump."""
