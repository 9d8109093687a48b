"""The denoising mask as one HTML file that opens from disk, in light or dark, and explains every row."""

from html import escape

from .mask import MaskView
from .mask_image import TITLE, draw_svg
from .mask_text import facts

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #222222; --soft: #555555; --line: #cccccc }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #ececec; --soft: #b4b4b4; --line: #44474c }
}
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
svg { display: block; width: 100%; height: auto }
p { color: var(--soft) } table { border-collapse: collapse } h2 { font-size: 1.2rem }
td, th { text-align: left; padding: 0.3rem 1.5rem 0.3rem 0; border-bottom: 1px solid var(--line); font-weight: normal }
"""


def render_mask(view: MaskView) -> str:
    """A page without scripts and without anything from a network."""
    images = zip(view.files, view.num_objects, view.taking_part, strict=False)
    rows = "".join(f"<tr><td>{escape(file)}</td><td>{n:,}</td><td>{part:,}</td></tr>" for file, n, part in images)
    table = f"<h2>Images</h2><table><tr><th>file</th><th>objects</th><th>take part</th></tr>{rows}</table>"
    counts = "".join(
        f"<tr><th>{escape(name.strip())}</th><td>{escape(value.strip())}</td></tr>"
        for name, _, value in (fact.strip().partition("  ") for fact in facts(view))
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(TITLE)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main>"
        f"<p>Point at a row, or reach it with the Tab key, and it is explained.</p>\n{draw_svg(view)}"
        f"<h2>Counts</h2><table>{counts}</table>{table if rows else ''}</main></body></html>\n"
    )
