import numpy as np

from pneumo_ray.data import cache
from pneumo_ray.data.cache import read_cached, scan_cache, write_shard


def images(n: int, size: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [((f"{seed}-{i:064x}"[:64], i % 2), rng.integers(0, 256, (size, size)).astype(np.uint8)) for i in range(n)]


def test_images_come_back_in_any_order(tmp_path):
    made = images(7, 16)
    name = write_shard(str(tmp_path), 16, made)
    order = [6, 0, 3, 3]
    read = read_cached(str(tmp_path), 16, [name] * 4, order)
    assert np.array_equal(read, np.stack([made[i][1] for i in order]))


def test_a_scan_finds_keys_and_skips_damage(tmp_path):
    first, second = images(3, 16, 1), images(4, 16, 2)
    names = [write_shard(str(tmp_path), 16, first), write_shard(str(tmp_path), 16, second)]
    (tmp_path / "half.arrow").write_bytes((tmp_path / names[0]).read_bytes()[:700])
    (tmp_path / "x.arrow.1234.tmp").write_bytes(b"left behind")
    found = scan_cache(str(tmp_path), 16)
    assert found == {
        key: (name, row)
        for name, group in zip(names, (first, second), strict=True)
        for row, (key, _) in enumerate(group)
    }
    assert scan_cache(str(tmp_path / "nowhere"), 16) == {}


def test_other_sizes_and_decoders_are_not_used(tmp_path, monkeypatch):
    write_shard(str(tmp_path), 16, images(2, 16))
    assert scan_cache(str(tmp_path), 32) == {}
    monkeypatch.setattr(cache, "DECODE_VERSION", b"next")
    assert scan_cache(str(tmp_path), 16) == {}


def test_a_shard_is_named_by_its_keys(tmp_path):
    made = images(3, 8)
    assert write_shard(str(tmp_path), 8, made) == write_shard(str(tmp_path), 8, made)
    assert write_shard(str(tmp_path), 8, made[:2]) != write_shard(str(tmp_path), 8, made)
    assert len(list(tmp_path.iterdir())) == 2
