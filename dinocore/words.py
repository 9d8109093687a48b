"""English."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`; nouns with another plural than that bring it."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
