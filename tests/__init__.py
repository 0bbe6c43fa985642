"""Tests; a package, because a peer installs another one of this name."""
