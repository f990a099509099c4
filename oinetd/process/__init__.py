"""The program `oinetd`: command line, start, signals, service manager."""
