"""A slice moves its share of the bytes: from the engine, and to the client."""

import pytest
from support.frames import make_upload


@pytest.fixture(scope="module")
def stored(store):
    """One request of 1.5 MB in four chunks."""
    upload = make_upload(
        "share", seed=3, prompt_len=3990, completion_len=11, num_layers=48, topk=8, chunk_rows=1000
    )
    return store.put(upload)


def moved(store, **cut):
    """Bytes that the engine sent for a fetch, and the bytes of the answer."""

    def sent():
        return int(store.engine.info("stats")["total_net_output_bytes"])

    idle = -sent() + sent()
    before = sent()
    response = store.get("/v1/requests/share/routes", **cut)
    after = sent()
    assert response.status_code == 200
    return after - before - idle, len(response.content)


@pytest.mark.parametrize(
    ("cut", "share"),
    [
        ({"layers": "12:24"}, 1 / 4),
        ({"layers": "36:48"}, 1 / 4),
        ({"layers": "0:6"}, 1 / 8),
        ({"layers": "6:30"}, 1 / 2),
        ({"tokens": "1000:2000"}, 1 / 4),
        ({"tokens": "1000:2000", "layers": "0:12"}, 1 / 16),
    ],
)
def test_a_slice_moves_its_share(store, stored, cut, share):
    rows = stored.experts.nbytes
    engine, client = moved(store, **cut)

    # Beside the rows: the manifest, the token ids (a hundredth), heads and lengths.
    beside = stored.token_ids.nbytes + 4096
    assert rows * share <= client <= rows * share + beside
    assert rows * share <= engine <= rows * share + beside


def test_a_slice_that_ends_within_a_band_moves_that_band_more(store, stored):
    rows = stored.experts.nbytes
    engine, client = moved(store, layers="13:24")

    assert client <= rows * 11 / 48 + stored.token_ids.nbytes + 4096
    assert engine <= rows * 12 / 48 + stored.token_ids.nbytes + 4096
