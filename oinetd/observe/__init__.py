"""Output for operators: the connection log, the process log, the status."""
