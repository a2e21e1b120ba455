"""What each part of calibration is worth: without the correction of frequencies, without that of drift, and with all
held-out images still at hand. Chosen on one half of the held-out images, calibrated on the other; told of both, and of
the test images with all of them.

    python -m benchmarks.calibration coco_sub_frozen ridge census masked --seeds 0 1 2
"""

import argparse
from dataclasses import replace
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pandas as pd

from krt_core import session
from krt_core.calibrate import Calibrating, fit
from krt_core.calibrate.sessions import moments, straight
from krt_core.config import load_experiment
from krt_core.metrics import calibration_error, calibration_errors
from krt_core.runs.calibration import Calibration, logit

VARIANTS = {  # frequencies corrected, drift by what
    "own images alone": (False, None),
    "+ frequencies": (True, None),
    "+ drift": (False, "images"),
    "+ frequencies, drift": (True, "images"),
    "+ frequencies, drift by sums": (True, "sums"),
}


class Looking(Calibrating):
    """Keeps what each session's model says to all held-out images, and what its method knows of its drift."""

    def after(self, index, before, predict):
        rows = np.flatnonzero((self.labels * self.held[:, None] > 0).any(axis=1))
        self.looks = [*vars(self).get("looks", []), (predict(rows), self.method.drift() if index else None)]
        self.every, Looking.newest = rows, self
        return super().after(index, before, predict)


def looked(experiment, folder):
    with patch.object(session, "Calibrating", Looking):
        run = session.train(experiment, folder)
    return run, Looking.newest


def calibrated(seen, chosen, frequencies, drift):
    """After the last session, from the held-out images ``chosen`` (k,) bool."""
    found, labels = None, seen.labels[seen.every]
    for s in seen.protocol.sessions:
        (scores, known), mine = seen.looks[s.index], chosen & (labels[:, s.columns] > 0).any(axis=1)
        shown = len(seen.protocol.train_images(seen.labels, s.index))
        images = len(seen.protocol.shown_images(seen.labels, s.index)) if frequencies else shown
        new = fit(scores[mine][:, s.columns], labels[mine][:, s.columns], seen.config.kind).calibration
        share = shown / new.images
        new = replace(new, images=shown, shown=new.shown * share).for_images(images)
        if found is not None:
            if drift == "images":
                before = seen.looks[s.index - 1][0][mine][:, : s.start]
                known = moments(logit(scores[mine][:, : s.start]), logit(before))
            found = found.moved(*straight(*known)) if drift and known else found
            found = found.for_images(images) if frequencies else found
        found = new if found is None else found.then(new)
    return found


def errors(found, scores, labels):
    p = found.probabilities(scores)
    return float(np.nanmean(calibration_errors(p, labels))), calibration_error(p, labels)


def measured(experiment, folder):
    run, seen = looked(experiment, folder)
    labels, last = seen.labels[seen.every], seen.looks[-1][0]
    chosen, every = np.random.default_rng(0).permutation(len(labels)) % 2 == 0, np.ones(len(labels), bool)
    by_sums = all(known for _, known in seen.looks[1:])
    variants = {
        "none": lambda rows: Calibration.none(labels.shape[1]),
        **{name: lambda rows, how=how: calibrated(seen, rows, *how) for name, how in VARIANTS.items()
           if how[1] != "sums" or by_sums},
        "all images at hand": lambda rows: fit(last[rows], labels[rows], seen.config.kind).calibration,
    }  # fmt: skip
    for name, make in variants.items():
        other = errors(make(chosen), last[~chosen], labels[~chosen])
        test = errors(make(every), *run.tested())
        yield {"variant": name, "other half": other[0], "test": test[0], "test, pairs": test[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="key=value, for all")
    args = parser.parse_args()
    lines = []
    for method in args.methods:
        for seed in args.seeds:
            own = [f"method={method}", f"seed={seed}", f"protocol.order_seed={seed}", "data.validation=0.2"]
            with TemporaryDirectory() as folder:
                found = measured(load_experiment(args.preset, [*own, *args.set]), f"{folder}/run")
                lines += [{"method": method, **line} for line in found]
    table = pd.DataFrame(lines).groupby(["method", "variant"], sort=False)
    print(table.agg(["mean", "std"]).round(2).to_string())


if __name__ == "__main__":
    main()
