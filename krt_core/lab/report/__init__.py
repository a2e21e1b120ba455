"""Finished runs found, named and put into tables."""

from .finding import LeftOut, collect, copies_of, finished_runs, only
from .naming import label_of, labels_of, names_of, replicate_of, setting_of
from .tables import runs_table, sessions_table, summary_table
