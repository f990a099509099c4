"""The benchmark of oinetd against other forwarders: `python -m bench`.

It measures forwarders from outside, as processes, between a client and a server in network namespaces of their own.
The figure to compare is the forwarder's own CPU time per unit of work: on few cores client, server and forwarder
take the processor from each other, and throughput alone says little about the forwarder.
"""
