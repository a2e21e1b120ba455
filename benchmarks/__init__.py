"""Speed, measured: the published way beside ours, on the same data, in one process.

``python -m benchmarks.speed`` gives the ratios, ``benchmarks.growth`` the cost against sessions, classes and images,
``benchmarks.accuracy`` what the fast form does to the results. The numbers stand in docs/speed.md.
``benchmarks.study`` makes the results of docs/study.md from runs, ``benchmarks.letters`` a backbone for some of them.
"""
