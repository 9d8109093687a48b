def inspect_mask() -> None:
    pass
