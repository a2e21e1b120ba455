"""2,000 nearly right inputs into every reader (``make fuzz`` tries 100,000): each ends in data or in an error that is
written for the user."""

import fuzz
import fuzz_worlds
import pytest

INPUTS, SEED = 2000, 16
SHARES = {kind: world.share for kind, world in fuzz_worlds.KINDS.items()}


@pytest.mark.parametrize("kind", SHARES)
def test_no_input_ends_in_a_traceback(kind, tmp_path):
    count = round(INPUTS * SHARES[kind] / sum(SHARES.values()))
    wrong = fuzz.try_many(kind, SEED, range(count), tmp_path / "wrong")
    assert not wrong, "\n\n".join(str(one) for one in wrong[:5])


def test_what_is_in_order_is_read():
    """Else the fuzzer would try nothing but errors."""
    for kind, world in fuzz_worlds.KINDS.items():
        with fuzz.own_home() as scratch:
            folder = scratch / "input"
            for name, content in fuzz._files(kind).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            if kind in ("coco", "voc", "table", "tables", "cache", "run", "grown", "job", "matrix", "preset"):
                world.read(folder, fuzz.Random(0))


def test_a_seed_makes_the_same_input_again(tmp_path):
    for kind in ("preset", "coco", "voc"):
        for name in ("a", "b"):
            fuzz.try_one(kind, SEED, 3, tmp_path / name)
        first, second = (
            {p.name: p.read_bytes() for p in sorted((tmp_path / name).rglob("*")) if p.is_file()} for name in ("a", "b")
        )
        assert first == second


def test_what_goes_wrong_is_told_and_kept(tmp_path, monkeypatch):
    def fails(folder, rng):
        raise KeyError("x")

    world = fuzz_worlds.World(fuzz_worlds._coco, fails)
    monkeypatch.setitem(fuzz_worlds.KINDS, "coco", world)
    (wrong,) = fuzz.try_many("coco", 1, range(7, 8), tmp_path)
    assert "--kind coco --seed 1 --one 7" in str(wrong) and "KeyError: 'x'" in str(wrong)
    assert (tmp_path / "coco-1-7" / "annotations").is_dir()
