"""Static figures. Every function takes runs or arrays and returns a matplotlib Figure; none is shown here."""

from .attention import attention_over_sessions, evidence_over_sessions, maps_per_token, patch_maps, token_mass
from .calibration import reliability
from .comparison import cost_chart, factor_chart, rank_chart, stability_chart
from .data import co_occurrence, sample_images, session_sizes
from .figure import MARKERS, PALETTE, save, save_table
from .forgetting import (
    POOLS,
    class_curves,
    class_session_heatmap,
    falls_in_session,
    forgetting_bars,
    forgetting_summary,
    said_instead,
    session_curves,
)
from .gallery import gallery, lost_images, side_by_side
from .pseudo_labels import (
    pseudo_label_classes,
    pseudo_label_heatmap,
    pseudo_label_images,
    pseudo_label_quality,
    pseudo_label_threshold,
    pseudo_labels_per_image,
    thresholds,
)
from .tags import evidence_for_tags, photos_with_tags, tag_changes, tags_before_and_after
from .training import training_loss, training_progress
