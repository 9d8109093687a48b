def presets() -> None:
    pass
