"""Owns the comparison of resproxy with direct connections and with other Redis proxies.

Run it with `python -m benchmarks --help`. Imports go one way: `__main__` -> `report`, `plot` ->
`targets` -> `results`, and `__main__` -> `measure`, `idle` -> `subjects` -> `processes`, `server`.
"""
