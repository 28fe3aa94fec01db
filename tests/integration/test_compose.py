"""docker-compose.yml against the specification, and its services as processes."""

import json
import os
import re
from importlib import metadata

import httpx
import jsonschema
import pytest
import yaml
from support.compose import ROOT, Stack, image_command, in_order, load, merged, programs
from support.frames import make_upload
from support.keys import Keys, bearer

from routereplay.parity.child_server import free_port
from routereplay.wire import MEDIA_TYPE

FILE = load()
SERVICES = FILE["services"]
KEYS = load(ROOT / "docker-compose.keys.yml")
WITH_KEYS = {
    name: merged(service, KEYS["services"].get(name, {})) for name, service in SERVICES.items()
}


def of_profile(profile):
    """The services that a profile starts."""
    return {n for n, s in SERVICES.items() if profile in s.get("profiles", [profile])}


@pytest.mark.parametrize("file", [FILE, KEYS], ids=["whole", "keys"])
def test_the_files_are_valid_compose(file):
    path = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
    found = metadata.distribution("check-jsonschema").locate_file(path)

    jsonschema.validate(file, json.loads(found.read_text()))


def test_what_comes_up_is_vllm_the_store_and_its_engine():
    (profile,) = re.findall(r"^COMPOSE_PROFILES=(\w+)$", (ROOT / ".env").read_text(), re.MULTILINE)

    assert in_order(SERVICES, of_profile(profile)) == ["valkey", "sidecar", "vllm"]
    assert in_order(SERVICES, of_profile("cpu")) == ["valkey", "sidecar", "vllm-cpu"]
    assert of_profile("monitoring") == {"valkey", "sidecar", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_limited_checked_and_private(name):
    service = SERVICES[name]

    assert re.fullmatch(r"\S+:v?\d+\.\d+\S*", service["image"])
    assert service["healthcheck"]["test"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["cap_drop"] == ["ALL"]
    assert service["deploy"]["resources"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for needed in service.get("depends_on", {}).values():
        assert needed == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if "build" in s])
def test_an_image_of_ours_is_pinned_and_runs_as_nobody_special(name):
    text = (ROOT / SERVICES[name]["build"]["dockerfile"]).read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)

    assert len(stages) == 2
    for stage in stages:
        image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], stage)
        assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+\S*", image)
    assert re.findall(r"^USER (\d+)$", text, re.MULTILINE) == ["10001"]
    for source in re.findall(r"^COPY (?!--from|\.)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / path).exists() for path in source.split())


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name):
    for volume in WITH_KEYS[name].get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in FILE["volumes"]


def test_the_tiny_model_is_not_hidden_by_a_volume():
    service = SERVICES["vllm-cpu"]
    places = [volume.split(":")[1] for volume in service["volumes"]]

    assert not any(service["command"][0].startswith(f"{place}/") for place in places)


def running(tmp_path, names, paths=None, services=SERVICES):
    inside = {"valkey": 6379, "sidecar": 8400, "vllm-cpu": 8000}
    ports = {name: {inside[name]: free_port()} for name in names}
    return Stack(services, ports, programs(), tmp_path, paths)


def test_the_store_and_its_engine_come_up_as_the_file_says_and_keep_what_they_took(tmp_path):
    stack = running(tmp_path, ["valkey", "sidecar"])
    upload = make_upload("composed", seed=1)
    try:
        for name in in_order(SERVICES, {"sidecar"}):
            stack.start(name)
        with httpx.Client(base_url=stack.url("sidecar"), trust_env=False) as http:
            headers = {"Content-Type": MEDIA_TYPE}
            assert http.post("/v1/ingest", content=upload.body, headers=headers).status_code == 200

            stack.stop("valkey")
            assert not stack.is_healthy("sidecar")
            stack.start("valkey")

            assert http.get("/v1/requests/composed/routes").status_code == 200
        assert stack.is_healthy("sidecar")
        stack.stop("sidecar")
        assert "Application shutdown complete" in stack.log("sidecar")
    finally:
        stack.stop_all()


def test_with_keys_the_store_is_healthy_and_answers_only_who_has_one(tmp_path):
    keys = Keys(tmp_path)
    reader = keys.make("read")
    paths = {"/run/secrets/keys": str(keys.path)}
    stack = running(tmp_path, ["valkey", "sidecar"], paths, WITH_KEYS)
    try:
        for name in in_order(WITH_KEYS, {"sidecar"}):
            stack.start(name)
        with httpx.Client(base_url=stack.url("sidecar"), trust_env=False) as http:
            assert http.get("/v1/summary").status_code == 401
            assert http.get("/v1/summary", headers=bearer(reader)).status_code == 200
            assert http.get("/metrics", headers=bearer(reader)).status_code == 200
    finally:
        stack.stop_all()


def test_with_keys_every_caller_has_one():
    for name in ("vllm", "vllm-cpu"):
        file = WITH_KEYS[name]["environment"]["ROUTEREPLAY_API_KEY_FILE"]
        assert [s["target"] for s in WITH_KEYS[name]["secrets"]] == [file.rpartition("/")[2]]
    (plain, keyed) = (
        yaml.safe_load((ROOT / "monitoring" / name).read_text())
        for name in ("prometheus.yml", "prometheus.keys.yml")
    )
    (store,) = (job for job in keyed["scrape_configs"] if job["job_name"] == "routereplay-sidecar")
    assert store.pop("authorization") == {"credentials_file": "/run/secrets/reader"}
    assert keyed == plain


@pytest.mark.vllm
@pytest.mark.skipif(
    "ROUTEREPLAY_TEST_COMPOSE_VLLM" not in os.environ,
    reason="starts a vLLM server of its own: ./scripts/compose-check",
)
def test_vllm_records_into_the_store_and_serves_on_without_it(tmp_path, monkeypatch):
    from routereplay.parity.tiny_moe import write_tiny_moe

    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    model = write_tiny_moe(tmp_path / "tiny")
    (inside, *_) = image_command(SERVICES["vllm-cpu"])[2:]
    names = in_order(SERVICES, {"vllm-cpu"})
    stack = running(tmp_path, names, {inside: str(model)})
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}

    def answer(trajectory):
        url = f"{stack.url('vllm-cpu')}/v1/chat/completions"
        headers = {"X-Session-ID": trajectory}
        response = httpx.post(url, json=ask, headers=headers, timeout=120, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    try:
        for name in names:
            stack.start(name)
        request_id = answer("composed")
        found = httpx.get(
            f"{stack.url('sidecar')}/v1/requests/{request_id}/routes?wait=20&format=json",
            timeout=30,
            trust_env=False,
        ).json()["items"][0]
        stack.stop("sidecar")
        answer("without-a-store")
        assert stack.is_healthy("vllm-cpu")
    finally:
        stack.stop_all()

    assert found["manifest"]["trajectory_id"] == "composed"
    assert len(found["experts"]) == found["manifest"]["rows"] > 0
