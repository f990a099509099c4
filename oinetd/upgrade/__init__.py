"""The upgrade: one process hands listeners, files and live sessions to the one that replaces it."""
