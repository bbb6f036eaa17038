"""``tailrace demo``."""


def demo() -> None:
    """x"""
