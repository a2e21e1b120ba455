"""The model of a run as a file for other programs: ONNX, or a program of torch.export.

What is in it is float32 whatever the run computed in, takes any number of images, and has mean, std and calibration
inside. How a photo becomes its input stands in the file's metadata and in a page beside it. Nothing is left behind
unless the file, read again, says what the run's own model says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..data import open_dataset
from ..data.images import load_image
from ..errors import ConfigError, DataError, KRTError, RunError
from ..machine.device import Runtime
from ..machine.home import atomic_write
from ..runs.folder import Run
from ..runs.starts import precision_of
from .program import Program
from .scorer import Scorer, reopened
from .tagger import reported_before

OLDEST = (2, 8)  # PyTorch before it cannot trace the models
IMAGES, TOLERANCE = 64, 1e-4  # test images to compare on, and the largest difference that is let pass
RESIZE = (
    "bilinear with antialiasing to image_size x image_size, whatever the photo's shape, after turning it as its EXIF "
    "orientation says; RGB, divided by 255"
)
Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # images (B, 3, S, S) → probabilities, scores (B, C)


@dataclass(frozen=True)
class Exported:
    path: Path
    difference: float  # the largest from the run's own scores
    said: list[str] = field(default_factory=list)  # what was compared, in words


def export(run: Run, session: int, path: str | Path) -> Exported:
    """Write the model of a run after a session (0 is the first) as ``.onnx`` or ``.pt2``, and FILE.md beside it.

    Raises ConfigError where packages for ONNX are missing or PyTorch is too old, RunError where the model cannot be
    exported or where the file does not say what the model says, to `TOLERANCE`.
    """
    path = Path(path)
    onnx = path.suffix.lower() == ".onnx"
    calibration = run.calibration(session)
    runtime = Runtime(torch.device("cpu"), torch.float32, {})
    network, method = reopened(run, session, runtime)
    if torch.__version__ < OLDEST:
        raise ConfigError(
            f"{path.suffix} files need PyTorch {'.'.join(map(str, OLDEST))} or newer, and this is {torch.__version__}. "
            "Tags are to be had by krt predict."
        )
    if onnx:
        _needed("onnx", "onnxscript", "onnxruntime")
    size = run.experiment.data.image_size
    about = metadata(run, session)
    program = Program(network, method, calibration).eval()
    try:
        with quiet(), torch.no_grad():
            content = (_to_onnx if onnx else _to_pt2)(program, torch.rand(2, 3, size, size), about)
            answer = (_onnx if onnx else _pt2)(content)
    except KRTError:
        raise
    except Exception as error:  # whatever exporters raise
        while error.__cause__ is not None:  # the first of them says what it is
            error = error.__cause__
        reason = next(iter(str(error).strip().splitlines()), "")
        raise RunError(
            f"The model of {run.folder.name} (method {run.experiment.method}, {run.experiment.model.backbone}) cannot "
            f"be written as {path.suffix} ({type(error).__name__}: {reason}). Its tags are to be had by krt predict."
        ) from None
    scorer = Scorer(run, session, runtime)
    images, rows, what = images_to_compare(run, session)
    own = scorer.scores(images)
    probabilities, scores = _in_parts(answer, images.numpy())
    apart = [np.abs(probabilities - calibration.probabilities(own)).max(), np.abs(scores - own).max()]
    difference = float(np.max(apart))
    if not difference <= TOLERANCE:
        raise RunError(
            f"{path} was not written: what it says of {what} is up to {difference:.2g} from what the run's own model "
            f"says, more than {TOLERANCE:g}."
        )
    said = [f"largest difference from the run's own model in float32 on {what}: {difference:.2g}"]
    if rows is not None:
        said.append(_beside_stored(run, session, scores, rows))
    atomic_write(path, content)
    atomic_write(path.with_name(f"{path.name}.md"), _page(path, about, said))
    return Exported(path, difference, said)


def metadata(run: Run, session: int) -> dict[str, Any]:
    """What the file says of itself."""
    calibration, e = run.calibration(session), run.experiment
    return {
        "classes": list(run.protocol.classes[: len(calibration.a)]),
        "thresholds": [float(value) for value in calibration.thresholds],
        "calibrated": [bool(value) for value in calibration.fitted],
        "image_size": e.data.image_size,
        "resize": RESIZE,
        "outputs": ["probabilities", "scores"],
        "run": run.folder.name,
        "config_hash": e.hash(),
        "commit": run.environment.get("commit"),
        "method": e.method,
        "backbone": e.model.backbone,
        "session": session + 1,
        "sessions": len(run.protocol.sessions),
        "leak": run.leak,
        "oracle": run.oracle,
        "krt_core": __version__,
    }


def images_to_compare(run: Run, session: int) -> tuple[Tensor, np.ndarray | None, str]:
    """Images (m, 3, S, S) in [0, 1]: of the first test images whose scores the run holds, by their rows there; random
    ones where these are gone. And which, in words."""
    size = run.experiment.data.image_size
    try:
        dataset, ids = open_dataset(run.experiment.data, "test"), run.scores(session).ids
        row_of = {str(name): row for row, name in enumerate(dataset.ids)}
        rows = np.array([row for row, name in enumerate(ids) if str(name) in row_of][:IMAGES], np.int64)
        if not len(rows):
            raise DataError("none of the test images is there")
        pixels = np.stack([load_image(dataset.path(row_of[str(ids[row])]), size) for row in rows])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, rows, f"{len(rows)} test images"
    except KRTError as error:
        images = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
        return images, None, f"{IMAGES} random images, as the test images are not to be had ({str(error).rstrip('.')})"


def _beside_stored(run: Run, session: int, scores: np.ndarray, rows: np.ndarray) -> str:
    """How far the scores are from those that the run wrote down, and what that is owed to."""
    apart = float(np.abs(scores - run.scores(session).scores[rows]).max())
    precision = precision_of(run.starts)
    reasons = [f"made in {precision}"] if precision not in (None, "float32") else []
    if epoch := reported_before(run, session):
        reasons.append(f"of epoch {epoch}, while the weights are of the last one: train.report=best")
    if not reasons and apart > TOLERANCE:
        reasons = ["made with other versions, images or weights than those that are here now"]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"from the scores in {run.folder.name}: {apart:.2g}{why}"


def _in_parts(answer: Answer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image, three, and the rest: any number must do."""
    parts = [answer(part) for part in np.split(images, [1, 4]) if len(part)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])


def _traced(program: Program, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _to_onnx(program: Program, example: Tensor, about: dict[str, Any]) -> bytes:
    names = {"input_names": ["images"], "output_names": ["probabilities", "scores"]}
    made = torch.onnx.export(_traced(program, example), (example,), dynamo=True, verbose=False, **names)
    for key, value in about.items():
        made.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    return made.model_proto.SerializeToString()


def _to_pt2(program: Program, example: Tensor, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    extra = {"metadata.json": json.dumps(about, ensure_ascii=False, indent=1)}
    torch.export.save(_traced(program, example), buffer, extra_files=extra)
    return buffer.getvalue()


def _onnx(content: bytes) -> Answer:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {"images": images}))


def _pt2(content: bytes) -> Answer:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda images: tuple(said.detach().numpy() for said in module(torch.from_numpy(images)))


def _needed(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}: pip install 'krt-core[export]', or pip install {' '.join(missing)}."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell at length of what they do inside."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _page(path: Path, about: dict[str, Any], said: list[str]) -> str:
    import jinja2

    template = Path(__file__).with_name("export.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # nosec B701: no HTML
    kind = path.suffix.lower().removeprefix(".")
    return environment.from_string(template).render(name=path.name, kind=kind, about=about, said=said)
