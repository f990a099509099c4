"""Sockets, ports, descriptors, readiness."""
