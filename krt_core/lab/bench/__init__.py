"""The full benchmark, headless: a matrix of runs, each a notebook in a process of its own.

``matrix`` expands a YAML file into jobs, ``runner`` gives them ``slots`` of this machine, ``slurm`` those of a cluster.
``worker`` is the process of one job, ``start`` starts it and tells how it ended, ``state`` is what is known of it on
disk, ``view`` the table of all. ``search`` chooses settings on validation images first, where a matrix asks for it.
"""
