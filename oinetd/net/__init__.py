"""Sockets, ports, descriptors and their readiness."""
