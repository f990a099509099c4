"""The admin interface: HTTP and JSON on a unix socket, its client, and the commands that use it."""
