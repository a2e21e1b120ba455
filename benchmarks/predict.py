"""How quickly photos are tagged: ``python -m benchmarks.predict [--photos N] [--repeats N]``.

EfficientNet-lite0 with KRT's head after eight sessions of ten classes, random weights, 224 px, in the precision this
machine is fast in. Beside one another: the bare network on tensors that are ready, and `Tagger` and what ``krt predict
--csv`` does on JPEG files, from the files to the tags and to the table. On the photos of ``KRT_COCO_SUB`` and, decoded
at greater cost, on generated ones of COCO's own size. The share is the bare network's time over theirs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from krt_core.runs.folder import Run
from krt_core.tagger.output import write_csv
from krt_core.tagger.tagger import Tagger
from krt_core.weights.convert import network_of

from .made_up_runs import finished
from .measure import side_by_side
from .photos import write_photos
from .still import photos as real_photos

CLASSES = tuple(f"class {c:02d}" for c in range(80))


def run_to_use() -> Run:
    """A finished run of the preset coco_sub, of which the last session has weights."""
    run = finished("coco_sub", ["model.weights="], CLASSES, images=8, folder="outputs/run")
    torch.manual_seed(0)
    network = network_of(run.experiment)
    for session in run.protocol.sessions:
        network.add_session(session.stop - session.start)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, run.session_folder(len(run.protocol.sessions) - 1) / "model.safetensors")
    return run


def rate(tagger: Tagger, photos: list[Path], folder: Path, repeats: int) -> dict[str, dict]:
    """Seconds and images per second of each way."""
    batch, count = tagger.scorer.batch_size, len(photos)
    size = tagger.run.experiment.data.image_size
    ready = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    ready = ready.to(tagger.scorer.runtime.device)
    network = tagger.scorer.network

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, count, batch):
            with tagger.scorer.runtime.autocast():
                network(ready[: count - start]).logits.float().cpu()

    def csv() -> None:
        tagged = zip(photos, tagger.stream(photos), strict=True)
        write_csv(folder / "tags.csv", tagged, tagger.classes, None, None)

    ways = {"bare": bare, "Tagger": lambda: list(tagger.stream(photos)), "csv": csv}
    spent: dict[str, list[float]] = {way: [] for way in ways}

    def counted(way: str) -> None:
        began = time.process_time()
        ways[way]()
        spent[way].append(time.process_time() - began)

    times = side_by_side({way: partial(counted, way) for way in ways}, repeats)
    processor = {way: statistics.median(values[1:]) for way, values in spent.items()}  # the first warms up
    for way, found in times.items():
        found["images_per_second"] = round(count / found["seconds"], 1)
        found["share"] = round(times["bare"]["seconds"] / found["seconds"], 3)
        found["share_by_processor_time"] = round(processor["bare"] / processor[way], 3)
    return times


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=256, help="so many of each kind")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many counts")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRT_HOME"] = folder
        tagger, show = Tagger(run_to_use()), partial(print, flush=True)
        show(f"{torch.get_num_threads()} threads, {tagger.scorer.runtime.reasons['precision']}")
        kinds = {}
        if root := real_photos():
            kinds["KRT_COCO_SUB"] = sorted((Path(root) / "images").iterdir())[: options.photos]
        made = write_photos(Path(folder) / "made", options.photos, 1)
        kinds["generated, 640 x 480"] = sorted((made / "train").iterdir())
        for kind, photos in kinds.items():
            for way, found in rate(tagger, photos, Path(folder), options.repeats).items():
                each = ", ".join(f"{key} {value}" for key, value in found.items() if key != "times")
                show(f"{kind}, {way}: {each}")


if __name__ == "__main__":
    main()
