import pytest

from krt_core.config import experiment_from, load_experiment, parse_yaml, preset_names
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


def test_hash_follows_what_decides_the_result_and_nothing_else():
    base = load_experiment("digits_demo")
    for same in (["seed=3"], ["name=other"], ["data.cache=false"], ["data.root=elsewhere"], ["finetune.head=ica"]):
        assert load_experiment("digits_demo", same).hash() == base.hash()
    own = [load_experiment("voc_sub", [f"data.root={r}"]).hash() for r in ("a", "b")]
    assert own[0] != own[1]  # two folders of one's own are two experiments
    for other in (["train.epochs=1"], ["method=finetune"], ["krt.token_weight=1"], ["replay.per_class=2"]):
        assert load_experiment("digits_demo", other).hash() != base.hash()
