"""A bundle gives back what was saved, to every rank its part, or says why it cannot."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.bundles import MODEL, random_batch, random_packed

from routereplay.client import (
    BundleBatch,
    BundledTrajectory,
    BundleNotFound,
    MisalignedRoutes,
    ModelShape,
    ReplayBundle,
)
from routereplay.client._bundle_saving import write_bundle
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord, InvalidRoutes, UnsupportedWireVersion

FILE = "batch-00000.safetensors"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "step-7"


@pytest.fixture
def saved(path):
    batches = [random_batch(40, seed=3), random_batch(25, seed=4)]
    ReplayBundle.save(path, batches, model=MODEL)
    return batches


def flip(file, position, bit=1):
    content = bytearray(file.read_bytes())
    content[position] ^= bit
    file.write_bytes(content)


def edit_manifest(path, change):
    """Change a field of the manifest without its digest, as damage or a hand would."""
    manifest = path / "manifest.json"
    content = msgspec.json.decode(manifest.read_bytes())
    change(content)
    manifest.write_bytes(msgspec.json.encode(content))


def test_a_batch_without_order_is_opened_as_one(path):
    ordered = random_batch(9)
    without = BundleBatch(replace(random_packed(9), in_order=False), np.arange(9))
    ReplayBundle.save(path, [ordered, without], model=MODEL)
    bundle = ReplayBundle.open(path)

    assert [bundle.packed(index).in_order for index in range(2)] == [True, False]


def test_every_batch_comes_back_as_it_was_saved(path, saved):
    bundle = ReplayBundle.open(path, model=MODEL)

    assert len(bundle) == 2
    for index, batch in enumerate(saved):
        packed = bundle.packed(index)
        assert np.array_equal(packed.experts, batch.packed.experts)
        assert np.array_equal(packed.live, batch.packed.live)
        assert np.array_equal(packed.padding, batch.packed.padding)
        assert np.array_equal(bundle.token_ids(index), batch.token_ids)
        assert (packed.num_experts, packed.layer_start) == (16, 0)


def test_what_comes_back_has_the_types_that_replay_takes(path, saved):
    packed = ReplayBundle.open(path).packed(0, layers=range(1, 3), rows=slice(2, 9))

    assert packed.experts.dtype == np.uint8
    assert packed.experts.flags.c_contiguous
    assert packed.live.dtype == packed.padding.dtype == bool


def test_a_pipeline_stage_gets_its_layers_with_their_numbers(path, saved):
    packed = ReplayBundle.open(path).packed(1, layers=range(2, 5))

    assert packed.layer_start == 2
    assert np.array_equal(packed.experts, saved[1].packed.experts[:, 2:5])


def test_single_rows_come_in_the_order_they_are_named(path, saved):
    rows = [30, 2, 2, 39, 20]
    packed = ReplayBundle.open(path).packed(0, layers=range(1, 2), rows=rows)

    assert np.array_equal(packed.experts, saved[0].packed.experts[rows, 1:2])
    assert packed.padding.tolist() == [False, False, False, True, False]
    assert packed.live.tolist() == [False, False, False, False, True]


def test_planes_are_a_read_only_view_of_the_file(path, saved):
    planes = ReplayBundle.open(path).planes(0, layers=range(1, 3), rows=slice(4, 8))

    assert np.array_equal(planes, saved[0].packed.experts[4:8, 1:3].transpose(1, 0, 2))
    assert not planes.flags.owndata
    assert not planes.flags.writeable


def test_more_than_256_experts_take_two_bytes_an_id(path):
    model = ModelShape(num_layers=2, topk=3, num_experts=384)
    batch = random_batch(17, model)
    packed = ReplayBundle.save(path, [batch], model=model).packed(0)

    assert packed.experts.dtype == np.uint16
    assert packed.experts.max() > 255
    assert np.array_equal(packed.experts, batch.packed.experts)


def test_sequences_and_where_they_come_from_are_kept(path):
    sources = (BundledTrajectory("episode-1", ("6", "7")), BundledTrajectory("episode-2"))
    batch = random_batch(9, cu_seqlens=[0, 4, 9], trajectories=sources)
    ReplayBundle.save(path, [batch], model=MODEL)

    bundle = ReplayBundle.open(path)

    assert bundle.cu_seqlens(0).tolist() == [0, 4, 9]
    assert bundle.manifest.batches[0].trajectories == sources
    assert bundle.manifest.batches[0].sequences == 2


def test_a_padded_batch_is_saved_with_its_token_table(path):
    batch = random_batch(12)
    table = batch.token_ids.reshape(3, 4)
    bundle = ReplayBundle.save(path, [replace(batch, token_ids=table)], model=MODEL)

    bundle.check_tokens(0, table)
    assert bundle.cu_seqlens(0) is None


def test_any_reader_of_safetensors_opens_a_batch(path, saved):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(path / FILE)

    assert set(tensors) == {"token_ids", "experts", "live", "padding", "block_digests"}
    assert np.array_equal(tensors["experts"], saved[0].packed.experts.transpose(1, 0, 2))
    assert np.array_equal(tensors["live"], saved[0].packed.live)
    assert np.array_equal(tensors["token_ids"], saved[0].token_ids)


def test_the_token_digest_is_of_the_tokens_that_are_not_padding(path, saved):
    real = ~saved[0].packed.padding
    expected = digest(np.asarray(saved[0].token_ids[real], "<i4").data)

    assert ReplayBundle.open(path).manifest.batches[0].token_digest == expected


def test_the_right_tokens_pass_whatever_the_padding_holds(path, saved):
    tokens = [np.array(batch.token_ids) for batch in saved]
    tokens[0][-1] = 999_999  # The last row is padding.

    ReplayBundle.open(path, token_ids=tokens)


def test_other_tokens_are_refused_with_the_first_position(path, saved):
    tokens = [np.array(batch.token_ids) for batch in saved]
    tokens[1][[7, 11]] += 1

    with pytest.raises(MisalignedRoutes, match="batch 1 .* position 7 .*2 differ") as caught:
        ReplayBundle.open(path, token_ids=tokens)
    assert caught.value.details == {"batch": 1, "position": 7}


def test_tokens_of_another_length_are_refused(path, saved):
    with pytest.raises(MisalignedRoutes, match="40 rows, the trainer has 39"):
        ReplayBundle.open(path).check_tokens(0, saved[0].token_ids[:-1])


def test_tokens_of_another_number_of_batches_are_refused(path, saved):
    with pytest.raises(MisalignedRoutes, match="2 batches, token_ids are of 1"):
        ReplayBundle.open(path, token_ids=[saved[0].token_ids])


@pytest.mark.parametrize("field", ["num_layers", "topk", "num_experts"])
def test_a_bundle_of_another_model_is_refused(path, saved, field):
    other = MODEL._replace(**{field: getattr(MODEL, field) + 1})

    with pytest.raises(InvalidRoutes, match="the trainer has"):
        ReplayBundle.open(path, model=other)


def test_a_path_without_a_bundle_is_not_found(path):
    with pytest.raises(BundleNotFound, match="no replay bundle at") as caught:
        ReplayBundle.open(path)
    assert caught.value.code == "bundle_not_found"


def test_a_missing_batch_is_found_when_the_bundle_is_opened(path, saved):
    (path / "batch-00001.safetensors").unlink()

    with pytest.raises(CorruptRecord, match=r"batch-00001.safetensors is missing"):
        ReplayBundle.open(path)


@pytest.mark.parametrize("change", [-1, 1, -1000])
def test_a_file_of_another_size_is_found_when_the_bundle_is_opened(path, saved, change):
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content[:change] if change < 0 else content + b"\0")

    with pytest.raises(CorruptRecord, match=f"expected {len(content)}"):
        ReplayBundle.open(path)


def test_a_file_that_is_cut_after_the_bundle_was_opened_is_not_mapped(path, saved):
    bundle = ReplayBundle.open(path)
    (path / FILE).write_bytes(b"")

    with pytest.raises(CorruptRecord, match="has 0 bytes"):
        bundle.packed(0)


def test_two_batches_that_changed_places_are_found(path):
    ReplayBundle.save(path, [random_batch(9, seed=1), random_batch(9, seed=2)], model=MODEL)
    first, second, spare = (path / f"batch-0000{n}.safetensors" for n in (0, 1, 9))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)

    with pytest.raises(CorruptRecord, match="not those that were saved"):
        ReplayBundle.open(path).packed(0)


def test_a_flipped_bit_anywhere_in_a_file_is_found(path):
    ReplayBundle.save(path, [random_batch(7, cu_seqlens=[0, 3, 7])], model=MODEL)
    file = path / FILE
    for position in range(len(file.read_bytes())):
        flip(file, position, bit=4)
        with pytest.raises(CorruptRecord, match="copy or save the bundle again"):
            ReplayBundle.open(path).packed(0)
        flip(file, position, bit=4)
    ReplayBundle.open(path).packed(0)


def test_a_flipped_bit_is_found_by_the_rank_that_reads_it_and_named(path, saved):
    planes = ReplayBundle.open(path).planes(0)
    flip(path / FILE, (path / FILE).read_bytes().index(planes[3].tobytes()))

    ReplayBundle.open(path).packed(0, layers=range(3))
    with pytest.raises(CorruptRecord, match=re.escape("layer 3, rows 0:40")):
        ReplayBundle.open(path).packed(0, layers=range(2, 5), rows=[39])


def test_rows_that_a_rank_does_not_read_are_not_verified(path):
    batch = random_batch(40)
    write_bundle(path, [batch], MODEL, block_rows=8)
    row = ReplayBundle.open(path).planes(0, layers=range(2, 3), rows=slice(24, 32))
    flip(path / FILE, (path / FILE).read_bytes().index(row.tobytes()))

    bundle = ReplayBundle.open(path)
    for rows in (slice(0, 24), slice(32, 40), slice(24, 24), [23, 32]):
        part = bundle.packed(0, layers=range(2, 3), rows=rows).experts
        assert np.array_equal(part, batch.packed.experts[rows, 2:3])
    for rows in (slice(0, 25), slice(31, 40), [31]):
        with pytest.raises(CorruptRecord, match=re.escape("layer 2, rows 24:32")):
            bundle.packed(0, layers=range(2, 3), rows=rows)


def test_a_manifest_that_was_changed_is_found(path, saved):
    content = (path / "manifest.json").read_bytes()
    changed = content.replace(b'"num_experts": 16', b'"num_experts": 17')
    assert changed != content
    (path / "manifest.json").write_bytes(changed)

    with pytest.raises(CorruptRecord, match="was changed after it was saved"):
        ReplayBundle.open(path)


def test_a_flipped_bit_of_the_manifest_is_found_or_means_nothing(path, saved):
    manifest = path / "manifest.json"
    right = ReplayBundle.open(path).manifest
    for position in range(len(manifest.read_bytes())):
        flip(manifest, position)
        with contextlib.suppress(CorruptRecord, UnsupportedWireVersion):
            assert ReplayBundle.open(path).manifest == right
        flip(manifest, position)
    assert ReplayBundle.open(path).manifest == right


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_what_is_no_manifest_is_corrupt(path, saved, content):
    (path / "manifest.json").write_bytes(content)

    with pytest.raises(CorruptRecord, match="is no manifest of a bundle"):
        ReplayBundle.open(path)


def test_a_manifest_that_is_cut_is_corrupt(path, saved):
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content[: len(content) // 2])

    with pytest.raises(CorruptRecord):
        ReplayBundle.open(path)


def test_another_version_is_refused_by_name(path, saved):
    edit_manifest(path, lambda content: content.update(version=2))

    with pytest.raises(UnsupportedWireVersion, match="bundle version 2, this routereplay reads 1"):
        ReplayBundle.open(path)


def test_another_format_is_refused(path, saved):
    edit_manifest(path, lambda content: content.update(format="other"))

    with pytest.raises(CorruptRecord, match="'other'"):
        ReplayBundle.open(path)


def test_a_bundle_is_never_overwritten(path, saved):
    with pytest.raises(FileExistsError, match="never overwritten"):
        ReplayBundle.save(path, [random_batch(3)], model=MODEL)
    assert len(ReplayBundle.open(path)) == 2


def test_a_save_that_fails_leaves_nothing(path):
    def batches():
        yield random_batch(5)
        msg = "the second batch could not be packed"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="could not be packed"):
        ReplayBundle.save(path, batches(), model=MODEL)
    assert list(path.parent.iterdir()) == []


KILLED_WHILE_SAVING = """
import os, signal, sys
from support.bundles import MODEL, random_batch
from routereplay.client import ReplayBundle

def batches():
    yield random_batch(5)
    os.kill(os.getpid(), signal.SIGKILL)

ReplayBundle.save(sys.argv[1], batches(), model=MODEL)
"""


def test_a_process_that_is_killed_while_it_saves_leaves_no_bundle(path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(path)]
    ended = subprocess.run(command, env=environment, check=False, timeout=60)

    assert ended.returncode == -signal.SIGKILL
    assert [left.suffix for left in path.parent.iterdir()] == [".partial"]
    with pytest.raises(BundleNotFound):
        ReplayBundle.open(path)
    assert len(ReplayBundle.save(path, [random_batch(5)], model=MODEL)) == 1


def test_batches_are_taken_one_by_one_while_they_are_written(path):
    seen = []

    def batches():
        for index in range(3):
            seen.append(len(list(path.parent.glob("*.partial/*.safetensors"))))
            yield random_batch(5, seed=index)

    ReplayBundle.save(path, batches(), model=MODEL)
    assert seen == [0, 1, 2]


REFUSED = [
    (replace(random_batch(6), token_ids=np.arange(5)), "expected one integer for each row"),
    (replace(random_batch(6), token_ids=np.ones(6)), "expected one integer for each row"),
    (replace(random_batch(6), token_ids=np.full(6, 2**31)), "does not fit int32"),
    (replace(random_batch(6), cu_seqlens=[1, 6]), "rising from 0"),
    (replace(random_batch(6), cu_seqlens=[0, 7]), "ends at 7"),
    (
        replace(random_batch(6), cu_seqlens=[0, 6], trajectories=[BundledTrajectory("a")] * 2),
        "2 trajectories for 1 sequences",
    ),
    (
        BundleBatch(replace(random_packed(6), live=np.ones(6, bool)), np.arange(6)),
        "both live and padding",
    ),
    (BundleBatch(replace(random_packed(6), live=np.zeros(5, bool)), np.arange(6)), r"\[6\] bool"),
]


@pytest.mark.parametrize(("batch", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_batch_that_contradicts_itself_is_not_saved(path, batch, words):
    with pytest.raises(ValueError, match=words):
        ReplayBundle.save(path, [batch], model=MODEL)
    assert not path.exists()


def test_a_bundle_without_batches_is_not_saved(path):
    with pytest.raises(ValueError, match="at least one batch"):
        ReplayBundle.save(path, [], model=MODEL)


@pytest.mark.parametrize(
    "packed",
    [
        replace(random_packed(6), layer_start=1),
        replace(random_packed(6), experts=random_packed(6).experts[:, :4]),
        replace(random_packed(6), experts=random_packed(6).experts.astype(np.uint16)),
        replace(random_packed(6), num_experts=17),
        replace(random_packed(6), experts=random_packed(6).experts + 16),
    ],
    ids=["later layers", "fewer layers", "dtype", "experts", "expert out of range"],
)
def test_routes_that_are_not_the_whole_model_are_not_saved(path, packed):
    with pytest.raises(InvalidRoutes, match="batch 0"):
        ReplayBundle.save(path, [BundleBatch(packed, np.arange(6))], model=MODEL)


@pytest.mark.parametrize(
    "part",
    [
        {"layers": range(3, 6)},
        {"layers": range(-1, 2)},
        {"layers": range(0, 4, 2)},
        {"layers": range(2, 2)},
        {"rows": slice(0, 9, 2)},
        {"rows": [40]},
        {"rows": [-1]},
        {"rows": [0.5]},
        {"rows": [[1]]},
        {"index": 2},
    ],
    ids=str,
)
def test_a_part_that_is_not_there_is_an_index_error(path, saved, part):
    with pytest.raises(IndexError):
        ReplayBundle.open(path).packed(**({"index": 0} | part))


def mapped_bytes(file):
    """Bytes of the maps of `file` that were touched, as the kernel counts them."""
    maps = Path("/proc/self/smaps").read_text().split("\n")
    found, inside = 0, False
    for line in maps:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_a_rank_reads_its_own_layers_and_rows_and_little_else(path):
    model = ModelShape(num_layers=96, topk=8, num_experts=64)
    rows = 65_536
    draw = np.random.default_rng(0).integers(0, 8, (rows, model.num_layers, 1), np.uint8)
    experts = draw + np.arange(8, dtype=np.uint8) * 8
    none = np.zeros(rows, bool)
    whole = replace(random_packed(1), experts=experts, live=none, padding=none, num_experts=64)
    ReplayBundle.save(path, [BundleBatch(whole, np.arange(rows))], model=model)

    bundle = ReplayBundle.open(path, model=model)
    assert mapped_bytes(path / FILE) == 0
    packed = bundle.packed(0, layers=range(8, 12), rows=slice(20_000, 30_000))
    touched = mapped_bytes(path / FILE)

    assert np.array_equal(packed.experts, experts[20_000:30_000, 8:12])
    # Kernels map up to 2 MiB around a fault, so this is far from tight: 1.4 of 50 MB are read.
    assert packed.experts.nbytes <= touched < (path / FILE).stat().st_size / 8
