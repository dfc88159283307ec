"""Caches of compiled kernels, from a host that has them to one that would compile them again: DESIGN.md, section 8."""
