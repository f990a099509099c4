"""Three forwarders of the bench's own, short and plain, one for each way of writing one in Python.

They say what the way itself costs. None of them has limits, logs or timeouts; all pass a half-close on. Each is called
`python -m bench.reference.NAME BUFFER_BYTES LISTEN_HOST:PORT=CONNECT_HOST:PORT …`.
"""
