"""Makes tests/data/quant with the `gguf` package (made with 0.19.0, numpy 2.4.6), from the top of the repository:

    python3 tests/support/make-quant-data.py tests/data/quant

For each block format: NAME.blocks, blocks of random bytes and hard ones, and NAME.f32, what gguf.quants.dequantize
makes of them. For quantising to Q8_0: write.f32 and write.q8_0. For ternary weights in blocks: ternary.i8, the
weights, and ternary.q4_0 and ternary.q8_0, what gguf.quants.quantize makes of them times SCALE.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

# Bytes of a block, and where its half-precision numbers stand.
FORMATS = {
    Type.Q4_0: (18, [0]),
    Type.Q8_0: (34, [0]),
    Type.Q4_K: (144, [0, 2]),
    Type.Q6_K: (210, [208]),
}
# Both zeros, the smallest and largest subnormal, the smallest normal, one and a bit, the largest; then infinities
# and two that are no numbers.
HARD = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C01, 0xBC01, 0x7BFF, 0xFBFF]
NOT_FINITE = [0x7C00, 0xFC00, 0x7E00, 0xFE01]
# The ternary matrix: rows that are whole blocks of 32, but not of 128 or 256.
ROWS, COLS, SCALE = 5, 288, 0.0137


def blocks(rng, size, scales):
    """Random bytes under hard scales, then under scales of usual size; at last every byte value."""
    count = len(HARD) + len(NOT_FINITE) + 8
    out = rng.integers(0, 256, (count + 256 // 16, size), dtype=np.uint8)
    for at in scales:
        usual = rng.normal(0, 0.02, len(out)).astype(np.float16).view(np.uint16)
        usual[: len(HARD) + len(NOT_FINITE)] = np.roll(HARD + NOT_FINITE, at)
        out[:, at : at + 2] = usual.astype("<u2").view(np.uint8).reshape(-1, 2)
    for i, row in enumerate(out[count:]):
        rest = [at for at in range(size) if at not in scales and at - 1 not in scales]
        row[rest] = (np.arange(len(rest)) * 16 + i * 17 + np.arange(len(rest)) // 16) % 256
    return out


def rows_to_write(rng):
    """Rows of many sizes; all zeros; one number alone; ties of rounding; halves of both signs."""
    x = rng.normal(0, 1, (24, 64)).astype(np.float32) * (10.0 ** rng.uniform(-6, 4, (24, 1))).astype(np.float32)
    x[0] = 0
    x[1] = 0
    x[1, 5] = -3
    x[2] = np.arange(64, dtype=np.float32) * 2 - 63.5
    x[2, 0] = x[2, 32] = 127
    x[3] = np.float32(1e-7) * np.arange(64, dtype=np.float32)
    return x


def main(folder):
    rng = np.random.default_rng(20261123)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (size, scales) in FORMATS.items():
        data = blocks(rng, size, scales)
        with np.errstate(invalid="ignore", over="ignore"):
            numbers = quants.dequantize(data.reshape(-1), kind)
        data.tofile(folder / f"{kind.name.lower()}.blocks")
        numbers.astype("<f4").tofile(folder / f"{kind.name.lower()}.f32")
    x = rows_to_write(rng)
    x.astype("<f4").tofile(folder / "write.f32")
    quants.quantize(x, Type.Q8_0).tofile(folder / "write.q8_0")
    weights = rng.integers(-1, 2, (ROWS, COLS)).astype(np.int8)
    weights[0] = 0
    weights[1, :64] = 0
    weights[2, :32] = -1
    weights[3, 32:64] = np.abs(weights[3, 32:64])
    weights.tofile(folder / "ternary.i8")
    for kind in (Type.Q4_0, Type.Q8_0):
        quants.quantize(weights.astype(np.float32) * np.float32(SCALE), kind).tofile(
            folder / f"ternary.{kind.name.lower()}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
