"""The part of vLLM's output processor that the recorder's hooks look at."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np

from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.prefix import KnownPrefixes
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.settings import Settings

MODEL = ModelFacts("tiny", num_layers=4, topk=2, num_experts=16)


class Handed:
    """Keeps what the recorder hands on, in place of the exporter's thread."""

    def __init__(self):
        self.ledger = Ledger(Settings("http://store"))
        self.known = KnownPrefixes()
        self.opened = {}
        self.sources = {}
        self.seals = {}
        self.drops = {}
        self.room = None
        self.broken = False

    def open(self, info, source):
        self.opened[info.client.request_id, info.client.choice] = info
        self.sources[info.client.request_id, info.client.choice] = source

    def admit(self, arrays, rows, nbytes):
        if self.broken:
            raise RuntimeError("broken")
        return self.room is None or rows <= self.room

    full_reason = "queue_full"

    def seal(self, info, ending):
        self.seals[info.client.request_id, info.client.choice] = (info, ending)

    def drop(self, info, reason):
        self.drops[info.client.request_id, info.client.choice] = reason

    def rows_of(self, request_id, choice=0):
        return np.concatenate(self.sources[request_id, choice])


class Engine:
    """The part of vLLM's output processor that the hooks look at."""

    def __init__(self, keep_native=False, **options):
        self.handed = Handed()
        self.recorder = Recorder(MODEL, self.handed, keep_native=keep_native, **options)
        self.states = {}
        self.requests = {}
        self._left_out = {}

    def add(self, name, prompt=(1, 2, 3), parent=None, index=0, extra_args=None, **fields):
        start = fields.pop("row_start", 0)
        request = SimpleNamespace(
            request_id=f"{index}_{name}-internal",
            external_req_id=name,
            prompt_token_ids=list(prompt),
            prompt_embeds=None,
            sampling_params=SimpleNamespace(
                n=1, extra_args=extra_args, routed_experts_prompt_start=start
            ),
            lora_request=None,
            arrival_time=1.0,
            resumable=False,
            session_id=None,
        )
        for field, value in fields.items():
            setattr(request, field, value)
        tokens = []
        state = SimpleNamespace(
            parent_req=parent,
            request_index=index,
            detokenizer=SimpleNamespace(
                output_token_ids=tokens, num_output_tokens=lambda: len(tokens)
            ),
        )
        self.states[request.request_id] = state
        self.recorder.request_added(request, state)
        self.requests[request.request_id] = request
        self._left_out[request.request_id] = (
            request.sampling_params.routed_experts_prompt_start - start
            if request.sampling_params
            else 0
        )
        return request.request_id

    def step(self, request_id, rows, tokens=(7,), finish=None, ends=False, kept=None):
        """One step of one request, less the rows that the recorder asked to leave out.

        `kept`: tokens left after a stop string.
        """
        rows = rows and rows - self._left_out.pop(request_id, 0)
        array = None if rows is None else np.ones((rows, 4, 2), "uint8")
        output = SimpleNamespace(
            request_id=request_id,
            new_token_ids=list(tokens),
            routed_experts=array,
            finish_reason=finish,
        )
        before = len(self.states)
        taken = self.recorder.take([output])
        self.states[request_id].detokenizer.output_token_ids += list(tokens)[:kept]
        if ends or finish:
            del self.states[request_id]
        # vLLM takes the tokens past a stop string back, here as in its own state.
        del output.new_token_ids[len(output.new_token_ids) if kept is None else kept :]
        self.recorder.settle(taken, [output], self.states, before)
        return output


def parent_of(n):
    """vLLM's `ParentRequest` of the choices of one request."""
    return SimpleNamespace(
        request_id=f"parent-{next(_NUMBERS)}", sampling_params=SimpleNamespace(n=n)
    )


_NUMBERS = itertools.count()
