"""What differs between vLLM releases is looked up in one table, by the installed release."""

from types import SimpleNamespace

import pytest

from routereplay.patches.vllm import attach, engine_args
from routereplay.patches.vllm.attach import capture_is_on, model_facts
from routereplay.patches.vllm.engine_args import CAPTURE_ROUTES
from routereplay.patches.vllm.releases import (
    AUX_OUTPUT,
    BEFORE,
    DIFFERENCES,
    FIRST,
    SESSION_ID,
    Release,
    known_releases,
)
from routereplay.patches.vllm.table import requirements

PLAIN = {"kv_transfer_config": None, "speculative_config": None, "enable_prefix_caching": None}


@pytest.fixture
def install(monkeypatch):
    def as_if(version):
        for module in (attach, engine_args):
            monkeypatch.setattr(module, "installed_release", lambda: Release.of(version))

    return as_if


def a_model(**config):
    return SimpleNamespace(
        is_moe=True,
        runner_type="generate",
        model="org/model",
        served_model_name=["tiny", "alias"],
        hf_text_config=SimpleNamespace(**config),
        enable_return_routed_experts=False,
        get_total_num_hidden_layers=lambda: 4,
        get_num_experts=lambda: 16,
        get_num_experts_per_tok=lambda: 3,
    )


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.26.0", (0, 26)),
        ("0.30.0+cpu", (0, 30)),
        ("0.25.1.post2", (0, 25)),
        ("0.33.0rc1.dev7+g1", (0, 33)),
        ("dev", BEFORE),
    ],
)
def test_a_release_is_read_from_the_version_as_installed(version, numbers):
    assert Release.of(version).numbers == numbers


def test_every_difference_lies_within_the_supported_range():
    known = [release.numbers for release in known_releases()]

    assert known[0] == FIRST
    assert all(difference.first in known[1:] for difference in DIFFERENCES)


@pytest.mark.parametrize("version", ["0.22.1", "0.26.0", "0.30.0", "0.31.0", "0.33.0"])
def test_capture_is_switched_on_where_this_release_has_the_switch(install, version):
    install(version)
    model, section = a_model(), SimpleNamespace(enable_return_routed_experts=False)
    arguments = SimpleNamespace(aux_output_config=section, **PLAIN)

    CAPTURE_ROUTES.wrapper(lambda self: model)(arguments)

    aux = Release.of(version).has(AUX_OUTPUT)
    assert section.enable_return_routed_experts == aux
    assert model.enable_return_routed_experts != aux
    assert capture_is_on(SimpleNamespace(model_config=model, aux_output_config=section))


@pytest.mark.parametrize(
    ("version", "config", "topk"),
    [
        ("0.27.1", {"num_experts_per_tok": 8}, 8),
        ("0.22.0", {"top_k_experts": 2}, 2),
        ("0.28.0", {"num_experts_per_tok": 8}, 3),
    ],
)
def test_top_k_is_read_where_this_release_reads_it_for_capture(install, version, config, topk):
    install(version)
    model = a_model(**config)
    model.enable_return_routed_experts = True

    assert model_facts(SimpleNamespace(model_config=model)).topk == topk


def test_names_that_only_later_releases_have_are_not_asked_of_earlier_ones():
    def asked(version):
        return {(n.target, name) for n in requirements(Release.of(version)) for name in n.names}

    session_id = ("vllm.v1.engine:EngineCoreRequest", "session_id")
    before, since = asked("0.27.1"), asked(f"0.{SESSION_ID.first[1]}.0")

    assert before < since
    assert session_id in since - before
