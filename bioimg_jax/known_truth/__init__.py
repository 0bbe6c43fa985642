"""The benchmarks themselves, tested on generated images whose truth is known."""
