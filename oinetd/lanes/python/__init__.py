"""The lane that needs no extension: one task a connection, from accept to end."""
