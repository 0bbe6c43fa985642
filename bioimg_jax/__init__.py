"""Pre-train microscopy encoders in JAX and print every score with its floors."""

__version__ = "0.1.0"
