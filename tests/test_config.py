import pytest

from krt_core.config import METHODS, experiment_from, load_experiment, parse_yaml, preset_names
from krt_core.errors import ConfigError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_its_own_yaml(name):
    experiment = load_experiment(name)
    again = experiment_from(parse_yaml(experiment.to_yaml(), "yaml"))
    assert again == experiment and again.hash() == experiment.hash()


def test_scientific_notation_is_a_number():
    assert load_experiment("digits_demo", ["train.lr=1e-4"]).train.lr == 1e-4  # YAML alone would read a text
    assert load_experiment("digits_demo", {"train.lr": "1e-4"}).train.lr == 1e-4
    assert load_experiment("digits_demo", {"train": {"lr": 3}}).train.lr == 3.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch", "Did you mean 'epochs'"]),
        ("trian.epochs=3", ["trian", "Did you mean 'train'"]),
        ("method=krtt", ["krtt", "Did you mean 'krt'"]),
        ("krt.token_wieght=3", ["krt.token_wieght", "token_weight"]),
        ("train.epochs=three", ["train.epochs", "whole number", "three"]),
        ("train.epochs=2.5", ["train.epochs", "whole number"]),
        ("data.cache='false'", ["data.cache", "true or false"]),
        ("train.augment=publshed", ["train.augment", "published"]),
        ("data.classes=cat", ["data.classes", "list"]),
        ("train=5", ["train", "section"]),
        ("model.embed_dim=30", ["model.embed_dim", "multiple"]),
        ("protocol.increment=0", ["protocol.increment", "at least 1"]),
        ("seed", ["key=value"]),
        ("name=../x", ["name", "letters"]),
    ],
)
def test_a_wrong_override_names_the_key_and_the_way_out(override, words):
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits_demo", [override])
    for word in words:
        assert word in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="digits_demo"):
        load_experiment("digit_demo")


def test_a_preset_file_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: finetune\ntrain: {epochs: 1}\n")
    assert load_experiment(path).name == "mine"
    path.write_text("method: [unclosed")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid YAML"):
        load_experiment(path)


def test_a_preset_can_extend_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: voc_b0c4_r2\ntrain: {epochs: 3}\n")
    mine = load_experiment(tmp_path / "mine.yaml", ["train.batch_size=16"])
    assert (mine.name, mine.train.epochs, mine.train.lr, mine.train.batch_size) == ("mine", 3, 4e-5, 16)
    assert (mine.replay.per_class, mine.replay.duplicates, mine.options.token_weight) == (2, True, 80)
    loop = tmp_path / "loop.yaml"
    loop.write_text(f"extends: {loop}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_experiment(loop)
    loop.write_text("extends: voc_b0c44\n")
    with pytest.raises(ConfigError, match="voc_b0c4"):
        load_experiment(loop)


def test_a_preset_says_what_a_method_changes(tmp_path):
    below, mine = tmp_path / "below.yaml", tmp_path / "mine.yaml"
    below.write_text(
        "extends: digits_demo\ntrain: {epochs: 3, lr: 0.1}\nmethods:\n"
        "  lwf: {train.lr: 0.2, lwf.weight: 7, train: {base_lr: 0.5}}\n"
        "  masked: {train.lr: 0.3}\n"
    )
    assert load_experiment(below).train.lr == 0.1
    lwf = load_experiment(below, ["method=lwf"])
    assert (lwf.train.lr, lwf.train.base_lr, lwf.options.weight, lwf.train.epochs) == (0.2, 0.5, 7, 3)
    assert load_experiment(below, ["method=lwf", "train.lr=1"]).train.lr == 1  # an override goes on top
    mine.write_text("extends: below.yaml\nmethod: lwf\ntrain: {lr: 0.9}\n")
    on_top = load_experiment(mine)  # and so does a preset that extends it; what it leaves alone stays
    assert (on_top.train.lr, on_top.options.weight) == (0.9, 7)
    assert load_experiment(mine, ["method=masked"]).train.lr == 0.9
    mine.write_text("extends: below.yaml\nmethods: {lwf: {lwf.weight: 8}}\n")
    both = load_experiment(mine, {"method": "lwf"})
    assert (both.train.lr, both.options.weight) == (0.2, 8)
    assert "methods" not in both.to_dict()


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("{lwff: {train.lr: 1}}", "methods: 'lwff': there is no such method.*Did you mean 'lwf'"),
        ("[lwf]", "must hold, for each method"),
        ("{3: {train.lr: 1}}", "there is no such method"),
        ("{lwf: 3}", "must hold, for each method"),
        ("{lwf: {train.lrr: 1}}", "unknown key 'train.lrr'.*Did you mean 'lr'"),
        ("{ewc: {ewc.wieght: 1}}", "methods: 'ewc': unknown key 'ewc.wieght'.*Did you mean 'weight'"),  # not chosen
        ("{lwf: {method: finetune}}", "'method' is no section"),
        ("{krt: {seed: 7}}", "'seed' is no section"),
        ("{lwf: {trian.lr: 1}}", "'trian' is no section.*Did you mean 'train'"),
        ("{lwf: {train: {lr: 1}, train.lr: 2}}", r"mine\.yaml: methods: 'lwf': Override train.lr is given twice"),
        ("{ewc: {train.lr: fast}}", "methods: 'ewc': train.lr must be a number"),
    ],
)
def test_what_a_method_changes_is_checked(methods, words, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: digits_demo\nmethods: {methods}\n")
    with pytest.raises(ConfigError, match=words):
        load_experiment(tmp_path / "mine.yaml", ["method=lwf"])


@pytest.mark.parametrize("preset", preset_names())
def test_every_method_takes_every_preset(preset):
    for method in METHODS:
        assert load_experiment(preset, [f"method={method}"]).method == method


@pytest.mark.parametrize(
    ("name", "base", "increment", "replay", "token_weight"),
    [
        ("coco_b0c10", 0, 10, (0, 0), 300), ("coco_b0c10_r20", 0, 10, (20, 0), 100),
        ("coco_b0c10_r5", 0, 10, (5, 0), 100), ("coco_b0c10_m1000", 0, 10, (0, 1000), 100),
        ("coco_b40c10", 40, 10, (0, 0), 300),
        ("coco_b40c10_r20", 40, 10, (20, 0), 300), ("coco_b20c4_r20", 20, 4, (20, 0), 300),
        ("coco_b0c5_r20", 0, 5, (20, 0), 100), ("voc_b0c4", 0, 4, (0, 0), 80), ("voc_b0c4_r2", 0, 4, (2, 0), 80),
        ("voc_b10c2_r2", 10, 2, (2, 0), 300), ("voc_b5c3_r2", 5, 3, (2, 0), 80), ("voc_b4c2_r2", 4, 2, (2, 0), 80),
    ],
)  # fmt: skip
def test_published_settings(name, base, increment, replay, token_weight):
    e = load_experiment(name)
    coco = name.startswith("coco")
    assert (e.protocol.base, e.protocol.increment, e.options.token_weight) == (base, increment, token_weight)
    assert (e.replay.per_class, e.replay.budget, e.replay.duplicates) == (*replay, not coco)
    assert (e.model.backbone, e.model.embed_dim, e.model.heads) == ("tresnet_m", 384 if coco else 768, 8)
    assert (e.train.epochs, e.train.batch_size, e.train.group, e.train.warmup) == (20, 128, 64, 0.2)
    assert (e.train.base_lr, e.train.lr, e.train.weight_decay) == (4e-5, 1e-4 if coco else 4e-5, 1e-4)
    assert (e.train.augment, e.train.evaluate_every, e.options.mean_labels) == ("published", 1, 2.9 if coco else 1.4)
    assert e.replay.labels == "widened" and e.model.query == "transfer" and e.options.target == "published"
    pod = load_experiment(name, ["method=pod"]).options
    assert (pod.spatial_weight, pod.flat_weight, pod.head) == (5, 180, "linear")


def test_hash_follows_what_decides_the_result_and_nothing_else():
    base = load_experiment("digits_demo")
    for same in (["seed=3"], ["name=other"], ["data.cache=false"], ["data.root=elsewhere"], ["finetune.head=ica"]):
        assert load_experiment("digits_demo", same).hash() == base.hash()
    own = [load_experiment("voc_sub", [f"data.root={r}"]).hash() for r in ("a", "b")]
    assert own[0] != own[1]  # two folders of one's own are two experiments
    for other in (["train.epochs=1"], ["method=finetune"], ["krt.token_weight=1"], ["replay.per_class=2"]):
        assert load_experiment("digits_demo", other).hash() != base.hash()
