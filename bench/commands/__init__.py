"""The commands of the bench: what each takes, and what it runs. Only Python's own library is needed to read them."""
