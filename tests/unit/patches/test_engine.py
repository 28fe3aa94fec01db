import sys

import pytest

from routereplay.patches._engine import PatchSet
from routereplay.patches._patch import Library, Patch, Requirement
from routereplay.patches._probe import MARK
from routereplay.patches.errors import (
    PatchError,
    PatchOverlap,
    PatchSignatureDrift,
    PatchTargetMissing,
    UnsupportedLibraryVersion,
)

ADVICE = "Do this instead."


def tagged(original):
    def wrapper(*args, **kwargs):
        return ("patched", original(*args, **kwargs))

    return wrapper


def row(target="hostlib:Engine.step", uses=("self", "outputs"), name="row", wrapper=tagged):
    return Patch(name, target, uses, wrapper, reason="test", remove_when="never")


ROWS = (
    row(name="method"),
    row("hostlib:Engine.inherited", ("self", "value"), "inherited"),
    row("hostlib:Engine.build", ("cls", "config"), "classmethod"),
    row("hostlib:Engine.helper", ("value",), "staticmethod"),
    row("hostlib:top_level", ("value",), "function"),
)


def patch_set(*rows, version="1.4.2", **kwargs):
    library = Library("hostlib", version, (1, 4), (1, 6))
    return PatchSet(library, rows, advice=ADVICE, **kwargs)


def snapshot(library):
    owners = (library.Engine, library.Base, library)
    return [{k: v for k, v in vars(o).items() if not k.startswith("__")} for o in owners]


def test_every_kind_of_target_is_wrapped_and_still_called(library):
    patch_set(*ROWS).apply()

    assert library.Engine().step([1], extra=2) == ("patched", ("step", [1], 2))
    assert library.Engine().inherited(3) == ("patched", ("inherited", 3))
    assert library.Engine.build("c") == ("patched", ("Engine", "c"))
    assert library.Engine.helper(4) == ("patched", ("helper", 4))
    assert library.top_level(5) == ("patched", ("top", 5))


def test_an_inherited_method_is_patched_on_the_class_that_was_named(library):
    patch_set(*ROWS).apply()

    assert library.Base().inherited(1) == ("inherited", 1)


def test_revert_puts_back_exactly_what_was_there(library):
    before = snapshot(library)
    patches = patch_set(*ROWS)
    patches.apply()
    assert snapshot(library) != before
    patches.revert()

    assert snapshot(library) == before
    assert patches.report is None


def test_applying_twice_is_applying_once(library):
    patches = patch_set(*ROWS)
    first = patches.apply()

    assert patches.apply() is first
    assert library.Engine().step(1) == ("patched", ("step", 1, None))


def test_apply_revert_apply_patches_again(library):
    patches = patch_set(*ROWS)
    patches.apply()
    patches.revert()
    patches.revert()
    patches.apply()

    assert library.top_level(1) == ("patched", ("top", 1))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (row("hostlib:Engine.gone"), PatchTargetMissing),
        (row("hostlib:Gone.step"), PatchTargetMissing),
        (row("hostlib_gone:Engine.step"), PatchTargetMissing),
        (row("hostlib:Engine.step", ("self", "engine_outputs")), PatchSignatureDrift),
        (row("hostlib:Engine.step", ("self", "outputs"), "second"), PatchOverlap),
        (row("hostlib:Engine", ()), PatchTargetMissing),
    ],
)
@pytest.mark.parametrize("position", [0, 2, 5])
def test_one_bad_row_leaves_everything_as_it_was(library, bad, error, position):
    before = snapshot(library)
    rows = [*ROWS]
    rows.insert(position, bad)
    if error is PatchOverlap:
        rows = [*ROWS, bad]

    with pytest.raises(error, match="nothing was changed"):
        patch_set(*rows).apply()
    assert snapshot(library) == before


def test_a_wrapper_that_cannot_be_made_leaves_everything_as_it_was(library):
    before = snapshot(library)

    def broken(original):
        raise RuntimeError("no wrapper")

    with pytest.raises(RuntimeError, match="no wrapper"):
        patch_set(*ROWS[:3], row("hostlib:top_level", ("value",), "bad", broken)).apply()
    assert snapshot(library) == before


def test_a_refusal_lists_everything_that_is_wrong_and_what_to_do(library):
    bad = (row("hostlib:Engine.gone", name="one"), row("hostlib:top_level", ("other",), "two"))

    with pytest.raises(PatchError) as caught:
        patch_set(*bad, version="2.0.0").apply()
    text = str(caught.value)
    assert isinstance(caught.value, UnsupportedLibraryVersion)
    assert "found hostlib 2.0.0; expected >=1.4,<1.6" in text
    assert "one: hostlib:Engine.gone does not exist" in text
    assert "two: hostlib:top_level takes (value); expected leading parameters (other)" in text
    assert text.endswith(ADVICE)
    codes = [problem["code"] for problem in caught.value.details["problems"]]
    assert codes == [
        "unsupported_library_version",
        "patch_target_missing",
        "patch_signature_drift",
    ]


@pytest.mark.parametrize("version", ["1.3.9", "1.6.0", "2.0", "0.1.dev1+gabc", "unknown"])
def test_a_release_outside_the_range_is_refused(library, version):
    with pytest.raises(UnsupportedLibraryVersion):
        patch_set(*ROWS, version=version).check()


@pytest.mark.parametrize("version", ["1.4.0", "1.5.9", "1.5.0rc1", "1.4.2+cpu"])
def test_a_release_inside_the_range_is_accepted(library, version):
    patch_set(*ROWS, version=version).check()


def test_an_untested_release_can_be_allowed_but_its_symbols_are_still_checked(library):
    patch_set(*ROWS, version="2.0", allow_untested=True).check()

    with pytest.raises(PatchTargetMissing):
        patch_set(row("hostlib:gone"), version="2.0", allow_untested=True).check()


def test_trailing_parameters_that_a_release_added_are_fine(library):
    patch_set(row("hostlib:Engine.step", ("self",))).check()


def test_a_requirement_names_the_attribute_that_is_missing(library):
    needs = (Requirement("hostlib:Engine", ("step", "jump"), "steps"),)

    with pytest.raises(PatchTargetMissing, match="hostlib:Engine has no jump"):
        patch_set(*ROWS, requirements=needs).apply()


def test_a_requirement_on_a_function_names_its_parameters(library):
    patch_set(requirements=[Requirement("hostlib:Engine.step", ("extra",), "x")]).check()

    with pytest.raises(PatchTargetMissing, match="has no depth"):
        patch_set(requirements=[Requirement("hostlib:Engine.step", ("depth",), "x")]).check()


def test_a_second_installation_of_the_same_patches_is_refused(library):
    patch_set(*ROWS).apply()

    with pytest.raises(PatchOverlap, match="already patched by"):
        patch_set(*ROWS).apply()
    assert library.top_level(1) == ("patched", ("top", 1))


def test_a_strangers_wrapper_below_ours_stays_where_it_is(library):
    def stranger(self, outputs, extra=None):
        return ("stranger", outputs)

    library.Engine.step = stranger
    patches = patch_set(row())
    patches.apply()
    assert library.Engine().step(1) == ("patched", ("stranger", 1))
    patches.revert()

    assert vars(library.Engine)["step"] is stranger


def test_a_strangers_wrapper_on_top_of_ours_is_never_removed(library):
    patches = patch_set(*ROWS)
    patches.apply()
    library.Engine.step = tagged(library.Engine.step)
    now = snapshot(library)

    with pytest.raises(PatchOverlap, match="replaced after it was patched"):
        patches.revert()
    assert snapshot(library) == now
    assert patches.report is not None


def test_the_report_is_json_and_says_what_is_in_place(library):
    report = patch_set(*ROWS).apply()
    listed = report.to_dict()

    assert listed["version"] == "1.4.2"
    assert listed["supported"] == ">=1.4,<1.6"
    assert [p["name"] for p in listed["patches"]] == [r.name for r in ROWS]
    assert [p["inherited"] for p in listed["patches"]] == [False, True, False, False, False]


def test_a_patched_function_keeps_its_name_and_carries_its_mark(library):
    patch_set(row()).apply()

    assert library.Engine.step.__name__ == "step"
    assert getattr(library.Engine.step, MARK) == "row"


def test_no_patch_error_is_an_import_error():
    errors = [PatchError, *PatchError.__subclasses__()]

    assert len({error.code for error in errors}) == len(errors)
    assert not any(issubclass(error, ImportError) for error in errors)


def test_the_library_is_imported_by_its_check(library, monkeypatch):
    monkeypatch.delitem(sys.modules, "hostlib")

    with pytest.raises(PatchTargetMissing, match="module hostlib cannot be imported"):
        patch_set(*ROWS).check()
