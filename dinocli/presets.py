from typing import Annotated

import typer

from .options import Json, Overrides


def presets(
    name: Annotated[str | None, typer.Argument(help="Print all settings of this one as TOML.")] = None,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """List the presets, or print every setting of one."""
    from rich.table import Table

    from dinocore.presets import config_to_toml, list_presets, load_config, preset_title

    from .console import data, print_json

    if name is not None:
        config = load_config(name, overrides)
        print_json(config.model_dump(mode="json")) if json else print(config_to_toml(config), end="")
        return
    titles = {preset: preset_title(preset) for preset in list_presets()}
    if json:
        print_json(titles)
        return
    table = Table.grid(padding=(0, 3))
    for preset, title in titles.items():
        table.add_row(f"[bold]{preset}[/]", title)
    data.print(table)
