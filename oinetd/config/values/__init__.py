"""The kinds of values that words of the configuration take: each reads a text and writes it."""
