"""Record, seal, fetch, stitch, pack, replay: every part real.

A stock vLLM server in float32 with our plugin, the route store on its embedded Valkey,
the plain `openai` client, and Megatron-Core in a process of its own for each version.
Without the recorder, the seal, the stitching or the replay a test here fails.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from end_to_end.batch import pack
from support.engine_core import engine_core_of, held_still
from support.hf_reference import assert_rows_equal_the_reference

from routereplay.client import MisalignedRoutes, ModelShape, RouteStoreClient, stitch
from routereplay.wire.errors import NotFound, RoutesPending

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

SHAPE = ModelShape(num_layers=4, topk=4, num_experts=16)


def test_every_turn_of_every_trajectory_is_sealed(episodes, trajectories):
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        choices = 2 if episode.style == "two choices" else 1
        assert trajectory.unsealed == ()
        assert len(trajectory.turns) == 3 * choices
        assert all(turn.manifest.complete for turn in trajectory.turns)
        assert {turn.manifest.request_id for turn in trajectory.turns} == set(episode.request_ids)


def test_recorded_rows_equal_the_reference_on_every_real_row(checkpoint, episodes, trajectories):
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        stitched = stitch(trajectory, episode.token_ids)

        assert stitched.missing.tolist() == [False] * (len(episode.token_ids) - 1) + [True]
        assert_rows_equal_the_reference(checkpoint, stitched.token_ids, stitched.experts[:-1])


def test_both_choices_of_a_request_equal_the_reference(checkpoint, episodes, trajectories):
    both = trajectories[[episode.style for episode in episodes].index("two choices")]
    sequences = both.sequences()

    assert len(sequences) == 4  # the choice that was not continued, at each of three turns
    for tokens in sequences:
        stitched = stitch(both, tokens, branches="allow")
        assert_rows_equal_the_reference(checkpoint, tokens, stitched.experts[:-1])


def test_the_command_measures_both_engines_and_their_floors(server, store, checkpoint, tmp_path):
    page = tmp_path / "parity.html"
    command = [
        *(sys.executable, "-m", "routereplay.cli", "parity", str(checkpoint)),
        *("--vllm", server.base_url, "--served-name", "tiny", "--store", store.base_url),
        *("--dtype", "float32", "--device", "cpu", "--max-tokens", "8", "--seeds", "2"),
        *("--html", str(page), "--max-pct", "0.5", "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    columns = facts["columns"]

    assert set(columns) == {"vLLM again", "replay off", "replay on", "Megatron again"}
    assert columns["replay on"]["rows_differ"] == 0.0
    assert len(columns["replay off"]["layers_differ"]) == 3
    # One arithmetic on both sides, so nothing but rounding is left.
    assert 0.0 < columns["replay on"]["mae"] < 1e-3
    assert columns["replay on"]["top20_kl"] < 1e-6
    assert [one["seed"] for one in facts["by_sampling"]] == [0, 1]
    assert facts["gates"] == {"limits": {"mean_abs_pct": 0.5, "top20_kl": 0.002}, "exceeded": []}
    assert "<b>Within the limits</b>" in page.read_text()


def test_stored_trajectories_are_compared_with_what_the_engine_says_of_them_now(
    server, store, checkpoint, trajectories
):
    from routereplay.client import RouteStoreClient
    from routereplay.parity.hf_config import read_hf_config
    from routereplay.parity.measurement import Measured
    from routereplay.parity.rollout import Engine
    from routereplay.parity.sampling import sample_stored

    engine = Engine(server.base_url, "tiny")
    with RouteStoreClient(store.base_url) as client:
        sampling = sample_stored(engine, client, [trajectories[0].trajectory_id])
    engine.close()
    (rollout,) = sampling.rollouts
    again = Measured([sampling], read_hf_config(checkpoint)).columns()["vLLM again"]

    assert (rollout.token_ids == stitch(trajectories[0]).token_ids).all()
    assert len(rollout.sampled.positions) == 3 * 16
    assert (rollout.sampled.logprobs < 0).all()
    assert again.mae < 1e-3


def test_the_last_turn_alone_is_whole_though_it_recorded_only_its_new_rows(
    store, checkpoint, episodes
):
    request_id = episodes[0].request_ids[-1]
    with RouteStoreClient(store.base_url) as client:
        routes = client.fetch_request(request_id)

    assert routes.manifest.row_start > 0
    assert routes.token_start == 0
    assert [source.request_id for source in routes.sources] == episodes[0].request_ids
    assert_rows_equal_the_reference(checkpoint, routes.token_ids, routes.experts)


def test_a_request_is_found_by_its_id_and_by_the_clients_own(server, store, checkpoint):
    from openai import OpenAI

    openai = OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
    answer = openai.completions.create(
        model="tiny",
        prompt="the quick brown fox",
        max_tokens=8,
        extra_headers={"X-Request-Id": "my-own-id"},
    )

    with RouteStoreClient(store.base_url) as client:
        by_id = client.fetch_request(answer.id, wait_s=30)
        by_own = client.fetch_request("my-own-id", wait_s=30)
    assert np.array_equal(by_id.experts, by_own.experts)
    assert_rows_equal_the_reference(checkpoint, by_id.token_ids, by_id.experts)


def test_no_response_carries_routes(server):
    import httpx

    body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
    whole = httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=120).json()
    streamed = httpx.post(
        f"{server.base_url}/v1/completions", json={**body, "stream": True}, timeout=120
    ).text

    assert whole["choices"][0].get("routed_experts") is None
    assert "routed_experts" not in streamed


def test_an_unknown_id_is_not_found_and_says_so(store):
    with RouteStoreClient(store.base_url) as client, pytest.raises(NotFound):
        client.fetch_request("chatcmpl-never-seen")


def test_a_slice_equals_the_slice_of_the_whole(store, episodes):
    request_id = episodes[0].request_ids[-1]
    with RouteStoreClient(store.base_url) as client:
        whole = client.fetch_request(request_id)
        part = client.fetch_request(request_id, layers=range(1, 3), tokens=range(2, 9))

    assert (part.token_start, part.layer_start) == (2, 1)
    assert np.array_equal(part.experts, whole.experts[2:9, 1:3])


def test_an_edited_token_is_refused_while_packing(episodes, trajectories):
    edited = [episode for episode in episodes if episode.style == "plain"]
    tokens = edited[0].token_ids.copy()
    tokens[len(tokens) // 2] += 1

    with pytest.raises(MisalignedRoutes, match=r"episode-0: turn \d .*position"):
        stitch(trajectories[0], tokens)


@pytest.fixture(scope="module", params=["0.16.1", "0.19.2"])
def trained(request, checkpoint, episodes, trajectories, tmp_path_factory):
    """What one process with a Megatron-Core made of the recorded routes, and of two others."""
    batches = {name: pack(episodes, trajectories, SHAPE) for name in ("recorded", "other", "wrong")}
    # Another expert in every row: live routing cannot pass for replay.
    experts = batches["other"].routes.experts
    experts[...] = (experts.astype(int) + 1) % SHAPE.num_experts
    experts[:, 0] = 0  # the dense layer
    # Valid in shape, range and tokens; only the canary can tell.
    experts = batches["wrong"].routes.experts
    experts[:, 1:] = (experts[:, 1:].astype(int) + 1) % SHAPE.num_experts
    options = {"recorded": {}, "other": {"canary_every": 0}, "wrong": {}}
    jobs = {name: (batch, options[name]) for name, batch in batches.items()}
    return _train(request.param, checkpoint, jobs, tmp_path_factory.mktemp("trained"))


@pytest.mark.megatron
def test_megatron_replays_what_vllm_executed(trained):
    result = trained["recorded"]

    assert result["on"]["rows_differ"] == 0.0
    # Both engines compute in float32 here, so the log-probs agree to rounding.
    assert result["on"]["mae"] < 1e-4
    assert result["router_gradient_norm"] > 0
    assert result["router_calls"] == 3


@pytest.mark.megatron
def test_replay_executes_the_routes_even_where_the_router_disagrees(trained):
    result = trained["other"]

    assert result["off"]["rows_differ"] == 1.0
    assert result["on"]["rows_differ"] == 0.0
    assert result["on"]["mae"] > result["off"]["mae"]


@pytest.mark.megatron
def test_routes_that_are_not_the_models_stop_training(trained):
    assert "ReplayMisrouted" in trained["wrong"]


def test_transformers_replays_what_vllm_executed(checkpoint, episodes, trajectories):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers_loop.step import Sampled, train_step

    from routereplay.patches.transformers import enable_router_replay

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    replay = enable_router_replay(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = []
    for episode in episodes:
        sampled = np.zeros(len(episode.token_ids), bool)
        sampled[[sample.position for sample in episode.samples]] = True
        batch.append(Sampled(episode.token_ids, sampled))

    logprobs = train_step(model, replay, optimizer, batch, trajectories)

    for episode, ours in zip(episodes, logprobs, strict=True):
        for sample in episode.samples:
            assert ours[sample.position] == pytest.approx(sample.log_prob, abs=1e-4)
    assert replay.last_step.microbatches == 2
    assert replay.last_step.rows.live == len(episodes)  # the last token of each
    assert replay.last_step.canary[0].overlap > 0.99
    gates = [p for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert all(gate.grad.norm() > 0 for gate in gates)


@pytest.fixture(scope="module")
def loops(checkpoint, store, episodes):
    """What each loop of examples/megatron_loop printed: a line for each of two steps."""
    # The choices that the agent left make further sequences, behind those of the episodes.
    ordered = sorted(episodes, key=lambda episode: episode.samples_per_turn)
    arguments = ["--store", store.base_url, "--checkpoint", str(checkpoint)]
    arguments += [episode.trajectory_id for episode in ordered]
    sampled = [sample.log_prob for episode in ordered[:3] for sample in episode.samples]
    return sampled, {
        "plain": _printed(["-m", "megatron_loop.run", *arguments]),
        "pipeline": _printed([*_TWO_STAGES, "-m", "megatron_loop.run", *arguments]),
    }


@pytest.mark.megatron
@pytest.mark.parametrize("loop", ["plain", "pipeline"])
def test_a_megatron_loop_trains_on_what_vllm_executed(loops, loop):
    sampled, printed = loops
    first, second = printed[loop]

    assert first["logprobs"][: len(sampled)] == pytest.approx(sampled, abs=1e-4)
    assert first["overlap"] > 0.99
    assert first["live"] == 7  # The last token of each sequence.
    assert second["mean_logprob"] > first["mean_logprob"]


@pytest.mark.megatron
def test_two_pipeline_stages_train_as_one_process_does(loops):
    _, printed = loops
    for plain, pipeline in zip(printed["plain"], printed["pipeline"], strict=True):
        assert plain["logprobs"] == pytest.approx(pipeline["logprobs"], abs=1e-5)


_TWO_STAGES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _printed(command):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(600)
def test_a_store_that_is_away_hurts_nobody_and_what_was_lost_is_counted(server, store, checkpoint):
    from openai import OpenAI

    openai = OpenAI(base_url=f"{server.base_url}/v1", api_key="none", timeout=120)
    ask = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "temperature": 0.0}
    before = openai.completions.create(**ask)
    store.stop()
    try:
        during = [openai.completions.create(**ask) for _ in range(3)]
    finally:
        store.start()
    after = openai.completions.create(**ask)

    assert {answer.choices[0].text for answer in [*during, after]} == {before.choices[0].text}
    with RouteStoreClient(store.base_url) as client:
        routes = client.fetch_request(after.id, wait_s=60)
    assert_rows_equal_the_reference(checkpoint, routes.token_ids, routes.experts)


def test_an_open_request_is_pending_and_never_partial(server, store):
    # The engine is stopped in the middle of a request, so that it stays open while we look. On a
    # busy machine it may have ended before it could be stopped: then the next one is tried.
    with RouteStoreClient(store.base_url) as client:
        for attempt in range(10):
            request_id = f"long-one-{attempt}"
            with _started(server, request_id), held_still(engine_core_of(server.pid)):
                if not _ended(client, request_id):
                    _stays_pending(client, request_id)
                    break
        else:
            pytest.fail("no request could be stopped before its end")
        # The client left in mid-stream: what was delivered is sealed as aborted.
        routes = client.fetch_request(request_id, wait_s=30)
    assert routes.manifest.finish_reason == "abort"
    assert routes.manifest.complete


@contextlib.contextmanager
def _started(server, request_id):
    """A long request after its first token; its client leaves at the end."""
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 900, "ignore_eos": True}
    url = f"{server.base_url}/v1/completions"
    headers = {"X-Request-Id": request_id}
    with httpx.stream(
        "POST", url, json={**body, "stream": True}, headers=headers, timeout=120
    ) as response:
        # Kept to the end: an iterator that is let go of closes the connection.
        lines = response.iter_lines()
        next(lines)
        yield lines


def _ended(client, request_id):
    """Whether vLLM's front end had all its tokens; the seal follows within moments then."""
    try:
        client.fetch_request(request_id, wait_s=3)
    except (RoutesPending, NotFound):
        return False
    return True


def _stays_pending(client, request_id):
    deadline = time.monotonic() + 30
    refused = None
    while refused is not RoutesPending and time.monotonic() < deadline:
        # Unknown until the first chunk is on its way.
        with pytest.raises((RoutesPending, NotFound)) as raised:
            client.fetch_request(request_id)
        refused = raised.type
    assert refused is RoutesPending
    with pytest.raises(RoutesPending):
        client.fetch_request(request_id, wait_s=2)


def _train(version, checkpoint, jobs, folder):
    """Run `trainer.train` of each job in one process, on the Megatron-Core of `version`.

    Return name -> its result, or the error of the canary that stopped it.
    """
    folders = dict(
        item.split("=", 1)
        for item in os.environ.get("ROUTEREPLAY_TEST_MCORE_PATHS", "").split(":")
        if item
    )
    if version not in folders:
        pytest.skip(f"Megatron-Core {version} is not in ROUTEREPLAY_TEST_MCORE_PATHS")
    (folder / "jobs").write_bytes(pickle.dumps((checkpoint, jobs)))
    environment = dict(os.environ)
    paths = [folders[version], *sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-W", "ignore", "-c", _TRAIN, str(folder)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads((folder / "results").read_bytes())


_TRAIN = """
import dataclasses, pathlib, pickle, sys
from end_to_end import trainer
from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups
from routereplay.patches.megatron import ReplayMisrouted
folder = pathlib.Path(sys.argv[1])
checkpoint, jobs = pickle.loads((folder / "jobs").read_bytes())
results = {}
with megatron_on_cpu(), single_process_groups():
    for name, (batch, options) in jobs.items():
        try:
            results[name] = dataclasses.asdict(trainer.train(checkpoint, batch, **options))
        except ReplayMisrouted as error:
            results[name] = f"{type(error).__name__}: {error}"
(folder / "results").write_bytes(pickle.dumps(results))
"""
