"""Numbers about runs: their sessions, what they forgot, how right their pseudo labels were, where their models look."""

from .compare import authors_curves, comparable_runs, curves_table, forgetting_table, one_per_method
from .datasets import opened_test_set
from .explain import evidence, look
from .forgetting import confusions, falls, lost_images
from .growing import session_photos, tag_changes
from .looks import attentive_run, look_at
from .parting import Comparison, compared
from .pointing import pointing_game, pointing_table
from .pseudo_labels import quality
from .splits import split_table, split_words
