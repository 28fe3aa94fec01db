"""Engines that cannot be recorded are refused at start, with the reason and a way out."""

from types import SimpleNamespace

import pytest

from routereplay.patches._probe import MARK
from routereplay.patches.vllm.refusals import (
    REFUSALS,
    UnsupportedEngine,
    check_engine,
    check_output_processor,
)
from routereplay.patches.vllm.releases import Release


def engine_args(**given):
    plain = {"kv_transfer_config": None, "speculative_config": None, "enable_prefix_caching": None}
    return SimpleNamespace(**{**plain, **given})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)


@pytest.mark.parametrize("version", ["0.22.1", "0.26.0", "0.30.0", "0.32.0", "0.33.0"])
def test_an_ordinary_engine_is_taken(version):
    check_engine(engine_args(pipeline_parallel_size=1), Release.of(version))


NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
JOINED = {
    "kv_connector": "MultiConnector",
    "kv_connector_extra_config": {"connectors": [{"kv_connector": "OffloadingConnector"}, NIXL]},
}
OFFLOAD = SimpleNamespace(kv_connector="OffloadingConnector")
MTP = {"method": "mtp", "num_speculative_tokens": 1}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    ("version", "given", "name"),
    [
        ("0.33.0", {"pipeline_parallel_size": 2}, "pipeline parallel inference"),
        ("0.33.0", {"decode_context_parallel_size": 2}, "context parallel inference"),
        ("0.33.0", {"kv_transfer_config": NIXL}, "prefill/decode disaggregation"),
        ("0.33.0", {"kv_transfer_config": JOINED}, "prefill/decode disaggregation"),
        ("0.30.0", {"kv_transfer_config": OFFLOAD}, "a KV connector before vLLM 0.33"),
        ("0.32.0", {"kv_transfer_config": OFFLOAD}, "a KV connector before vLLM 0.33"),
        ("0.31.0", {"enable_prefix_caching": False}, "prefix caching switched off since"),
        ("0.25.1", {"speculative_config": MTP}, "a draft model before vLLM 0.26"),
        ("0.25.1", {"spec_method": "mtp"}, "a draft model before vLLM 0.26"),
        ("0.25.1", {"spec_model": "org/draft"}, "a draft model before vLLM 0.26"),
        ("0.32.0", {"enable_dbo": True}, "dual batch overlap before vLLM 0.33"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_way_out(version, given, name):
    with pytest.raises(UnsupportedEngine) as refused:
        check_engine(engine_args(**given), Release.of(version))

    assert name in str(refused.value)
    assert "Way out: " in str(refused.value)
    assert "ROUTEREPLAY_ENABLED=0" in str(refused.value)


@pytest.mark.parametrize(
    ("version", "given"),
    [
        ("0.33.0", {"kv_transfer_config": OFFLOAD}),
        ("0.30.0", {"enable_prefix_caching": False}),
        ("0.26.0", {"speculative_config": MTP}),
        ("0.22.0", {"speculative_config": NGRAM}),
        ("0.25.1", {"spec_method": "ngram"}),
        ("0.33.0", {"enable_dbo": True}),
    ],
)
def test_what_another_release_cannot_do_is_taken_where_it_works(version, given):
    check_engine(engine_args(**given), Release.of(version))


def test_the_old_model_runner_is_refused_where_it_captures_nothing(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")

    check_engine(engine_args(), Release.of("0.30.0"))
    with pytest.raises(UnsupportedEngine, match="unset VLLM_USE_V2_MODEL_RUNNER"):
        check_engine(engine_args(), Release.of("0.31.0"))


def test_every_refusal_is_named_at_once():
    given = {"pipeline_parallel_size": 2, "kv_transfer_config": NIXL}
    with pytest.raises(UnsupportedEngine) as refused:
        check_engine(engine_args(**given), Release.of("0.33.0"))

    assert len(refused.value.details["refused"]) == 2, refused.value


def test_refusals_have_names_of_their_own():
    assert len({refusal.name for refusal in REFUSALS}) == len(REFUSALS)


def a_processor():
    class OutputProcessor:
        def process_outputs(self, outputs):
            return outputs

    setattr(OutputProcessor.process_outputs, MARK, "vllm.tap-rows")
    return OutputProcessor


def test_the_patched_output_processor_is_taken():
    check_output_processor(a_processor()())


def test_a_subclass_that_keeps_the_method_is_taken():
    check_output_processor(type("Sub", (a_processor(),), {})())


def test_an_output_processor_of_somebody_else_is_refused_by_name():
    theirs = type("Theirs", (a_processor(),), {"process_outputs": lambda self, outputs: None})

    with pytest.raises(UnsupportedEngine, match="Theirs, whose process_outputs is not the one"):
        check_output_processor(theirs())


def test_a_method_put_over_one_object_is_refused():
    processor = a_processor()()
    processor.process_outputs = lambda outputs: None

    with pytest.raises(UnsupportedEngine):
        check_output_processor(processor)
