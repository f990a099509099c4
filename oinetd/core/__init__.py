"""What every lane shares: the service of a route, records, live sessions and counters, limits, access."""
