"""On the gateway: versions, buffer, aggregation, public-data refresh, registry, broker start."""
