from services.controller.used import Use, Used
from shared.domain import Subpath


def use(name: str, path: str, *, handle: str = "", uid: str = "1") -> Use:
    return Use(name=name, uid=uid, handle=handle or name, path=Subpath(text=path))


def names(uses: list[Use]) -> list[str]:
    return [one.name for one in uses]


def test_by_path_and_handle() -> None:
    used = Used()
    for one in (use("a", "shared"), use("b", "shared", handle="h"), use("c", "shared/deep/er"), use("d", "d")):
        used.add(one)

    assert names(used.at(Subpath(text="shared"))) == ["a", "b"]
    assert names(used.inside(Subpath(text="shared"))) == names(used.inside(Subpath(text="shared/deep"))) == ["c"]
    assert names(used.around(Subpath(text="shared/deep"))) == ["a", "b"]
    assert names(used.of_handle("h")) == ["b"]


def test_one_that_moved() -> None:
    used = Used()
    used.add(use("a", "first"))
    used.add(use("a", "second"))
    used.add(use("a", "second"))

    assert (used.at(Subpath(text="first")), names(used.at(Subpath(text="second")))) == ([], ["a"])


def test_nothing_is_left_of_those_that_are_gone() -> None:
    used = Used()
    for one in (use("a", "shared/x"), use("b", "shared/x"), use("c", "shared/y")):
        used.add(one)
    for name in ("a", "b", "c", "unknown"):
        used.remove(name)

    assert (list(used), used._at, used._inside, used._handles) == ([], {}, {}, {})


def test_finished_is_not_used_again() -> None:
    used = Used()
    used.add(one := use("a", "a"))
    used.finish(one)
    used.add(one)
    assert list(used) == []

    used.add(another := use("a", "a", uid="2"))
    assert list(used) == [another]
