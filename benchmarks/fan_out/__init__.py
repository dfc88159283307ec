"""A discrete-event model of fan-out: workers and links are modelled, joining is the code that workers run.

Run `python -m benchmarks.fan_out`; it takes one to three minutes, prints a table and writes
benchmarks/results/fan_out.json and docs/fan-out.svg. What is modelled, and how, is in docs/fan-out.md.
"""
