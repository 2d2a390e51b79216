"""Shows pictures in terminals: kitty's graphics protocol, iTerm2's inline images, or sixels."""

import base64
import io
import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import groupby

import numpy as np
from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment


class Protocol(StrEnum):
    """How a terminal shows pictures."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM2 = "iterm2"
    SIXEL = "sixel"
    NONE = "none"


#: Terminals by their `TERM_PROGRAM`, and by a part of their `TERM`.
_PROGRAMS = {
    "ghostty": Protocol.KITTY,
    "iTerm.app": Protocol.ITERM2,
    "WezTerm": Protocol.ITERM2,
    "mintty": Protocol.ITERM2,
}
_TERMS = {
    "kitty": Protocol.KITTY,
    "ghostty": Protocol.KITTY,
    "foot": Protocol.SIXEL,
    "mlterm": Protocol.SIXEL,
    "contour": Protocol.SIXEL,
    "sixel": Protocol.SIXEL,
}

#: Characters of base64 in one message of kitty's protocol.
_CHUNK = 4096

#: Colours of a picture in sixels: with more, a preview has half a megabyte.
_COLOURS = 64


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """What the terminal of these variables can. tmux and screen pass no pictures on."""
    term = environment.get("TERM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return Protocol.NONE
    if environment.get("KITTY_WINDOW_ID"):
        return Protocol.KITTY
    if (program := environment.get("TERM_PROGRAM", "")) in _PROGRAMS:
        return _PROGRAMS[program]
    if environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM2
    return next((it for word, it in _TERMS.items() if word in term), Protocol.NONE)


def chosen(asked: Protocol, console: Console) -> Protocol:
    """The protocol to use: the one that was asked for, or what the terminal can if there is one."""
    if asked is not Protocol.AUTO:
        return asked
    return protocol_of(os.environ) if console.is_terminal else Protocol.NONE


class Picture:
    """A picture that a rich console prints."""

    def __init__(self, data: bytes, protocol: Protocol, side: int = 256) -> None:
        """`data`: a file. `side`: the longest side in pixels that is shown."""
        self._data = data
        self._protocol = protocol
        self._side = side

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # As a control, so that rich does not count its characters.
        yield Segment(self.escape(), None, [(ControlType.HOME,)])
        yield Segment.line()

    def escape(self) -> str:
        """What makes the terminal show the picture."""
        with Image.open(io.BytesIO(self._data)) as image:
            image.thumbnail((self._side, self._side))
            small = image.convert("RGB")
        if self._protocol is Protocol.SIXEL:
            return "".join(_sixels(small))
        file = io.BytesIO()
        small.save(file, "PNG")
        text = base64.b64encode(file.getvalue()).decode()
        if self._protocol is Protocol.ITERM2:
            return f"\x1b]1337;File=inline=1;size={len(file.getvalue())}:{text}\a"
        return "".join(_kitty(text))


def _kitty(text: str) -> Iterator[str]:
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    for number, chunk in enumerate(chunks):
        first = "a=T,f=100," if number == 0 else ""
        yield f"\x1b_G{first}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"


def _sixels(image: Image.Image) -> Iterator[str]:
    """The picture in bands of six rows; in each band the columns of each colour that is in it."""
    reduced = image.quantize(_COLOURS)
    palette = np.array(reduced.getpalette() or [], dtype=int).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(reduced)
    yield "\x1bPq"
    for number, (red, green, blue) in enumerate(palette):
        yield f"#{number};2;{red};{green};{blue}"
    for top in range(0, pixels.shape[0], 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(band.shape[0]))[:, None]
        for colour in np.unique(band):
            columns = ((band == colour) * weights).sum(axis=0)
            runs = ((chr(63 + bits), len([*those])) for bits, those in groupby(columns.tolist()))
            yield f"#{colour}{''.join(f'!{count}{it}' if count > 3 else it * count for it, count in runs)}$"
        yield "-"
    yield "\x1b\\"
