"""The fields of trainers that no registry has, in the shape that their sources give them.

Neither slime, miles, NeMo-RL nor prime-rl can be installed as a package (docs/trainers/index.md):
each test quotes what it fills, with the file and the commit that it was read in, and does
with the field what that trainer does next.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from support.rollouts import Recorded

from routereplay.client import MissingRoutes, ModelShape, RouteStoreClient
from routereplay.client.adapters import nemo_rl, prime_rl, slime

pytestmark = pytest.mark.parametrize("store", ["embedded"], indirect=True)

SHAPE = ModelShape(num_layers=24, topk=6, num_experts=64)


@pytest.fixture
def client(store):
    with RouteStoreClient(store.sidecar.url) as client:
        yield client


@dataclasses.dataclass
class Sample:
    """The fields that are used of slime/utils/types.py and miles/utils/types.py.

    https://github.com/THUDM/slime/blob/0d234f3e3a83c81b7d37209994e0b994deacbb24/slime/utils/types.py
    https://github.com/radixark/miles/blob/002ce70c0f33c97255bec842e8b95d1dfb31d3f3/miles/utils/types.py
    """

    tokens: list[int]
    response_length: int = 0
    loss_mask: list[int] | None = None
    rollout_routed_experts: np.ndarray | None = None
    session_id: str | None = None

    @classmethod
    def of(cls, recorded: Recorded) -> Sample:
        response = len(recorded.token_ids) - recorded.first_prompt
        mask = recorded.sampled[-response:].astype(int).tolist()
        return cls(recorded.token_ids.tolist(), response, mask, session_id=recorded.name)


def test_slime_samples_get_one_row_less_than_tokens_in_int32(store, client):
    recorded = [Recorded(f"slime-{n}", 1 + n, seed=60 + n).store_in(store) for n in range(3)]
    samples = [Sample.of(one) for one in recorded]
    samples[0].loss_mask = None  # of one turn: slime trains the whole response

    slime.fill_samples(client, samples, model=SHAPE)

    for one, sample in zip(recorded, samples, strict=True):
        routed = sample.rollout_routed_experts
        # fill_routing_replay in backends/megatron_utils/actor.py does both with it.
        assert torch.from_numpy(routed).shape[0] == len(sample.tokens) - 1
        assert routed.dtype == np.int32
        assert np.array_equal(routed, one.experts)


def test_a_slime_sample_without_routes_stops_and_changes_none(store, client):
    good, absent = Recorded("slime-good", 1, seed=63).store_in(store), Recorded("gone", 1, seed=64)
    samples = [Sample.of(good), Sample.of(absent)]

    with pytest.raises(Exception, match=r"^sample 1 \(trajectory gone\)"):
        slime.fill_samples(client, samples, wait_s=0.1)
    assert samples[0].rollout_routed_experts is None
    samples[1].session_id = None
    with pytest.raises(ValueError, match="X-Session-ID"):
        slime.fill_samples(client, samples)


class RoutedExperts(msgspec.Struct, array_like=True, gc=False, omit_defaults=True):
    """src/prime_rl/transport/types.py.

    https://github.com/PrimeIntellect-ai/prime-rl/blob/main/src/prime_rl/transport/types.py
    """

    data: bytes
    shape: list[int]
    dtype: str


class TrainingSample(msgspec.Struct, array_like=True, gc=False, omit_defaults=True):
    """The fields that are used, in their order."""

    token_ids: list[int]
    mask: list[bool]
    routed_experts: RoutedExperts | None = None
    trace_id: str | None = None


def test_prime_rl_samples_travel_as_raw_bytes_one_for_each_branch(store, client):
    trunk, fork = Recorded("trace", 2, seed=70).store_in(store), Recorded("trace-b", 1, seed=71)
    for upload in fork.uploads:
        store.put(upload.changed(trajectory_id="trace", ordinal=2))
    samples = [
        TrainingSample(one.token_ids.tolist(), one.sampled.tolist(), trace_id="trace")
        for one in (trunk, fork)
    ]

    prime_rl.fill_samples(client, samples, make=RoutedExperts, model=SHAPE)

    sent = msgspec.msgpack.encode(samples)
    for one, sample in zip(
        (trunk, fork), msgspec.msgpack.decode(sent, type=list[TrainingSample]), strict=True
    ):
        routed = sample.routed_experts
        experts = np.frombuffer(routed.data, routed.dtype).reshape(routed.shape)
        assert routed.shape[0] == len(sample.token_ids)  # the trainer asserts it
        assert np.array_equal(experts[:-1], one.experts)
    with pytest.raises(ValueError, match="does not keep trace_id"):
        samples[1].trace_id = None
        prime_rl.fill_samples(client, samples, make=RoutedExperts)


def message_log(recorded):
    return [
        {"role": role, "content": "", "token_ids": torch.from_numpy(tokens.astype(np.int64))}
        for role, tokens in recorded.pieces()
    ]


@pytest.mark.parametrize(
    ("experts", "dtype"), [(64, torch.int8), (128, torch.int8), (256, torch.int16)]
)
def test_nemo_rl_messages_get_rows_of_their_tokens_and_minus_one_for_none(
    store, client, experts, dtype
):
    recorded = Recorded(f"nemo-{experts}", 3, seed=80, num_experts=experts).store_in(store)
    log = message_log(recorded)
    log.append({"role": "environment", "content": "", "token_ids": torch.tensor([3, 4])})

    nemo_rl.fill_message_logs(client, [log], [recorded.name])

    assert [len(m["routed_experts"]) for m in log] == [len(m["token_ids"]) for m in log]
    assert {m["routed_experts"].dtype for m in log} == {dtype}
    whole = torch.cat([m["routed_experts"] for m in log]).numpy()
    assert np.array_equal(whole[:-3], recorded.experts)
    assert (whole[-3:] == -1).all()  # the row that never exists, and the unread result


def test_nemo_rl_takes_lost_rows_as_its_own_fallback_only_when_asked(store, client):
    recorded = Recorded("nemo-lost", 2, seed=81)
    store.put(recorded.uploads[0])
    store.post(recorded.uploads[1].drop_frame("queue_full"))
    log = message_log(recorded)

    with pytest.raises(MissingRoutes, match=r"^sample 0 \(trajectory nemo-lost\)"):
        nemo_rl.fill_message_logs(client, [log], [recorded.name])
    assert "routed_experts" not in log[0]
    nemo_rl.fill_message_logs(client, [log], [recorded.name], missing="live", wait_s=0.1)

    whole = torch.cat([m["routed_experts"] for m in log]).numpy()
    there = len(recorded.uploads[0].experts)
    assert np.array_equal(whole[:there], recorded.uploads[0].experts)
    assert (whole[there:] == -1).all()
