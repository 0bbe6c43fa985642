"""Images in: builders, splits, transforms and the deterministic input stream."""
