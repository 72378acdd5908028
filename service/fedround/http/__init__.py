"""HTTP: the clients and servers of the three services, their limits, TLS and tokens."""
