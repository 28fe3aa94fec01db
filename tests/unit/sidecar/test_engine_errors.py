"""What the engine says becomes what a client should do."""

import pytest
from redis import exceptions as refusals

from routereplay.sidecar.api.problems import problem, status_of
from routereplay.sidecar.store.redis_engine import engine_errors, script_text
from routereplay.wire.errors import HTTP_STATUS, RETRYABLE_CODES, StoreFull, StoreUnavailable

PASSING = [
    refusals.ConnectionError("Connection refused"),
    refusals.TimeoutError("Timeout reading"),
    refusals.BusyLoadingError("LOADING the dataset in memory"),
    refusals.ReadOnlyError("You can't write against a read only replica."),
    refusals.ClusterDownError("CLUSTERDOWN"),
    refusals.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
    refusals.ResponseError("NOREPLICAS Not enough good replicas to write."),
    refusals.ResponseError("BUSY the engine is busy running a script"),
    OSError("broken pipe"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_what_passes_by_itself_is_unavailable(error):
    with pytest.raises(StoreUnavailable), engine_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        refusals.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        refusals.ResponseError("OOM command not allowed when used memory > 'maxmemory'."),
    ],
)
def test_no_memory_is_a_full_store(error):
    with pytest.raises(StoreFull), engine_errors():
        raise error


def test_a_fault_of_ours_is_not_dressed_up_as_one_that_passes():
    with pytest.raises(refusals.ResponseError), engine_errors():
        raise refusals.ResponseError("WRONGTYPE Operation against a key of the wrong kind")


@pytest.mark.parametrize("error", HTTP_STATUS)
def test_every_error_of_the_contract_has_a_problem(error):
    response = problem(status_of(error), error.code, "why", {})

    assert response.status_code == HTTP_STATUS[error]
    assert ("retry-after" in response.headers) == (error.code in RETRYABLE_CODES)


@pytest.mark.parametrize("name", ["stage", "seal", "drop", "delete", "claim"])
def test_every_script_declares_its_engine_and_its_keys(name):
    text = script_text(name)

    assert text.startswith("#!lua")
    assert "-- KEYS" in text
    # A key that is built inside a script is invisible to a cluster.
    assert "'rr:" not in text
