"""Words, counts, tables and charts as markdown that GitHub and the Prefect UI render."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a cell's own bars are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def chart(arrows: Sequence[tuple[str, str]]) -> str:
    """Return named boxes with arrows between them, from left to right."""
    names = list(dict.fromkeys(name for arrow in arrows for name in arrow))
    boxes = {name: f's{i}["{name.replace(chr(34), chr(39))}"]' for i, name in enumerate(names)}
    lines = "\n".join(f"  {boxes[a]} --> {boxes[b]}" for a, b in arrows)
    return f"```mermaid\nflowchart LR\n{lines}\n```"


def text(value: str) -> str:
    """Return a name or note on one line, with nothing in it that a browser takes for a tag."""
    return " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;")


def signed(value: float, places: int = 4) -> str:
    """Return a value with its sign, a true minus, to so many places."""
    return f"{value:+.{places}f}".replace("-", "−")


def count(value: int | float | None) -> str:
    """Return a count to three digits with K, M, G, T or P."""
    if value is None:
        return "–"
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def short(value: float) -> str:
    """Return an amount of parameters or tokens as people say it: 260k, 3.1M, 5B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
