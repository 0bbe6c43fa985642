"""Tasks that features are scored on."""
