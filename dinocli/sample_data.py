def sample_data() -> None:
    pass
