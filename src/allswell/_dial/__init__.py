"""From a route to a connection, and what is learnt of origins. Only here are filters and backends named."""
