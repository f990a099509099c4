"""The program: command line, start, signals, the service manager."""
