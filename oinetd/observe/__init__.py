"""What is told to whom: the connection log, the process log, the status."""
