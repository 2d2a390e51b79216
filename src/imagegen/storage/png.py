"""A PNG encoder for 8-bit RGB and RGBA. Its files are as small as Pillow's; it is several times faster."""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from zlib_ng import zlib_ng

Bytes = NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The colour type of the PNG specification, by number of channels.
COLOUR_TYPES = {3: 2, 4: 6}

#: The number of rows that share a filter. They fit into the cache of a core.
_BAND = 64

#: One row of this number is examined to choose the filter.
_SAMPLE = 16

#: Two limits of the entropy of a filtered byte, in bits. Below the first, the picture is flat or a gradient, and
#: patterns repeat. Between the two, only runs of one value repeat. Above the second, nothing repeats. Figures:
#: docs/benchmarks.md.
_FLAT, _BUSY = 0.4, 4


def encode_png(
    rgb: bytes, width: int, height: int, alpha: bytes | None = None, text: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a PNG file.

    `rgb`: height x width x 3 bytes, rows from the top. `alpha`: height x width bytes; 255 is opaque. `text`: iTXt
    chunks, with keys in Latin-1.
    """
    pixels = _interleaved(rgb, alpha, width, height)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[pixels.shape[2]], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_chunk(b"iTXt", _text(key, value)) for key, value in (text or {}).items()]
    chunks += [_chunk(b"IDAT", _compressed(pixels)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def _interleaved(rgb: bytes, alpha: bytes | None, width: int, height: int) -> Bytes:
    colours = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
    return colours if alpha is None else np.dstack([colours, np.frombuffer(alpha, np.uint8).reshape(height, width)])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _text(key: str, value: str) -> bytes:
    # keyword, null, compression flag, compression method, language tag, null, translated keyword, null, text
    return key.encode("latin-1") + b"\0\0\0\0\0" + value.encode()


# -- filters (PNG specification, 9.2): each byte minus the prediction from its neighbours ------------------------------


class _Band(NamedTuple):
    """Some rows, the rows above each of them, and the number of bytes of a pixel."""

    rows: Bytes
    above: Bytes
    step: int

    def sample(self) -> "_Band":
        return _Band(self.rows[::_SAMPLE], self.above[::_SAMPLE], self.step)


def _sub(band: _Band, out: Bytes) -> None:
    rows, _, step = band
    out[:, :step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=out[:, step:])


def _up(band: _Band, out: Bytes) -> None:
    np.subtract(band.rows, band.above, out=out)


def _average(band: _Band, out: Bytes) -> None:
    rows, above, step = band
    left, up = rows[:, :-step], above[:, step:]
    # Half the sum, without overflow to a ninth bit.
    mean = ((left ^ up) >> 1) + (left & up)
    np.subtract(rows[:, :step], above[:, :step] >> 1, out=out[:, :step])
    np.subtract(rows[:, step:], mean, out=out[:, step:])


def _paeth(band: _Band, out: Bytes) -> None:
    """Predict the neighbour that is nearest to left + up - corner.

    It computes in 8 bits, which is ten times as fast as in wider integers.
    """
    rows, above, step = band
    left, up, corner = rows[:, :-step], above[:, step:], above[:, :-step]
    from_left, from_up = _distance(up, corner), _distance(left, corner)
    # If both are on the same side of the corner, the corner is the farthest. If not, its distance is the difference of
    # the two distances.
    from_corner = _distance(from_left, from_up) | _mask((up >= corner) == (left >= corner))
    nearest = _either(_mask(from_up <= from_corner), up, corner)
    nearest = _either(_mask(from_left <= np.minimum(from_up, from_corner)), left, nearest)
    np.subtract(rows[:, :step], above[:, :step], out=out[:, :step])
    np.subtract(rows[:, step:], nearest, out=out[:, step:])


def _distance(one: Bytes, other: Bytes) -> Bytes:
    return np.maximum(one, other) - np.minimum(one, other)


def _mask(condition: NDArray[np.bool_]) -> Bytes:
    """255 where the condition holds."""
    return np.negative(condition.view(np.uint8))


def _either(mask: Bytes, one: Bytes, other: Bytes) -> Bytes:
    return other ^ ((one ^ other) & mask)


_FILTERS: Mapping[int, Callable[[_Band, Bytes], None]] = {1: _sub, 2: _up, 3: _average, 4: _paeth}


# -- compression -------------------------------------------------------------------------------------------------------


def _compressed(pixels: Bytes) -> bytes:
    """The picture, filtered band by band and deflated."""
    bands = list(_bands(pixels))
    chosen = [_choose(band.sample()) for band in bands]
    stream = _deflater(sum(bits for bits, _ in chosen) / sum(band.sample().rows.size for band in bands))
    pieces = []
    for band, (_, kind) in zip(bands, chosen, strict=True):
        filtered = np.empty((len(band.rows), 1 + band.rows.shape[1]), np.uint8)
        filtered[:, 0] = kind
        _FILTERS[kind](band, filtered[:, 1:])
        pieces.append(stream.compress(filtered.data))
    return b"".join([*pieces, stream.flush()])


def _deflater(bits: float) -> Any:
    """The fastest compressor that is good for data of this entropy."""
    if bits < _FLAT:
        return zlib_ng.compressobj(level=6)
    if bits < _BUSY:
        return zlib_ng.compressobj(level=1, strategy=zlib_ng.Z_RLE)
    return isal_zlib.compressobj(level=1)


def _bands(pixels: Bytes) -> Iterator[_Band]:
    height, width, step = pixels.shape
    padded = np.zeros((1 + height, width * step), np.uint8)  # a row of zeros above the first row
    padded[1:] = pixels.reshape(height, width * step)
    for top in range(0, height, _BAND):
        end = min(top + _BAND, height)
        yield _Band(padded[1 + top : 1 + end], padded[top:end], step)


def _choose(sample: _Band) -> tuple[float, int]:
    """The filter with the lowest entropy, and that entropy in bits a byte."""
    filtered = np.empty_like(sample.rows)
    bits = []
    for kind, apply in _FILTERS.items():
        apply(sample, filtered)
        bits.append((_bits(filtered), kind))
    return min(bits)


def _bits(filtered: Bytes) -> float:
    """Shannon's entropy of single bytes, in bits a byte."""
    counts = np.bincount(filtered.ravel(), minlength=256)
    counts = counts[counts > 0]
    total = filtered.size
    return float(total * np.log2(total) - (counts * np.log2(counts)).sum())
