"""Intervals, audits and verdicts."""
