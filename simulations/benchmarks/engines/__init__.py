"""What a simulation engine costs beside bare training: the same work by Veil's grids, Flower's engine and pfl-research.

`python -m simulations.benchmarks.engines` (or `make bench`); docs/scaling.md says what is compared. `works` are what is
trained, `contender` is the process that one contender runs in, `measure` runs such processes and watches them, `tables`
and `chart` show what came of it. Whatever a contender imports needs torch and numpy alone, beside the contender's own.
"""
