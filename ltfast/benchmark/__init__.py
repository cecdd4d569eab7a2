"""Measures how fast ltfast is on this machine, beside alternatives and as a share of the machine's limits."""
