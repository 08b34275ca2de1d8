"""The parity suite: one registry of cases, adapters that run them, checks that judge the results, one table of limits.

Nothing is imported here: pytest loads `maskattn.parity.plugin` in every process, and that must cost nothing.
"""
