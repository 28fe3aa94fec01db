"""TLS and certificates of clients, with real certificates; and what a client is told."""

import ssl

import httpx
import pytest
import trustme
from support.frames import make_upload
from support.route_store import running_store
from support.store_processes import Sidecar, until

from routereplay.client import RouteStoreClient
from routereplay.patches.vllm.sender import Answered, Sender, Unavailable
from routereplay.patches.vllm.settings import Settings
from routereplay.wire.errors import StoreUnreachable


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificates by name, and the authority that signs them."""
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    made = {"folder": folder, "authority": authority}
    for name, ca in (("ca", authority), ("stranger", stranger)):
        made[name] = str(folder / f"{name}.pem")
        ca.cert_pem.write_to_path(made[name])
    for name, ca in (("server", authority), ("client", authority), ("intruder", stranger)):
        issued = ca.issue_cert("127.0.0.1")
        made[name] = str(folder / f"{name}.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(made[name])
    return made


@pytest.fixture(scope="module")
def sidecar(files, tmp_path_factory):
    """A store that asks for certificates of clients."""
    settings = {"ssl_certfile": files["server"], "ssl_ca_certs": files["ca"], "ssl_cert_reqs": 2}
    sidecar = Sidecar(tmp_path_factory.mktemp("store"), durability="memory", **settings)
    sidecar.start(wait=False)
    https = sidecar.url.replace("http://", "https://")
    trusted = ssl.create_default_context(cafile=files["ca"])
    trusted.load_cert_chain(files["client"])

    def alive():
        try:
            return httpx.get(f"{https}/livez", verify=trusted).status_code == 200
        except httpx.TransportError:
            return False

    until(alive, 30)
    yield sidecar
    sidecar.stop()


def environment(files, ca="ca", client="client"):
    found = {"ROUTEREPLAY_TLS_CA_FILE": files[ca]}
    return found | ({"ROUTEREPLAY_TLS_CERT_FILE": files[client]} if client else {})


def https(sidecar):
    return sidecar.url.replace("http://", "https://")


def test_recorder_and_trainer_speak_tls_with_certificates(files, sidecar, monkeypatch):
    for name, value in environment(files).items():
        monkeypatch.setenv(name, value)
    given = environment(files) | {"ROUTEREPLAY_STORE_URL": https(sidecar)}
    sender = Sender(Settings.from_env(given))
    upload = make_upload("over-tls", seed=1)
    frames = [*upload.chunk_frames, upload.seal_frame]

    assert isinstance(sender.post([[frame] for frame in frames]), Answered)
    sender.close()
    with RouteStoreClient(https(sidecar)) as client:
        assert client.fetch_request("over-tls").experts.shape == upload.experts.shape


@pytest.mark.parametrize(
    ("ca", "client", "host", "says"),
    [
        ("stranger", "client", "127.0.0.1", "ROUTEREPLAY_TLS_CA_FILE"),
        ("ca", "client", "localhost", "CERTIFICATE_VERIFY_FAILED"),
        ("ca", None, "127.0.0.1", "ROUTEREPLAY_TLS_CERT_FILE"),
        ("ca", "intruder", "127.0.0.1", "ROUTEREPLAY_TLS_CERT_FILE"),
    ],
)
def test_a_certificate_that_does_not_fit_is_named(
    files, sidecar, monkeypatch, ca, client, host, says
):
    for name, value in environment(files, ca, client).items():
        monkeypatch.setenv(name, value)
    url = https(sidecar).replace("127.0.0.1", host)
    with (
        RouteStoreClient(url, attempts=1) as store,
        pytest.raises(StoreUnreachable, match=says),
    ):
        store.fetch_request("over-tls")
    given = environment(files, ca, client) | {"ROUTEREPLAY_STORE_URL": url}
    sender = Sender(Settings.from_env(given))
    assert isinstance(sender.post([[make_upload("refused").seal_frame]]), Unavailable)
    sender.close()


def test_nobody_falls_back_to_plain_text(files, sidecar, tmp_path):
    with (
        RouteStoreClient(sidecar.url, attempts=1) as store,
        pytest.raises(StoreUnreachable, match="begins with https"),
    ):
        store.fetch_request("over-tls")
    with running_store("embedded", tmp_path, durability="memory") as plain:
        url = plain.sidecar.url.replace("http://", "https://")
        with (
            RouteStoreClient(url, attempts=1) as store,
            pytest.raises(StoreUnreachable, match="begins with http:"),
        ):
            store.fetch_request("over-tls")


def test_a_replaced_certificate_is_taken_up_without_a_restart(files, sidecar):
    context = ssl.create_default_context(cafile=files["ca"])
    context.load_cert_chain(files["client"])

    def serial():
        import socket

        with (
            socket.create_connection(("127.0.0.1", sidecar.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
        ):
            return wrapped.getpeercert()["serialNumber"]

    before = serial()
    issued = files["authority"].issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(files["server"])

    until(lambda: serial() != before, timeout_s=5)


@pytest.mark.parametrize("name", ["CA_FILE", "CERT_FILE"])
def test_a_file_that_is_no_certificate_is_named_at_start(tmp_path, name):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    given = {"ROUTEREPLAY_STORE_URL": "https://x", f"ROUTEREPLAY_TLS_{name}": str(bad)}
    with pytest.raises(ValueError, match=f"ROUTEREPLAY_TLS_{name}"):
        Settings.from_env(given)


def test_certificates_of_clients_need_an_authority(tmp_path, files):
    sidecar = Sidecar(tmp_path, ssl_certfile=files["server"], ssl_cert_reqs=2)
    sidecar.start(wait=False)

    assert sidecar.wait() == 3
    assert "ssl-ca-certs" in sidecar.log()
