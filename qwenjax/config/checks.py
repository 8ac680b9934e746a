"""What every dataclass of the config checks itself with."""

from qwenjax.config import overrides


def check(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, naming the nearest, for a value that is not among those known."""
    check(value in known, f"{field}={value!r} is unknown; known: {', '.join(known)}.{overrides.suggest(value, known)}")
