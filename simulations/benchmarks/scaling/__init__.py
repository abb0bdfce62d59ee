"""What a client costs as federations grow: rounds of 100 to 10,000 clients, and a model of cost fitted to them.

`python -m simulations.benchmarks.scaling` (or `make bench-scaling`); docs/scaling.md says what was found. `cases` are
what is played, by the processes of `simulations.benchmarks.engines`; `cost_model` is fitted to the figures; `tables`
and `chart` show both.
"""
