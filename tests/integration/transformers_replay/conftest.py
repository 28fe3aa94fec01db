import pytest
from support import ports


@pytest.fixture
def free_port():
    return ports.free_port()
