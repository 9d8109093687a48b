def inspect_proposals() -> None:
    pass
