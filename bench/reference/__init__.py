"""Three short reference forwarders, one for each way of writing one in Python.

They show the cost of the way itself. None has limits, logs or timeouts; all forward a half-close. Each is called
`python -m bench.reference.NAME BUFFER_BYTES LISTEN_HOST:PORT=CONNECT_HOST:PORT …`.
"""
