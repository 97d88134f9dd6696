"""From a route to a connection, and what is learnt of origins. Concrete filters and backends are named here alone."""
