"""Flags from a file, as vLLM reads them: vLLM's own parser is the truth where it is installed."""

import argparse
import json
import shlex

import pytest

from routereplay.cli.doctor_vllm import check_flags
from routereplay.cli.serve_flags import UnreadableConfig, read_flags

NESTED = """
model: org/model
port: 8000
kv-transfer-config:
  kv_connector: MultiConnector
  kv_connector_extra_config:
    connectors:
      - {kv_connector: NixlConnector, kv_role: kv_both}
"""


@pytest.fixture
def config(tmp_path):
    """`config(text)`: the path of a file of flags."""

    def write(text, name="serve.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "flags", "state"),
    [
        ("pipeline-parallel-size: 2", "org/model", "failed"),
        ("pipeline_parallel_size: 2", "org/model --port 8000", "failed"),
        ("pipeline-parallel-size: 2", "vllm serve org/model -pp 1", "ok"),
        ("pipeline-parallel-size: 1", "serve -pp 2", "failed"),
        ('kv-transfer-config: \'{"kv_connector": "NixlConnector"}\'', "org/model", "failed"),
        (NESTED, "", "failed"),
        ("kv-transfer-config.kv_connector: NixlConnector", "org/model", "failed"),
        ("decode-context-parallel-size: 4", "", "failed"),
        ("tensor-parallel-size: 4\nenable-expert-parallel: true\nport: 8000", "org/model", "ok"),
    ],
)
def test_flags_of_a_file_that_would_break_capture_are_named(config, text, flags, state):
    found = list(check_flags(f"{flags} --config {config(text)}"))

    assert found
    assert {each.state for each in found} == {state}


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("pipeline-parallel-size: [1", "serve.yaml", "cannot be read: while parsing"),
        ("- pipeline-parallel-size", "serve.yaml", "holds a list"),
        ("just words", "serve.yml", "holds a str"),
        ("", "serve.yaml", "holds nothing"),
        ("8: 2", "serve.yaml", "a name that is no text"),
        ("kv-transfer-config: {since: 2026-01-01}", "serve.yaml", "such as a date"),
        ("pipeline-parallel-size: 2", "serve.json", "end in .yaml or .yml"),
        ("pipeline-parallel-size: two", "serve.yaml", "invalid int value: 'two'"),
        ("kv-transfer-config: NixlConnector", "serve.yaml", "cannot be read"),
        ("kv-transfer-config: '[1]'", "serve.yaml", "is no JSON object"),
        ("!!python/object/apply:os.abort []", "serve.yaml", "could not determine a constructor"),
    ],
)
def test_a_file_that_vllm_would_end_on_is_named(config, text, name, says):
    (found,) = check_flags(f"org/model --config {config(text, name)}")

    assert found.state == "failed"
    assert says in found.text
    assert found.do


@pytest.mark.parametrize(
    "flags", ["--config", "--config a.yaml --config b.yaml", "--config /x.yml"]
)
def test_a_file_that_is_not_there_is_named(flags):
    with pytest.raises(UnreadableConfig):
        read_flags(f"org/model {flags}")


def test_a_file_that_vllm_passes_over_is_warned_of(config):
    path = config("pipeline-parallel-size: 2")
    warned, rest = check_flags(f"org/model --config={path}")

    assert (warned.state, rest.state) == ("warning", "ok")
    assert f"--config {path}" in warned.do


@pytest.mark.vllm
@pytest.mark.parametrize(
    "text",
    [
        "pipeline-parallel-size: 2\nenable-dbo: true",
        "enable-dbo: true\nenable-prefix-caching: false\nport: 8000",
        "enable_prefix_caching: false\npipeline_parallel_size: 3",
        NESTED,
        "speculative-config: {method: eagle3, num_speculative_tokens: 3}\nspec-model: other",
        "kv-transfer-config.kv_connector: NixlConnector\nenable-prefix-caching: true",
    ],
)
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "-pp 1 --no-enable-dbo",
        "--enable_prefix_caching --pipeline_parallel_size=4",
        "--kv-transfer-config.kv_connector LMCacheConnectorV1 --no-enable-prefix-caching",
        "--speculative-config.method ngram",
        "--kv-transfer-config.kv_connector_extra_config.connectors+ a,b",
    ],
)
def test_flags_are_those_that_vllms_own_parser_finds(config, text, flags):
    parsers = pytest.importorskip("vllm.utils.argparse_utils")
    theirs = parsers.FlexibleArgumentParser(add_help=False)
    theirs.add_argument("command")
    theirs.add_argument("model_tag")
    for name in ("model", "port", "config", "spec-method", "spec-model"):
        theirs.add_argument(f"--{name}")
    theirs.add_argument("--pipeline-parallel-size", "-pp", type=int)
    for name in ("kv-transfer-config", "speculative-config"):
        theirs.add_argument(f"--{name}", type=json.loads)
    for name in ("enable-dbo", "enable-prefix-caching"):
        theirs.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    path = config(text)
    words = ["serve", "org/model", *shlex.split(flags), "--config", str(path)]
    expected, found = vars(theirs.parse_args(words)), vars(read_flags(" ".join(words)))

    assert {n: found.get(n) for n in expected if n in found} == {
        n: value for n, value in expected.items() if n in found
    }
