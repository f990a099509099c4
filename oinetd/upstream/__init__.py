"""Destinations: names, their addresses, and which addresses work."""
