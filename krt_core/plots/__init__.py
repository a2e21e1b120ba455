"""Static figures. Every function takes runs or arrays and returns a matplotlib Figure; none is shown here."""

from .attention import attention_over_sessions, evidence_over_sessions, retention_mass
from .data import co_occurrence, sample_images, session_sizes
from .figure import MARKERS, PALETTE, save, save_table
from .forgetting import POOLS, class_session_heatmap, forgetting_bars, forgetting_summary, session_curves
from .pseudo_labels import thresholds
from .training import training_loss
