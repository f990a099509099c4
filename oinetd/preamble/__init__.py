"""What a client sends before the relay: parsers without I/O, which are given all bytes so far from the first one."""
