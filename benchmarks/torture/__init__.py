"""Runs that are killed, starved and lied to, and must end as if nothing had been: ``python -m benchmarks.torture``.

``--minutes 30 --seed 0`` tries one kind of attempt after the other until the time is over, each told by a seed by which
it can be repeated alone (``--kinds train --one 17``). At the end stands how many kills, faults and inputs of each kind
were tried, and what was lost: nothing, or the exit code is 1 and the folders of what went wrong are kept. Another kind
of attempt is a line in `benchmarks.torture.__main__.ATTEMPTS`.
"""
