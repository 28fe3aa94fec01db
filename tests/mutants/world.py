"""Right routes on their whole way: engine, recorder, wire, store, client, batch, Megatron.

The routes are the model's own: a real Megatron-Core model chooses them, they are handed to
the real recorder as a vLLM engine would, sealed by a real sidecar, fetched, stitched, packed,
and replayed by the same model in forward, recompute and backward. A mutation takes the place
of one station, or changes what leaves it, and everything after it is the real thing.

Shape legend: T rows of the batch, L layers, K topk.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import torch

from routereplay.client import ModelShape, PackedRoutes, RouteStoreClient, Trajectory, pack_thd
from routereplay.parity.executed import executed_experts
from routereplay.parity.hf_to_megatron import load_hf_checkpoint
from routereplay.parity.scoring import packed_inputs, policy_gradient_packed, score_packed
from routereplay.parity.tiny_moe import VOCAB_SIZE, write_tiny_moe
from routereplay.patches.megatron import enable_router_replay
from routereplay.patches.megatron.discovery import discover
from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.sender import Sender
from routereplay.patches.vllm.settings import Settings

LAYERS, TOPK, EXPERTS = 4, 4, 16
FACTS = ModelFacts("tiny", num_layers=LAYERS, topk=TOPK, num_experts=EXPERTS)
SHAPE = ModelShape(LAYERS, TOPK, EXPERTS)
FIRST_PROMPT, NEXT_PROMPT, COMPLETION = 40, 30, 65
LENGTH = FIRST_PROMPT + NEXT_PROMPT + 2 * COMPLETION
TRAJECTORIES = 3
RECOMPUTE = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


@dataclass
class Request:
    """One choice of one turn, as the engine knows it."""

    trajectory: int
    turn: int
    choice: int
    token_ids: np.ndarray
    """`[prompt + completion]` int32."""
    prompt_len: int
    rows: np.ndarray
    """`[prompt + completion - 1, L, K]` uint8, the routes of every token that was fed."""
    policy: str = "1"
    choices: int = 1
    experts: int = EXPERTS
    """Of the model that the engine serves."""


@dataclass
class Conversation:
    """What a trainer has of one trajectory."""

    token_ids: np.ndarray
    trained: np.ndarray
    """`[tokens]` bool: sampled."""


@dataclass
class Batch:
    """What a training step is given."""

    packed: PackedRoutes
    row_ids: torch.Tensor
    token_ids: torch.Tensor
    cu_seqlens: torch.Tensor


@dataclass
class World:
    """The model and its true routes; every mutant gets copies of them."""

    folder: object
    requests: list[Request] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)

    def __post_init__(self) -> None:
        checkpoint = write_tiny_moe(
            self.folder / "checkpoint", num_layers=LAYERS, num_experts=EXPERTS, topk=TOPK
        )
        self.model = load_hf_checkpoint(checkpoint, **RECOMPUTE).train()
        generator = np.random.default_rng(0)
        for number in range(TRAJECTORIES):
            tokens = generator.integers(1, VOCAB_SIZE, LENGTH).astype(np.int32)
            other = tokens.copy()
            other[-COMPLETION:] = generator.integers(1, VOCAB_SIZE, COMPLETION)
            self._play(number, tokens, other)

    def _play(self, number: int, tokens: np.ndarray, other: np.ndarray) -> None:
        """Two turns, the second one with two choices; the trainer goes on with the first."""
        mine, others = self.routes_of(tokens), self.routes_of(other)
        first = FIRST_PROMPT + COMPLETION
        self.requests += [
            Request(number, 0, 0, tokens[:first], FIRST_PROMPT, mine[: first - 1]),
            Request(number, 1, 0, tokens, first + NEXT_PROMPT, mine[:-1], choices=2),
            Request(number, 1, 1, other, first + NEXT_PROMPT, others[:-1], choices=2),
        ]
        trained = np.zeros(LENGTH, bool)
        trained[FIRST_PROMPT:first] = trained[first + NEXT_PROMPT :] = True
        self.conversations.append(Conversation(tokens, trained))

    def routes_of(self, tokens: np.ndarray) -> np.ndarray:
        """Return `[tokens, L, K]` uint8, the experts that the model itself chooses."""
        cu_seqlens = torch.tensor([0, len(tokens)])
        with torch.no_grad(), executed_experts(self.model, LAYERS, TOPK) as executed:
            score_packed(self.model, torch.from_numpy(tokens.astype(np.int64))[None], cu_seqlens)
        return executed[0].astype(np.uint8)


@dataclass
class Hooks:
    """What a mutant changes; each is given what leaves its station and returns what goes on."""

    engine: object = None
    """`(list[Request]) -> list[Request]`"""
    wire: object = None
    """`(bytes) -> bytes`, of each body that the recorder posts."""
    store: object = None
    """`(store, names of trajectories) -> None`, on what is sealed."""
    stitch: object = None
    """`(list[Trajectory]) -> list[Trajectory]`, as fetched."""
    tokens: object = None
    """`(list[Conversation]) -> list[Conversation]`, what the trainer has."""
    pack: object = None
    """`(PackedRoutes) -> PackedRoutes`"""
    placement: object = None
    """`(torch.Tensor) -> torch.Tensor`, the row ids."""
    replay: object = None
    """`(World, Batch) -> None`, in the place of the training step."""


def run(world: World, store, hooks: Hooks, name: str) -> None:
    """Take the routes of `world` through every station; returns only if nothing was noticed."""
    requests = [replace(request, rows=request.rows.copy()) for request in world.requests]
    if hooks.engine is not None:
        requests = hooks.engine(requests)
    record(requests, store, name, hooks.wire)
    names = [trajectory_id(name, number) for number in range(TRAJECTORIES)]
    if hooks.store is not None:
        hooks.store(store, names)
    with RouteStoreClient(store.sidecar.url) as client:
        trajectories = client.fetch_trajectories(names, wait_s=3)
    if hooks.stitch is not None:
        trajectories = hooks.stitch(trajectories)
    conversations = [replace(one) for one in world.conversations]
    if hooks.tokens is not None:
        conversations = hooks.tokens(conversations)
    batch = pack(trajectories, conversations)
    if hooks.pack is not None:
        batch.packed = hooks.pack(batch.packed)
    if hooks.placement is not None:
        batch.row_ids = hooks.placement(batch.row_ids)
    (hooks.replay or train)(world, batch)


def trajectory_id(name: str, number: int) -> str:
    """Return the id under which a mutant's trajectory is stored."""
    return f"{name}-{number}".replace(" ", "_")


def record(requests: list[Request], store, name: str, wire=None) -> None:
    """Hand the requests to a recorder of their own, and wait until all is sealed or dropped."""
    url = store.sidecar.url
    exporter = Exporter(Settings(url))
    facts = replace(FACTS, num_experts=requests[0].experts)
    recorder = Recorder(facts, exporter, keep_native=False)
    states: dict[str, object] = {}
    parents: dict[tuple[int, int], SimpleNamespace] = {}
    with _tapped(wire):
        for request in requests:
            parent = None
            if request.choices > 1:
                parent = parents.setdefault((request.trajectory, request.turn), _parent(request))
            _serve(recorder, states, request, parent, name)
        exporter.close()


@contextlib.contextmanager
def _tapped(wire):
    """Let `wire` change every frame between recorder and store."""
    original = Sender.post
    if wire is not None:
        Sender.post = lambda self, frames: original(
            self, [[wire(b"".join(bytes(part) for part in frame))] for frame in frames]
        )
    try:
        yield
    finally:
        Sender.post = original


def _parent(request: Request) -> SimpleNamespace:
    return SimpleNamespace(
        request_id=f"parent-{request.trajectory}-{request.turn}",
        sampling_params=SimpleNamespace(n=request.choices),
    )


def _serve(recorder, states, request: Request, parent, name: str) -> None:
    """One request through the recorder's hooks, as vLLM's output processor calls them."""
    tokens = request.token_ids.tolist()
    prompt, completion = tokens[: request.prompt_len], tokens[request.prompt_len :]
    external = f"chatcmpl-{trajectory_id(name, request.trajectory)}-{request.turn}"
    asked = SimpleNamespace(
        request_id=f"{request.choice}_{external}",
        external_req_id=external,
        prompt_token_ids=prompt,
        prompt_embeds=None,
        sampling_params=SimpleNamespace(
            n=request.choices,
            extra_args={
                "trajectory_id": trajectory_id(name, request.trajectory),
                "policy_version": request.policy,
            },
            routed_experts_prompt_start=0,
        ),
        lora_request=None,
        arrival_time=1.0 + request.turn,
        resumable=False,
        session_id=None,
    )
    said: list[int] = []
    state = SimpleNamespace(
        parent_req=parent,
        request_index=request.choice,
        detokenizer=SimpleNamespace(output_token_ids=said, num_output_tokens=lambda: len(said)),
    )
    states[asked.request_id] = state
    recorder.request_added(asked, state)
    start = asked.sampling_params.routed_experts_prompt_start or 0
    prefill = request.rows[start : len(prompt)]
    decode = request.rows[len(prompt) :]
    _step(recorder, states, asked, said, prefill, completion[:1], None)
    _step(recorder, states, asked, said, decode, completion[1:], "length")


def _step(recorder, states, asked, said, rows, tokens, finish) -> None:
    output = SimpleNamespace(
        request_id=asked.request_id,
        new_token_ids=list(tokens),
        routed_experts=rows,
        finish_reason=finish,
    )
    before = len(states)
    taken = recorder.take([output])
    said += tokens
    if finish:
        del states[asked.request_id]
    recorder.settle(taken, [output], states, before)


def pack(trajectories: list[Trajectory], conversations: list[Conversation]) -> Batch:
    """Pack what the trainer has, as it is told to: strictly, with a loss mask."""
    lengths = [len(one.token_ids) for one in conversations]
    bounds = np.cumsum([0, *lengths])
    row = np.concatenate([one.token_ids for one in conversations])
    packed = pack_thd(
        trajectories,
        row,
        cu_seqlens=bounds,
        model=SHAPE,
        loss_mask=np.concatenate([one.trained for one in conversations]),
    )
    return Batch(
        packed,
        torch.arange(len(row))[None],
        torch.from_numpy(row.astype(np.int64))[None],
        torch.from_numpy(bounds),
    )


@contextlib.contextmanager
def step(world: World):
    """A step of the trainer; if it ends, its gradients are handed out."""
    replay = enable_router_replay(world.model)
    try:
        with replay.step():
            yield replay
    finally:
        replay.disable()
        world.model.zero_grad(set_to_none=True)


def train(world: World, batch: Batch) -> None:
    """Replay the batch as a trainer does."""
    with step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        forward_backward(world, batch)


def forward_backward(world: World, batch: Batch) -> None:
    """Score the batch and run backward."""
    advantages = torch.ones(batch.token_ids.shape[1])
    policy_gradient_packed(world.model, batch.token_ids, batch.cu_seqlens, advantages)


def forward_only(world: World, batch: Batch) -> None:
    """Run forward with gradients, and never come back."""
    position_ids, mask, _ = packed_inputs(batch.token_ids, batch.cu_seqlens)
    world.model(batch.token_ids, position_ids, mask).float().mean()


def routers(model) -> list:
    """Return the routers of the model, in order."""
    (chunk,) = discover([model], None).chunks
    return [found.router for found in chunk.routers]
