"""The page that lists every code, `docs/errors.md`.

Regenerate: python -c "import dinocore.error_page as e; open('docs/errors.md', 'w').write(e.as_markdown())"
"""

from .error_codes import SECTIONS

HEAD = ("| code | level | meaning | example | fix |", "|---|---|---|---|---|")
INTRO = """# Errors and findings

This page is made from `dinocore/error_codes.py`. An error ends a command; it reads

    error[DATA-BOX-NAN]: annotations whose `bbox` has a NaN or an infinity: annotation 4711: [12, nan, 5, 5]
      where: coco/annotations/instances_train2017.json
      fix: run `dino check-data DIR --fix fixed.json`, look at fixed.json.log, and use the copy

or, where no place has to be named, `error[CODE]: what; what to do` in one line;
with `--json` it is also an object on stdout: `{"error": {"code", "what", "where", "fix", "exit_code"}}`. Codes stay
as they are. Exit codes: 1 a bug or a failed export, 2 usage and config, 3 data, 4 checkpoint, 5 environment,
6 diverged, 7 some inputs failed, 130 and 143 interrupted. `dino check-data` finds the codes that begin with DATA and
MODEL: errors stop a training, warnings are said before it, notes are for you to know.
"""


def as_markdown() -> str:
    """The page that lists all codes."""
    parts = [INTRO]
    for title, codes in SECTIONS.items():
        rows = [f"| `{code}` | {c.level} | {c.meaning} | {c.example} | {c.fix} |" for code, c in codes.items()]
        parts.append("\n".join([f"## {title}\n", *HEAD, *rows]))
    return "\n".join(part.rstrip() + "\n" for part in parts)
