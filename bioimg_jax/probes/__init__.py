"""Solvers fitted on frozen features; nothing here knows about biology."""
