"""Where connections go: names, their addresses, and which of them serve."""
