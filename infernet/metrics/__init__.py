"""Numbers of this node for Prometheus: one table, shown over HTTP on a port of its own or by `infernet stats`."""
