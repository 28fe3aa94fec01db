"""The error table is total in both directions."""

import inspect

import pytest

from routereplay.client import errors as client_errors
from routereplay.wire import errors
from routereplay.wire.errors import HTTP_STATUS, RouteReplayError, error_from_wire


def _classes(module):
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, RouteReplayError) and cls.__module__ == module.__name__
    ]


def test_every_class_has_a_code_of_its_own():
    codes = [cls.code for module in (errors, client_errors) for cls in _classes(module)]

    assert len(codes) == len(set(codes))


def test_every_answer_of_the_store_has_a_status_and_comes_back_as_itself():
    answers = [
        cls
        for cls in _classes(errors)
        if not cls.__subclasses__() and not issubclass(cls, errors.TransportError)
    ]

    assert {cls for cls in answers if cls not in HTTP_STATUS} == set()
    for cls in answers:
        error = error_from_wire(cls.code, "why", {"position": 3})
        assert type(error) is cls
        assert (error.message, error.details) == ("why", {"position": 3})


def test_an_unknown_code_is_still_a_store_error():
    assert type(error_from_wire("from_the_future", "why", {})) is errors.RouteStoreError


@pytest.mark.parametrize("cls", _classes(errors) + _classes(client_errors))
def test_the_tree_in_the_docstring_names_every_class(cls):
    module = errors if cls.__module__ == errors.__name__ else client_errors

    assert cls.__name__ in module.__doc__
