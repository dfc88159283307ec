"""The tree drawn at the top of errors.py is the tree of classes."""

import inspect

from modelexpress import errors


def drawn() -> dict[str, str]:
    """Return each class of the drawing with its parent."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip("│├└─ ")
        if not name.isidentifier():
            continue
        depth = (len(line) - len(name)) // 4
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = inspect.getmembers(errors, lambda member: inspect.isclass(member) and issubclass(member, Exception))
    assert drawn() == {name: kind.__base__.__name__ for name, kind in classes if kind.__module__ == errors.__name__}


def test_every_error_says_what_it_is_in_a_sentence() -> None:
    for name in drawn():
        sentence = (getattr(errors, name).__doc__ or "").splitlines()[0]
        assert sentence.endswith("."), name
