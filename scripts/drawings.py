"""Writes the drawings of docs/how-it-works.md: SVG, in docs/how-it-works."""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "how-it-works"

WIDTH = 760
#: Pixels of a letter, on average, and of a line.
LETTER, LINE = 6.7, 17

INK, SOFT, LINE_COLOUR = "#222222", "#666666", "#4477aa"
#: What a box is: the service, the worker process, something on disk, someone outside.
FILLS = {"service": "#dce9f5", "worker": "#fbe3d0", "disk": "#e4f0dc", "outside": "#eeeeee", "": "#ffffff"}


class Drawing:
    """An SVG, made of boxes, arrows and texts. Positions and sizes are in pixels."""

    def __init__(self, title: str, height: int) -> None:
        self._height = height
        self._parts = [f"<title>{escape(title)}</title>"]

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "") -> None:
        """A box with lines of text in its middle, the first one bold."""
        for line in lines:
            assert len(line) * LETTER <= width - 8, f"{line!r} does not fit into {width} pixels"
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{FILLS[kind]}" '
            f'stroke="{LINE_COLOUR}"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * LINE / 2 + 4.5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * LINE, line, "middle", bold=number == 0, soft=number > 0)

    def arrow(self, *points: tuple[float, float], label: str = "", at: tuple[float, float] | None = None) -> None:
        """A line through the points with a head at its end; the label is in the middle above it, or at a place."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE_COLOUR}" stroke-width="1.5" marker-end="url(#head)"/>'
        )
        if label:
            (x1, y1), (x2, y2) = points[0], points[-1]
            x, y = at or ((x1 + x2) / 2, (y1 + y2) / 2 - 7)
            self.text(x, y, label, "middle", soft=True)

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", *, bold: bool = False, soft: bool = False
    ) -> None:
        look = f'fill="{SOFT if soft else INK}"' + (' font-weight="bold"' if bold else "")
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {look}>{escape(text)}</text>')

    def __str__(self) -> str:
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{LINE_COLOUR}"/></marker></defs>'
        )
        size = f'width="{WIDTH}" height="{self._height}" viewBox="0 0 {WIDTH} {self._height}"'
        style = "font: 13px sans-serif; background: white"
        inner = "\n".join([head, *self._parts])
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" style="{style}">\n{inner}\n</svg>\n'


def request() -> Drawing:
    """The path of a request."""
    it = Drawing("From a request to a picture", 300)
    it.box(10, 60, 100, 60, "caller", kind="outside")
    it.box(180, 24, 380, 120, kind="service")
    it.text(190, 44, "the service: one process, never on the GPU", soft=True)
    it.box(195, 60, 110, 60, "checks", "limits, model")
    it.box(335, 60, 90, 60, "queue", "who is next")
    it.box(455, 60, 90, 60, "device", "one call")
    it.box(620, 24, 130, 120, "worker process", "models, GPU", "may die", kind="worker")
    it.box(180, 220, 210, 60, "journal", "every accepted task", kind="disk")
    it.box(430, 220, 140, 60, "pictures", "folder, bucket", kind="disk")
    it.arrow((110, 78), (193, 78), label="1 request", at=(145, 70))
    it.arrow((195, 106), (112, 106), label="3 202", at=(145, 122))
    it.arrow((250, 120), (250, 218), label="2 on disk", at=(283, 205))
    it.arrow((305, 90), (333, 90))
    it.arrow((425, 90), (453, 90))
    it.arrow((545, 76), (618, 76), label="4 draw", at=(590, 68))
    it.arrow((620, 106), (547, 106), label="5 pixels", at=(590, 122))
    it.arrow((500, 120), (500, 218), label="6 file", at=(522, 205))
    it.arrow((380, 120), (380, 180), (60, 180), (60, 122), label="events: each step", at=(130, 173))
    return it


def life() -> Drawing:
    """The life of a task."""
    it = Drawing("The life of a task", 240)
    it.box(20, 80, 150, 70, "pending", "on disk, waits", kind="disk")
    it.box(300, 80, 170, 70, "processing", "loads, draws, stores", kind="worker")
    it.box(610, 20, 130, 44, "completed", kind="service")
    it.box(610, 93, 130, 44, "failed", "with a code", kind="service")
    it.box(610, 166, 130, 44, "cancelled", kind="service")
    it.arrow((170, 100), (298, 100), label="its turn")
    it.arrow((300, 132), (172, 132), label="restart, crash", at=(236, 150))
    it.arrow((470, 95), (608, 45))
    it.arrow((470, 115), (608, 115))
    it.arrow((470, 135), (608, 185))
    it.arrow((95, 150), (95, 222), (675, 222), (675, 212), label="a caller cancels", at=(360, 216))
    return it


def places() -> Drawing:
    """Where the weights of a model are."""
    it = Drawing("Where the weights of a model are", 230)
    it.box(10, 80, 110, 64, "hub", "absent", kind="outside")
    it.box(210, 80, 130, 64, "disk", "cold", kind="disk")
    it.box(590, 20, 150, 64, "device memory", "resident", kind="worker")
    it.box(590, 150, 150, 64, "host memory", "warm", kind="service")
    it.arrow((120, 112), (208, 112), label="pull", at=(163, 104))
    it.arrow((340, 95), (588, 45), label="load: seconds to minutes", at=(430, 55))
    it.arrow((640, 84), (640, 148), label="idle, evicted", at=(593, 121))
    it.arrow((690, 150), (690, 86), label="copy", at=(711, 121))
    it.arrow((588, 195), (342, 130), label="no room, idle", at=(440, 190))
    return it


def order() -> Drawing:
    """The order of tasks, of two models in turn and as the scheduler runs them."""
    it = Drawing("Fewer switches of the model", 190)
    arrived = "ABABABAB"
    run = "AAAABBBB"
    for row, (title, tasks) in enumerate((("in order of arrival", arrived), ("as imagegen runs them", run))):
        y, x, before = 30 + row * 80, 190.0, "A"
        it.text(10, y + 24, title)
        for task in tasks:
            if task != before:
                it.box(x, y, 38, 38, "load", kind="disk")
                x += 40
            it.box(x, y, 30, 38, task, kind="worker" if task == "A" else "service")
            x, before = x + 32, task
    it.text(
        10,
        178,
        "A is loaded at first. B cannot wait for ever: a model whose tasks have waited long enough is next.",
        soft=True,
    )
    return it


def made() -> dict[Path, str]:
    """Each file, and what must be in it."""
    drawings = {"request": request(), "life": life(), "places": places(), "order": order()}
    return {FOLDER / f"{name}.svg": str(it) for name, it in drawings.items()}


if __name__ == "__main__":
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
