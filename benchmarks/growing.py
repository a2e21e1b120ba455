"""Growing in steps: ``KRT_COCO_SUB=FOLDER python -m benchmarks.growing [--methods ...] [--seeds ...] [--photos ...]``.

A run learns 40 classes of real photos and is extended four times by ten, each time from a folder of its own, annotated
with its ten classes alone: each photo lies in one folder, that of one of its classes, which is drawn. Beside it stand
the simulated run of the same sessions out of one data set (B40-C10: photos come back with each session that has a label
of theirs, so it sees more) and joint ridge regression. After each step all are scored on the same test images with all
labels of the classes so far. photos: of the new classes so many images each (0: all). validation: the share of each
folder that is held out, from which probabilities and thresholds are found; the last columns are CF1 by these.

Everything goes to ``--folder``; what is done there is not done again. The table is its ``growing.csv``, the curves its
``growing.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from krt_core import train
from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.evaluate import session_metrics
from krt_core.lab import figures
from krt_core.lab.figures.figure import new_figure, style_of
from krt_core.machine.home import atomic_write, resolve
from krt_core.methods.census import name_hash
from krt_core.metrics import calibration_errors, precision_recall_f1
from krt_core.protocol import Protocol
from krt_core.runs.folder import Run
from krt_core.tagger.extend import extend
from krt_core.tagger.tagger import Tagger

FIRST, STEP = 40, 10


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["census", "ridge", "krt"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--photos", nargs="+", type=int, default=[0])
    parser.add_argument("--validation", type=float, default=0.0)
    parser.add_argument("--folder", default="outputs/growing")
    options = parser.parse_args(arguments)
    source = os.environ.get("KRT_COCO_SUB", "")
    if not source:
        raise SystemExit("KRT_COCO_SUB is not set: it names the folder of real photos to grow on.")
    folder, rows = resolve(options.folder), []
    for seed in options.seeds:
        held = options.validation
        simulated = {
            method: simulate(folder, source, method, seed, held) for method in (*options.methods, "joint_ridge")
        }
        protocol = simulated["joint_ridge"].protocol
        for photos in options.photos:
            folders = write_folders(folder / f"data-s{seed}-{photos or 'all'}", Path(source), protocol, photos)
            for method in options.methods:
                for step, found in enumerate(grow(folder, source, folders, protocol, method, seed, photos, held)):
                    about = {"method": method, "seed": seed, "photos": photos, "step": step}
                    said = {key: simulated[key].session_state(step)["metrics"] for key in (method, "joint_ridge")}
                    beside = {"simulated": said[method]["mAP_seen"], "joint": said["joint_ridge"]["mAP_seen"]}
                    rows.append({**about, **found, **({} if photos else beside)})
                    print(rows[-1], flush=True)
                    atomic_write(folder / "growing.csv", pd.DataFrame(rows).to_csv(index=False))
    figures.save(curves(pd.DataFrame(rows)), folder, "growing")


def curves(rows: pd.DataFrame) -> Figure:
    """mAP after each step, mean and standard deviation over seeds: a panel for each number of photos a class."""
    counts = sorted(rows.photos.unique(), key=lambda count: count or np.inf, reverse=True)
    figure, axes = new_figure(4.2 * len(counts), 3.6, columns=len(counts), sharey=True, squeeze=False)
    classes = [FIRST + STEP * step for step in sorted(rows.step.unique())]
    of_all = rows[rows.photos == 0]
    for axis, count in zip(axes[0], counts, strict=True):
        mine = rows[rows.photos == count]
        if len(of_all):
            bound = of_all.groupby("step").joint.mean()
            axis.plot(classes, bound, color="0.3", ls="--", label="joint ridge regression, all photos and labels")
        for place, method in enumerate(dict.fromkeys(rows.method)):
            style = style_of(place)
            grown = mine[mine.method == method].groupby("step").mAP
            axis.errorbar(classes, grown.mean(), grown.std(), ms=5, capsize=2, label=f"{method}, grown", **style)
            if not count:
                simulated = mine[mine.method == method].groupby("step").simulated.mean()
                axis.plot(classes, simulated, color=style["color"], ls=":", label=f"{method}, simulated")
        axis.set(xlabel="classes", xticks=classes, title=f"{count} photos a new class" if count else "all photos")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mAP on all test images and labels (%)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def order(seed: int) -> dict[str, int]:
    return {"protocol.order_seed": seed} if seed else {}


def simulate(folder: Path, source: str, method: str, seed: int, held: float) -> Run:
    """The same sessions out of one data set; joint ridge regression learns all of it at once."""
    changes = {"data.root": source, "protocol.base": FIRST, "seed": seed, "data.validation": held, **order(seed)}
    name = f"simulated-{method}-s{seed}{f'-v{held:g}' if held else ''}"
    return train("coco_sub_frozen", {**changes, "method": method}, folder=folder / name, show="none")


def grow(
    folder: Path, source: str, folders: list[Path], protocol: Protocol, method: str, seed: int, photos: int, held: float
):
    """Start with the first folder, then add the others one by one; what is found after each step."""
    name, classes = f"{method}-s{seed}-{photos or 'all'}{f'-v{held:g}' if held else ''}", protocol.class_names(0)
    changes = {
        "data.root": str(folders[0]), "protocol.sizes": [FIRST], "protocol.order": list(classes), "seed": seed,
        "data.validation": held,
        "method": method, **({"krt.target": "estimated"} if method == "krt" else {}),
    }  # fmt: skip
    began = time.perf_counter()
    run = train("coco_sub_frozen", changes, folder=folder / f"grown-{name}-0", show="none")
    for step in range(len(protocol.sessions)):
        if step:
            began = time.perf_counter()
            run = extend(run, folders[step], folder=folder / f"grown-{name}-{step}", show="none")
        spent = time.perf_counter() - began
        state = run.session_state(step)
        yield {
            **on_all_labels(run, source, protocol, step),
            "own_forgetting": run.forgetting().get("max_class_fixed", 0.0),
            "images": state["train_images"], "session_seconds": state["seconds"], "seconds": round(spent, 1),
        }  # fmt: skip


def on_all_labels(run: Run, source: str, protocol: Protocol, step: int) -> dict[str, float]:
    """mAP of the classes so far on all test images, with every label they have; where a run is calibrated CF1 of the
    classes that came last, and of the others, by its thresholds and by one half of the scores."""
    test, tagger = open_dataset(Data(dataset="coco", root=source), "test"), Tagger(run, step)
    every = tagger([test.path(row) for row in range(len(test))])
    # Classes of a session stand as their data name them, which may be in another order.
    assert set(tagger.classes) == set(protocol.classes[: protocol.sessions[step].stop])
    places = [[tags.names.index(name) for name in tagger.classes] for tags in every]
    scores, p = (
        np.array([getattr(tags, what)[place] for tags, place in zip(every, places, strict=True)])
        for what in ("scores", "probabilities")
    )
    labels = test.labels[:, [test.classes.index(name) for name in tagger.classes]]
    found = {"mAP": session_metrics(protocol, step, scores, labels, full=False)["mAP_seen"]}
    if not tagger.calibration.fitted.any():
        return found
    new = protocol.sessions[step].columns
    for name, part in (("new", new), ("old", slice(0, new.start))):
        for by, said, threshold in (("half", scores, 0.5), ("calibrated", p, tagger.thresholds[part])):
            if labels[:, part].shape[1]:
                found[f"CF1_{name}_{by}"] = precision_recall_f1(said[:, part], labels[:, part], threshold)["CF1"]
        if labels[:, part].shape[1]:
            found[f"ECE_{name}"] = float(calibration_errors(p[:, part], labels[:, part]).mean())
    return found


def write_folders(folder: Path, source: Path, protocol: Protocol, photos: int) -> list[Path]:
    """A COCO folder for each session, annotated with its classes alone; each image lies in one of them."""
    made = []
    session_of = {name: s.index for s in protocol.sessions for name in protocol.class_names(s.index)}
    for session in protocol.sessions:
        root, own = folder / f"step{session.index}", set(protocol.class_names(session.index))
        made.append(root)
        if (root / "done").is_file():
            continue
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            content = json.loads((source / "annotations" / f"{split}.json").read_text(encoding="utf-8"))
            called = {one["id"]: one["name"] for one in content["categories"]}
            wanted = {number for number, name in called.items() if name in own}
            shows: dict[int, set[str]] = {}
            for one in content["annotations"]:
                shows.setdefault(one["image_id"], set()).add(called[one["category_id"]])
            drawn = {
                image: min(names, key=lambda name, image=image: name_hash(f"{image} {name}"))
                for image, names in shows.items()
            }
            mine = {image for image, name in drawn.items() if session_of[name] == session.index}
            kept = [one for one in content["annotations"] if one["image_id"] in mine and one["category_id"] in wanted]
            if photos and session.index and split == "train":
                kept = few(kept, photos)
            shown = {one["image_id"] for one in kept}
            content["categories"] = [one for one in content["categories"] if one["id"] in wanted]
            content["images"] = [one for one in content["images"] if one["id"] in shown]
            content["annotations"] = kept
            (root / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
        if not (root / "images").exists():
            (root / "images").symlink_to(source.resolve() / "images")
        (root / "done").touch()
    return made


def few(annotations: list[dict], photos: int) -> list[dict]:
    """Of so many images a class, the first by a seeded shuffle, with all the labels that these have."""
    ids = sorted({one["image_id"] for one in annotations})
    rank = dict(zip(ids, np.random.default_rng(0).permutation(len(ids)).tolist(), strict=True))
    chosen: set[int] = set()
    for c in sorted({one["category_id"] for one in annotations}):
        own = sorted({one["image_id"] for one in annotations if one["category_id"] == c}, key=rank.__getitem__)
        chosen.update(own[:photos])
    return [one for one in annotations if one["image_id"] in chosen]


if __name__ == "__main__":
    main()
