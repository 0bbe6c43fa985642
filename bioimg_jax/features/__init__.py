"""Feature tables: what every representation is turned into, on disk."""
