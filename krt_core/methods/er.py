"""ER: experience replay. Fine-tuning whose batches have exemplars mixed in.

Robins, *Catastrophic forgetting, rehearsal and pseudorehearsal*, Connection Science 1995; with small memories Chaudhry
et al., *On Tiny Episodic Memories in Continual Learning*, 2019. The loss is the plain one on the session's images and
exemplars alike, Σ ASL(z, y). Which old labels an exemplar shows is `replay.labels`, what hidden ones count as `er.old`.

Deviations: exemplars are chosen at the end of a session (`replay`), not from a stream, and each comes once an epoch in
the place that the shuffle gives it, instead of in a second batch beside each one of new images.
"""

from __future__ import annotations

from ..options import FinetuneOptions
from .finetune import Finetune


class ER(Finetune):
    Options = FinetuneOptions
    needs_exemplars = True
    paper = "Chaudhry et al., 2019"
    knows_unknown = True
