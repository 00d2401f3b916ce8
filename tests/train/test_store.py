"""The store of embeddings: whole or not there, damage is seen, and blocks make what one piece makes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import store as store_module
from training.data.store import EmbeddingStore, StoreError

ROOT = Path(__file__).resolve().parents[2]


def values_of(n: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def tokens_of(layers: int, n: int, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(layers, n, dim)).astype(np.float32)


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def data_files(store: EmbeddingStore, slide_id: str = "s", array: str = "embedding") -> list[Path]:
    place = store.root / f"{slide_id}.zarr" / array / "c"
    return sorted(path for path in place.rglob("*") if path.is_file())


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    chunk=st.integers(1, 16),
    layers=st.integers(0, 3),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_where_they_lie_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, n: int, chunk: int, layers: int, zeros: bool, seed: int
) -> None:
    """Several chunks a shard and several shards, the last ones cut; chunks of zeros, which aren't stored."""
    store, rng = EmbeddingStore(tmp_path_factory.mktemp("store")), np.random.default_rng(seed)
    values = values_of(n, 6, seed) if not layers else rng.normal(size=(layers, n, 6)).astype(np.float32)
    if zeros:
        values[..., n // 3 :, :] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_TILES", chunk)
        patch.setattr(store_module, "SHARD_TILES", 3 * chunk)
        store.write("s", embedding=values)
    whole = store.read("s", dtype=np.float16)
    with store.rows("s") as rows:
        assert rows.n_rows == n
        for index in (rng.integers(n, size=9), np.arange(n), np.sort(rng.integers(n, size=30)), np.arange(0)):
            taken = rows.take(index)
            assert taken.dtype == np.float16
            np.testing.assert_array_equal(taken, whole[..., index, :])
            if layers:
                outer = tuple(int(one) for one in rng.permutation(layers)[:2])
                np.testing.assert_array_equal(rows.take(index, outer), whole[list(outer)][:, index])


def test_rows_of_a_damaged_slide_are_told_and_it_is_forgotten(tmp_path: Path) -> None:
    for how in ("bit", "cut", "index"):
        store = EmbeddingStore(tmp_path / how)
        store.write("s", embedding=values_of(20))
        path = data_files(store)[0]
        data = bytearray(path.read_bytes())
        data[-8 if how == "index" else 3] ^= 64
        path.write_bytes(data[:-1] if how == "cut" else data)
        with pytest.raises(StoreError, match="the stored embeddings of s are damaged"):
            store.rows("s")
        assert not store.has("s")


def test_a_file_that_is_cut_while_rows_are_taken_is_told(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write("s", embedding=values_of(20))
    with store.rows("s") as rows:
        os.truncate(data_files(store)[0], 50)
        with pytest.raises(StoreError, match="embeddings of s can't be read any more"):
            rows.take(np.array([19]))
    assert not store.has("s")  # the next run embeds it anew


# --- what is written is read -----------------------------------------------------------------------------------------


def test_store_round_trip_is_half_precision(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "deep" / "store")
    values = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32) * 100
    tokens = tokens_of(3, 10)
    assert not store.has("s")
    store.write("s", embedding=values, layer_class_tokens=tokens)
    assert store.has("s")
    np.testing.assert_array_equal(store.read("s"), values.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(store.read("s", "layer_class_tokens"), tokens, rtol=5e-4, atol=3e-8)
    assert store.read("s").dtype == np.float32
    assert store.read("s", dtype=np.float16).dtype == np.float16
    assert store.n_tiles("s") == 10
    store.write("s", embedding=values[:3])
    assert store.read("s").shape == (3, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_store_refuses_what_is_not_finite_in_half(tmp_path: Path, bad: float) -> None:
    store = EmbeddingStore(tmp_path)
    with pytest.raises(StoreError, match=r"s: embedding holds values that aren't finite in float16"):
        store.write("s", embedding=np.array([[1.0, bad]]))
    assert not store.has("s")


def test_an_interrupted_write_is_not_seen(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    with pytest.raises(StoreError, match="second"):
        store.write("s", embedding=np.ones((4, 2)), second=np.array([[np.nan, 0]]))
    assert not store.has("s")
    assert not list(tmp_path.iterdir())
    store.write("s", embedding=np.ones((4, 2)))
    assert store.read("s").shape == (4, 2)


def test_an_interrupted_rewrite_leaves_the_first(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write("s", stamp="one", embedding=np.ones((4, 2)))

    def interrupted() -> None:
        with store.writer("s", stamp="two") as open_array:
            open_array("embedding", (4, 2)).add(np.zeros((2, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.has("s", "one")
    assert (store.read("s") == 1).all()


def test_a_stamp_says_what_the_embeddings_were_made_of(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write("s", stamp="slide of Monday", embedding=np.ones((4, 2)))
    assert store.has("s")
    assert store.has("s", "slide of Monday")
    assert not store.has("s", "slide of Tuesday")
    assert not store.has("other", "slide of Monday")
    store.write("s", stamp="slide of Tuesday", embedding=np.zeros((3, 2)))
    assert store.has("s", "slide of Tuesday")
    assert not store.has("s", "slide of Monday")


def test_the_folder_says_what_its_names_hash_stands_for(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "hr-0123", {"kind": "hr", "mpp": 0.5})
    store.prepare()
    store.prepare()
    assert json.loads((tmp_path / "hr-0123" / "store.json").read_text()) == {"kind": "hr", "mpp": 0.5}


# --- blocks and shards -----------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    chunk=st.integers(1, 9),
    chunks_a_shard=st.integers(1, 4),
    layers=st.integers(1, 3),
)
def test_blocks_make_the_files_that_one_piece_makes(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    chunk: int,
    chunks_a_shard: int,
    layers: int,
) -> None:
    """Also across the borders of shards, to the byte."""
    store = EmbeddingStore(tmp_path_factory.mktemp("store"))
    n = sum(sizes)
    values, tokens = values_of(n), tokens_of(layers, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_TILES", chunk)
        patch.setattr(store_module, "SHARD_TILES", chunk * chunks_a_shard)
        store.write("whole", embedding=values, layer_class_tokens=tokens)
        with store.writer("blocks") as open_array:
            embedding, layer_tokens = (
                open_array(name, array.shape)
                for name, array in (("embedding", values), ("layer_class_tokens", tokens))
            )
            start = 0
            for size in sizes:
                embedding.add(values[start : start + size])
                layer_tokens.add(tokens[:, start : start + size])
                start += size
            embedding.finish()
            layer_tokens.finish()
    assert files_of(store.root / "whole.zarr") == files_of(store.root / "blocks.zarr")
    np.testing.assert_array_equal(store.read("blocks", dtype=np.float16), values.astype(np.float16))
    np.testing.assert_array_equal(
        store.read("blocks", "layer_class_tokens", dtype=np.float16), tokens.astype(np.float16)
    )


def test_an_array_larger_than_a_shard_has_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHUNK_TILES", 4)
    monkeypatch.setattr(store_module, "SHARD_TILES", 8)
    store = EmbeddingStore(tmp_path)
    store.write("s", embedding=values_of(21), layer_class_tokens=tokens_of(2, 21))
    for name in ("embedding", "layer_class_tokens"):
        assert len(data_files(store, array=name)) == 3  # 8, 8 and 5 tiles; all layers together
    np.testing.assert_array_equal(store.read("s"), values_of(21).astype(np.float16).astype(np.float32))
    for number in range(3):
        copy = EmbeddingStore(tmp_path / f"lost {number}")
        copy.write("s", embedding=values_of(21))
        data_files(copy)[number].unlink()
        assert not copy.has("s")


def test_no_more_than_a_shard_waits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_TILES", 4)
    monkeypatch.setattr(store_module, "SHARD_TILES", 8)
    with EmbeddingStore(tmp_path).writer("s") as open_array:
        array = open_array("embedding", (50, 5))
        for start in range(0, 50, 5):
            array.add(values_of(50)[start : start + 5])
            assert sum(len(part) for part in array._waiting) < 8
        array.finish()


@pytest.mark.parametrize("n", [9, 3])
def test_missing_tiles_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(store_module, "CHUNK_TILES", 4)
    monkeypatch.setattr(store_module, "SHARD_TILES", 4)
    store = EmbeddingStore(tmp_path)

    def too_few() -> None:
        with store.writer("s") as open_array:
            array = open_array("embedding", (10, 5))
            array.add(values_of(n))
            array.finish()

    with pytest.raises(StoreError, match=rf"s: {n} of 10 tiles were embedded"):
        too_few()
    assert not store.has("s")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    """Two slides of 10 tiles in shards of 4; chunks of 2."""
    monkeypatch.setattr(store_module, "CHUNK_TILES", 2)
    monkeypatch.setattr(store_module, "SHARD_TILES", 4)
    store = EmbeddingStore(tmp_path)
    for name in ("s", "sound"):
        store.write(name, stamp="x", embedding=values_of(10, 3), layer_class_tokens=tokens_of(2, 10, 3))
    return store


def test_a_file_cut_short_or_lost_is_seen(small: EmbeddingStore) -> None:
    place = small.root / "s.zarr"
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert small.has("s", "x")
        path.write_bytes(content[:-2])
        assert not small.has("s"), path
        path.write_bytes(b"")
        assert not small.has("s"), path
        path.unlink()
        assert not small.has("s"), path
        path.write_bytes(content)
    assert small.has("s", "x")
    assert small.has("sound", "x")


@pytest.mark.parametrize("array", ["embedding", "layer_class_tokens"])
def test_a_flipped_byte_is_found_where_it_is_read(small: EmbeddingStore, array: str) -> None:
    """Any of them: in the embeddings, in a checksum, in a shard's index."""
    manifest = small.root / "s.zarr" / "manifest.json"
    whole = manifest.read_bytes()
    for path in data_files(small, array=array):
        content = path.read_bytes()
        for index in range(0, len(content), 5):
            path.write_bytes(
                content[:index] + bytes([content[index] ^ (1 << index % 8)]) + content[index + 1 :]
            )
            assert small.has("s")  # its size is right
            with pytest.raises(
                StoreError, match=r"embeddings of s are damaged .*Run again: that slide will be"
            ):
                small.read("s", array)
            assert not small.has("s")  # the next run embeds it anew
            assert small.has("sound")
            manifest.write_bytes(whole)
        path.write_bytes(content)
    assert small.read("s").shape == (10, 3)


@pytest.mark.parametrize("name", ["manifest.json", "zarr.json", "embedding/zarr.json"])
def test_damaged_descriptions_are_no_crash(small: EmbeddingStore, name: str) -> None:
    """The slide is whole, isn't there, or is told of as damaged; what is read is right."""
    place, expected = small.root / "s.zarr", small.read("sound")
    whole = (place / "manifest.json").read_bytes()
    path = place / name
    content = path.read_bytes()
    told = 0
    for index in range(0, len(content), 3):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x11]) + content[index + 1 :])
        if not small.has("s", "x"):
            told += 1
        else:
            try:
                found = small.read("s")
            except StoreError:
                told += 1
                assert not small.has("s")
            else:
                np.testing.assert_array_equal(found, expected)
        path.write_bytes(content)
        (place / "manifest.json").write_bytes(whole)
    assert told


def test_a_slide_that_is_not_there_is_told(small: EmbeddingStore) -> None:
    with pytest.raises(StoreError, match=r"embeddings of gone are damaged"):
        small.read("gone")
    assert not small.has("gone")


def test_damage_is_mended_by_writing_again(small: EmbeddingStore) -> None:
    path = data_files(small)[0]
    path.write_bytes(path.read_bytes()[:-3])
    assert not small.has("s", "x")
    small.write("s", stamp="x", embedding=values_of(10, 3))
    assert small.has("s", "x")
    np.testing.assert_array_equal(small.read("s"), small.read("sound"))


# --- processes -------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from training.data import store
store.CHUNK_TILES = store.SHARD_TILES = 4
with store.EmbeddingStore(Path(sys.argv[1])).writer("s", stamp="x") as open_array:
    array = open_array("embedding", (100, 5))
    for turn in range(25):
        array.add(np.full((4, 5), turn))
        if turn == 12:
            print("half", flush=True)
            time.sleep(600)
    array.finish()
"""


def test_a_killed_writer_leaves_nothing_that_is_seen(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = EmbeddingStore(tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-s.zarr-")
    assert not store.has("s")
    store.prepare()
    assert left.exists()  # somebody may be writing there
    an_age_ago = time.time() - 3 * 3600
    os.utime(left, (an_age_ago, an_age_ago))
    store.prepare()
    assert not left.exists()
    store.write("s", stamp="x", embedding=values_of(100))
    assert store.has("s", "x")


def test_a_slow_writer_is_not_swept_away(tmp_path: Path) -> None:
    """A large slide takes hours, and its first shard is long in coming."""
    store = EmbeddingStore(tmp_path)
    with store.writer("s") as open_array:
        array = open_array("embedding", (4, 5))
        (scratch,) = tmp_path.glob(".writing-*")
        hours_ago = time.time() - 3 * 3600
        os.utime(scratch, (hours_ago, hours_ago))
        array.add(values_of(2))
        EmbeddingStore(tmp_path).prepare()
        assert scratch.exists()
        array.add(values_of(2))
        array.finish()
    assert store.has("s")


def write_often(root: Path, value: int, both_are_here: Barrier) -> None:
    for _ in range(40):
        both_are_here.wait(120)
        EmbeddingStore(root).write("s", stamp="x", embedding=np.full((20, 3), value))


def test_two_runs_may_embed_the_same_slide_at_once(tmp_path: Path) -> None:
    """Of a store that they share: one of them wins, and neither fails."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=write_often, args=(tmp_path, value, barrier)) for value in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    store = EmbeddingStore(tmp_path)
    assert store.has("s", "x")
    assert len(np.unique(store.read("s"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
