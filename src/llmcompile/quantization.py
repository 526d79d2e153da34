"""Encoders that quantize and pack TensorRT-LLM weights block by block: rows of a matrix in, bytes of the artifact out.

An encoder serves one matrix W (out, in). Consecutive rows of W give consecutive bytes of the packed tensor, so nothing
larger than a block is ever held; what is known only at the end, the scales, comes from `rest`. An encoder keeps its
scratch arrays (3 to 4 MiB) from the first `encode` to `rest`, and one thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmcompile.dtypes import BF16, FP16, FP32, DType, Shape, count
from llmcompile.transforms import Array, from_float32, to_float32

_STEP = 1 << 18
"""Weights worked on at once: as float32 (1 MiB) they stay in cache through every pass, which costs as much as the
calls themselves (40 microseconds) at 2**16."""
_K_TILE = 64
"""Elements along K of one tile of the interleaved layout. Source: `rows_per_column_tile` of cutlass_preprocessors.cpp,
1024 bits of activations of 16 bits."""
_INTEGER = np.float32(1.5 * 2**23)
"""Added to a float32 below 2**22, this rounds it to the nearest even integer and leaves that in the low 22 bits."""
_BELOW_HALF = np.float32(0.5 - 2**-25)
"""The float32 before one half: adding it and truncating rounds half away from zero, also just below one half."""
_NUDGE = np.float32(1 + 2**-21)
"""See `_reciprocal`."""
_FP8_MAX = np.float32(448)
_FP8_SCALE_MIN = np.float32(1 / (448 * 512))
_FP8_SMALLEST = np.float32(2**-9)
_FP4_LARGEST = np.float32(6)
NVFP4_BLOCK = 16
"""Inputs that share a scale in NVFP4."""


class WeightOnly:
    """Int8 or int4 per output row, in the SM80 (75 to 89) layout of CUTLASS's mixed-input GEMM.

    s = max|W[n]| * 2**-(bits-1) in float32 and q = W / s rounded half away from zero and clamped; the stored scale is s
    rounded to the artifact's type, q is made with the unrounded one. Q (in, out) is then permuted along K, columns
    interleaved by 2 (int8) or 4 (int4), made unsigned and reordered inside 32-bit words.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
    (symmetric_quantize, preprocess_weights_for_mixed_gemm).
    """

    ROWS = 4

    def __init__(self, dtype: DType, bits: int) -> None:
        if bits not in (4, 8):
            raise ValueError(f"{bits} bits; expected 4 or 8")
        self._dtype = dtype
        self._bits = bits
        self._half = 1 << (bits - 1)
        self._scales: list[Array] = []
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize and pack rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous; rows a multiple of `ROWS`, in of 64.
            part: Not used: every row has a scale of its own.

        Returns:
            int8 of shape (rows, in * bits / 8): the next bytes of `weight`.

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        packed = np.empty((rows, inputs * self._bits // 8), np.int8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            self._encode(block[start:stop], packed[start:stop])
        return packed

    def _encode(self, block: Array, packed: Array) -> None:
        rows, inputs = block.shape
        parts = 16 // self._bits
        scale = _row_maximum(block, self._dtype, self._scratch) * np.float32(1 / self._half)
        self._scales.append(from_float32(scale, self._dtype))
        # The layout makes one 16-bit word of the elements i, 8 + i, .. of each 8 * parts along K, so those runs of
        # 8 are parted first: everything after works on whole arrays.
        runs = block.view(f"V{8 * block.itemsize}").reshape(rows, -1, parts)
        parted = self._scratch.array("bits", (parts, rows, inputs // parts), block.dtype)
        np.copyto(parted.view(runs.dtype), runs.transpose(2, 0, 1))
        values = self._scratch.array("values", parted.shape, np.dtype(np.float32))
        _widen(parted, self._dtype, values)
        self._round(values, scale[:, np.newaxis])
        bits = values.view(np.uint32)
        words = bits[-1]
        for later in bits[-2::-1]:
            np.left_shift(words, np.uint32(self._bits), out=words)
            np.bitwise_or(words, later, out=words)
        narrow = self._scratch.array("narrow", words.shape, np.dtype(np.uint16))
        np.copyto(narrow, words, casting="unsafe")
        _interleave(narrow, packed, self._bits)

    def _round(self, values: Array, scale: Array) -> None:
        """Replace `values` by quantized ones plus 2**(bits-1), in the low bits of each float32."""
        reciprocal = _reciprocal(scale, self._dtype)
        if reciprocal is not None:
            np.multiply(values, reciprocal, out=values)
        else:
            # A row whose scale underflows has only weights that round to nothing.
            np.divide(values, np.where(scale == 0, np.float32(1), scale), out=values)
            np.add(values, np.copysign(_BELOW_HALF, values), out=values)
            np.trunc(values, out=values)
        np.clip(values, np.float32(-self._half), np.float32(self._half - 1), out=values)
        np.add(values, _INTEGER + np.float32(self._half), out=values)

    def rest(self) -> tuple[Array, ...]:
        """(`per_channel_scale`,) of shape (rows encoded,), bits of the artifact's dtype."""
        self._scratch.clear()
        return (np.concatenate(self._scales),)


class Gptq:
    """AutoGPTQ's int4 in the SM80 layout of `WeightOnly`; the integers stay what they are, nibble - 8.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/llama/convert.py (load_weights_from_gptq).
    """

    ROWS = 4

    def __init__(self) -> None:
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Lay out rows of AutoGPTQ's transposed `qweight`.

        Args:
            block: Shape (rows, in / 8), int32 or uint32, C-contiguous: row n holds the nibbles of output n along K,
                the lowest first; rows a multiple of `ROWS`, in of 64.
            part: Not used.

        Returns:
            int8 of shape (rows, in / 2): the next bytes of `weight`.
        """
        rows, words = block.shape
        packed = np.empty((rows, words * 4), np.int8)
        for start, stop in _steps(rows, words, self.ROWS):
            self._encode(block[start:stop], packed[start:stop])
        return packed

    def _encode(self, block: Array, packed: Array) -> None:
        rows, words = block.shape
        # (4, 8) nibbles of four words become (8, 4): nibbles first, then bytes, then halves.
        four = self._scratch.array("four", (4, rows * words // 4), np.dtype(np.uint32))
        np.copyto(four, block.view(np.uint32).reshape(-1, 4).T)
        even_ab, odd_ab = _exchange(four[0], four[1], 4, 0x0F0F0F0F)
        even_cd, odd_cd = _exchange(four[2], four[3], 4, 0x0F0F0F0F)
        even = _exchange(even_ab, even_cd, 8, 0x00FF00FF)
        odd = _exchange(odd_ab, odd_cd, 8, 0x00FF00FF)
        turned = self._scratch.array("turned", (rows, words), np.dtype(np.uint32))
        columns = turned.reshape(-1, 4)
        for word in (0, 1):
            columns[:, word], columns[:, word + 2] = _exchange(even[word], odd[word], 16, 0x0000FFFF)
        _interleave(turned, packed, 4)

    def rest(self) -> tuple[Array, ...]:
        """Nothing: scales and zeros do not depend on the packed integers."""
        self._scratch.clear()
        return ()


def gptq_zeros(qzeros: Array, scales: Array, dtype: DType) -> Array:
    """Return the `zero` tensor of a GPTQ linear: (7 - z) * scale.

    The product is rounded to float16, then to `dtype`, as upstream's is. AutoGPTQ stores z - 1, hence 7 and not 8.

    Args:
        qzeros: Shape (in / group, out / 8), int32 or uint32; the lowest nibble is the first output's.
        scales: Shape (in / group, out), float32, of values that float16 holds.
        dtype: The artifact's type.

    Returns:
        Shape (in / group, out), bits of `dtype`.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/llama/convert.py (load_weights_from_gptq).
    """
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    zeros = (qzeros.view(np.uint32)[..., np.newaxis] >> shifts) & np.uint32(15)
    product = (7 - zeros.reshape(scales.shape).astype(np.float32)) * scales
    return from_float32(to_float32(from_float32(product, FP16), FP16), dtype)


class GroupwiseAwq:
    """Int4 per group of inputs, rounded to nearest, in the container that ModelOpt writes for AWQ.

    scale = max|W| / 7 of the group (1 for a group of zeros) and q = W / scale, rounded half to even, all in float32.
    Where the runtime multiplies each input by a factor, W is divided by it first; the caller writes these factors as
    `prequant_scaling_factor`. The layout is the same on every GPU.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (get_scaling_factor_from_weight,
    pack_int4_in_uint8).
    """

    ROWS = 2

    def __init__(self, dtype: DType, group_size: int = 128, columns: Array | None = None) -> None:
        """Begin a matrix; `columns` are its inputs' factors, float32 of shape (in,), or None for ones."""
        self._dtype = dtype
        self._group_size = group_size
        self._columns = columns
        self._scales: list[Array] = []
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize and pack rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous; rows a multiple of `ROWS`, in of the
                group size.
            part: Not used.

        Returns:
            int8 of shape (rows / 2, in): row 2j in the low nibbles of row j, row 2j + 1 in the high ones.

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        packed = np.empty((rows // 2, inputs), np.int8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            self._encode(block[start:stop], packed[start // 2 : stop // 2])
        return packed

    def _encode(self, block: Array, packed: Array) -> None:
        rows, inputs = block.shape
        grouped = block.reshape(-1, self._group_size)
        values = self._scratch.array("values", grouped.shape, np.dtype(np.float32))
        scale = _row_maximum(grouped, self._dtype, self._scratch) / np.float32(7)
        _widen(grouped, self._dtype, values)
        if self._columns is not None:
            wide = values.reshape(rows, inputs)
            np.divide(wide, self._columns, out=wide)
            scale = np.abs(values).max(axis=1) / np.float32(7)
        scale[scale == 0] = 1
        np.divide(values, scale[:, np.newaxis], out=values)
        self._scales.append(scale.reshape(rows, -1))
        # Only a subnormal scale, rounded coarsely, leaves anything to clamp.
        np.clip(values, np.float32(-8), np.float32(7), out=values)
        np.add(values, _INTEGER, out=values)
        pairs = values.view(np.uint32).reshape(rows // 2, 2, inputs)
        low, high = pairs[:, 0], pairs[:, 1]
        np.left_shift(high, np.uint32(4), out=high)
        np.bitwise_and(low, np.uint32(15), out=low)
        np.bitwise_or(low, high, out=low)
        np.copyto(packed.view(np.uint8), low, casting="unsafe")

    def rest(self) -> tuple[Array, ...]:
        """(`weights_scaling_factor`,): float32 of shape (rows encoded, in / group size)."""
        self._scratch.clear()
        return (np.concatenate(self._scales),)


class Fp8Rowwise:
    """float8_e4m3fn per output row, activations being scaled per token when the engine runs.

    x = W clamped to +-clamp, s = max(max|x[n]| / 448, 1 / (448 * 512)), weight = x / s rounded to nearest even.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/llama/convert.py (fp8_per_channel_quant_weight_gpu).
    """

    ROWS = 1

    def __init__(self, dtype: DType, clamp: float = 1200.0) -> None:
        self._dtype = dtype
        self._clamp = np.float32(clamp)
        self._scales: list[Array] = []
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous.
            part: Not used.

        Returns:
            uint8 of shape (rows, in): bits of float8_e4m3fn.

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        packed = np.empty((rows, inputs), np.uint8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            self._encode(block[start:stop], packed[start:stop])
        return packed

    def _encode(self, block: Array, packed: Array) -> None:
        values = self._scratch.array("values", block.shape, np.dtype(np.float32))
        maximum = np.minimum(_row_maximum(block, self._dtype, self._scratch), self._clamp)
        scale = np.maximum(maximum / _FP8_MAX, _FP8_SCALE_MIN)
        _widen(block, self._dtype, values)
        np.clip(values, -self._clamp, self._clamp, out=values)
        np.divide(values, scale[:, np.newaxis], out=values)
        np.clip(values, -_FP8_MAX, _FP8_MAX, out=values)
        self._scales.append(scale)
        _round_fp8(values, packed, self._scratch)

    def rest(self) -> tuple[Array, ...]:
        """(`per_channel_scale`,): float32 of shape (rows encoded,)."""
        self._scratch.clear()
        return (np.concatenate(self._scales),)


class Fp8Tensor:
    """float8_e4m3fn of one scale for the whole matrix, known beforehand: weight = W / scale, to nearest even.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (to_quantized_weight).
    """

    ROWS = 1

    def __init__(self, dtype: DType, scale: float) -> None:
        if not 0 < scale < np.inf:
            raise ValueError(f"a weight scale of {scale}; expected a finite one above 0")
        self._dtype = dtype
        self._scale = np.float32(scale)
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous.
            part: Not used.

        Returns:
            uint8 of shape (rows, in): bits of float8_e4m3fn.

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        packed = np.empty((rows, inputs), np.uint8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            _row_maximum(block[start:stop], self._dtype, self._scratch)  # refuses what is not finite
            values = self._scratch.array("values", (stop - start, inputs), np.dtype(np.float32))
            _widen(block[start:stop], self._dtype, values)
            np.divide(values, self._scale, out=values)
            np.clip(values, -_FP8_MAX, _FP8_MAX, out=values)
            _round_fp8(values, packed[start:stop], self._scratch)
        return packed

    def rest(self) -> tuple[Array, ...]:
        """(`weights_scaling_factor`,): float32 of shape (1,)."""
        self._scratch.clear()
        return (np.array([self._scale], np.float32),)


class Nvfp4:
    """float4_e2m1fn in blocks of 16 inputs, each with a scale in float8_e4m3fn, and one for the whole matrix.

    For a block, f = fp8(max|w| / (6 * scale)), no less than 2**-9 and 1 where that is 0; its weights are
    w / (f * scale) rounded to nearest even, all in float32, and clipped at 6.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/quantization/qtensor/nvfp4_tensor.py (NVFP4QTensor).
    """

    ROWS = 1

    def __init__(self, dtype: DType, scale: float) -> None:
        """Begin a matrix; `scale` is a 6 * 448th of the largest weight that shares it."""
        if not 0 < scale < np.inf:
            raise ValueError(f"a weight scale of {scale}; expected a finite one above 0")
        self._dtype = dtype
        self._scale = np.float32(scale)
        self._divisors = np.repeat(_FP8_VALUES[:127] * self._scale, 4).view(np.complex128)
        """What divides a block's weights, four times over, by the bits of its own scale."""
        self._scales: list[Array] = []
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize and pack rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous; in a multiple of 16.
            part: Not used.

        Returns:
            uint8 of shape (rows, in / 2): input 2j in the low nibble, 2j + 1 in the high one.

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        if inputs % NVFP4_BLOCK != 0:
            raise ValueError(f"{inputs} inputs / {NVFP4_BLOCK} = {inputs / NVFP4_BLOCK:.2f}; expected a whole number")
        packed = np.empty((rows, inputs // 2), np.uint8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            self._encode(block[start:stop], packed[start:stop])
        return packed

    def _encode(self, block: Array, packed: Array) -> None:
        # Lanes: the inputs of a block four by four, the first four of each block before the second four of each. All
        # work is then on long arrays, where a block's scale stands four times in a row.
        run = "u8" if block.itemsize == 2 else "c16"
        lanes = self._scratch.array("lanes", (4, block.size // 4), block.dtype)
        np.copyto(lanes.view(run), block.reshape(-1, NVFP4_BLOCK).view(run).T)
        scales = self._block_scales(lanes)
        self._scales.append(scales.reshape(len(block), -1))
        divisors = self._scratch.array("divisors", scales.shape, self._divisors.dtype)
        np.take(self._divisors, scales, out=divisors, mode="clip")
        values = self._scratch.array("values", lanes.shape, np.dtype(np.float32))
        _widen(lanes, self._dtype, values)
        np.divide(values, divisors.view(np.float32), out=values)
        np.clip(values, -_FP4_LARGEST, _FP4_LARGEST, out=values)
        codes = self._scratch.array("codes", lanes.shape, np.dtype(np.uint8))
        _round_fp4(values, codes, self._scratch)
        _pack_fp4(codes.view("<u4"), packed.reshape(-1).view("<u8"), self._scratch)

    def _block_scales(self, lanes: Array) -> Array:
        """The scale of each block, bits of float8_e4m3fn."""
        fours = _magnitudes(lanes, self._scratch).max(axis=0).reshape(-1, 4).T
        largest = np.maximum(np.maximum(fours[0], fours[1]), np.maximum(fours[2], fours[3]))
        scale = _finite(largest, self._dtype) / (_FP4_LARGEST * self._scale)
        scale[scale == 0] = 1
        np.clip(scale, _FP8_SMALLEST, _FP8_MAX, out=scale)
        bits = np.empty(scale.shape, np.uint8)
        _round_fp8(scale, bits, self._scratch)
        return bits

    def rest(self) -> tuple[Array, ...]:
        """(`weights_scaling_factor`, `weights_scaling_factor_2`).

        uint8 of shape (rows encoded, in / 16), bits of float8_e4m3fn; and float32 of shape (1,).
        """
        self._scratch.clear()
        return np.concatenate(self._scales), np.array([self._scale], np.float32)


class SmoothInt8:
    """Int8 per output row of a matrix whose columns were divided by the factors of its inputs.

    V = W / columns, scale = max|V[n]| / 127 (1 for a row of zeros) and q = V / scale, rounded half to even.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (get_scaling_factor_from_weight,
    to_quantized_weight).
    """

    ROWS = 1

    def __init__(self, dtype: DType, columns: Array) -> None:
        self._dtype = dtype
        self._columns = columns
        self._scales: list[Array] = []
        self._scratch = _Scratch()

    def encode(self, block: Array, part: int) -> Array:
        """Quantize rows of W.

        Args:
            block: Shape (rows, in), bits of the artifact's dtype, C-contiguous.
            part: Not used: every row has a scale of its own.

        Returns:
            int8 of shape (rows, in).

        Raises:
            ValueError: A weight is infinite or not a number.
        """
        rows, inputs = block.shape
        packed = np.empty((rows, inputs), np.int8)
        for start, stop in _steps(rows, inputs, self.ROWS):
            _row_maximum(block[start:stop], self._dtype, self._scratch)  # refuses what is not finite
            values = self._scratch.array("values", (stop - start, inputs), np.dtype(np.float32))
            _widen(block[start:stop], self._dtype, values)
            np.divide(values, self._columns, out=values)
            scale = np.abs(values).max(axis=1) / np.float32(127)
            scale[scale == 0] = 1
            np.divide(values, scale[:, np.newaxis], out=values)
            np.rint(values, out=values)
            np.copyto(packed[start:stop], np.clip(values, -128, 127, out=values), casting="unsafe")
            self._scales.append(scale)
        return packed

    def rest(self) -> tuple[Array, ...]:
        """(`weights_scaling_factor`,): float32 of shape (rows encoded,)."""
        self._scratch.clear()
        return (np.concatenate(self._scales),)


class Fp8Requant:
    """The parts of a fused float8_e4m3fn matrix brought to the largest of their scales.

    A fused qkv has one weight scale. Each weight becomes fp8(q * s_part / s_max), from left to right in float32.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/quantization/layers.py (FP8Linear.postprocess).
    """

    ROWS = 1

    def __init__(self, scales: Sequence[float]) -> None:
        if not all(0 < scale < np.inf for scale in scales):
            raise ValueError(f"weight scales {[float(scale) for scale in scales]}; expected finite ones above 0")
        self._scale = np.float32(max(scales))
        self._pairs = tuple(self._table(np.float32(scale)) for scale in scales)

    def _table(self, scale: np.float32) -> Array:
        """What every pair of bytes becomes, one pair per entry: half the look-ups of a table of bytes."""
        one = to_fp8(from_fp8(np.arange(256, dtype=np.uint8)) * scale / self._scale)
        pairs = np.empty((256, 256, 2), np.uint8)
        pairs[..., 0] = one
        pairs[..., 1] = one[:, np.newaxis]
        return pairs.view("<u2").reshape(-1)

    def encode(self, block: Array, part: int) -> Array:
        """Rescale rows of part `part`.

        Args:
            block: Shape (rows, in), bits of float8_e4m3fn, C-contiguous; in even.
            part: Index of the part's scale.

        Returns:
            uint8 of the same shape.
        """
        scaled = np.empty_like(block)
        source, target = block.reshape(-1).view("<u2"), scaled.reshape(-1).view("<u2")
        for start in range(0, source.size, _STEP):
            piece = slice(start, start + _STEP)
            np.take(self._pairs[part], source[piece], out=target[piece], mode="clip")
        return scaled

    def rest(self) -> tuple[Array, ...]:
        """(`weights_scaling_factor`,): the largest scale, float32 of shape (1,)."""
        return (np.array([self._scale], np.float32),)


class AddOne:
    """1 + w in the artifact's dtype: Gemma's norms multiply by that, TensorRT-LLM's by the weight itself.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/gemma/convert.py (load_gemma_weights).
    """

    ROWS = 1

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype

    def encode(self, block: Array, part: int) -> Array:
        """Bits of 1 + w for the bits of w in `block`, any shape, rounded to nearest even."""
        return from_float32(to_float32(block, self._dtype) + np.float32(1), self._dtype)

    def rest(self) -> tuple[Array, ...]:
        """Nothing."""
        return ()


def check(out: int, inp: int, bits: int) -> str | None:
    """Return why the SM80 layout cannot hold one rank's (out, inp) matrix of int4 or int8, or None when it can.

    Source: the checks of NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
    (subbyte_transpose_impl: 32 bytes on both axes; interleave_column_major_tensor: tiles of 64 inputs).
    """
    outputs = 32 * 8 // bits
    inputs = max(_K_TILE, outputs)
    for name, size, unit in (("outputs", out, outputs), ("inputs", inp, inputs)):
        if size % unit != 0:
            return f"{size} {name} / {unit} = {size / unit:.2f}; the int{bits} layout needs a whole number"
    return None


def to_fp8(values: Array) -> Array:
    """Return float32 `values` as bits of float8_e4m3fn, rounded to nearest even.

    What rounds above 448 (from just above 464 on) is NaN, 0x7F with the sign: so in ml_dtypes, and in PyTorch when the
    vendor's converters were written; PyTorch 2.13 gives 448. No encoder here comes that far.
    """
    bits = np.empty(values.shape, np.uint8)
    work = np.array(values, np.float32, order="C").reshape(-1)
    scratch = _Scratch()
    for start in range(0, work.size, _STEP):
        _round_fp8(work[start : start + _STEP], bits.reshape(-1)[start : start + _STEP], scratch)
    return bits


def from_fp8(bits: Array) -> Array:
    """Return bits of float8_e4m3fn as float32, exactly."""
    return np.asarray(_FP8_VALUES[bits])


def _fp8_values() -> Array:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp((8 + mantissa).astype(np.float32), exponent - 10)
    positive = np.where(exponent == 0, mantissa.astype(np.float32) * np.float32(2**-9), normal)
    positive[127] = np.nan
    return np.concatenate((positive, -positive))


_FP8_VALUES = _fp8_values()
_FP8_VALUES.flags.writeable = False


class _Scratch:
    """Arrays kept between the steps of an encoder, so that no step pays for fresh pages."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: Shape, dtype: np.dtype[np.generic]) -> Array:
        """An uninitialized C-contiguous array; it shares memory with the last one of this name."""
        size_bytes = count(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size_bytes:
            buffer = self._buffers[name] = np.empty(size_bytes, np.uint8)
        return buffer[:size_bytes].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Give the memory back: the encoders of finished matrices may live as long as the plan does."""
        self._buffers.clear()


def _steps(rows: int, columns: int, unit: int) -> list[tuple[int, int]]:
    """Ranges of whole units of rows, about `_STEP` elements each."""
    if rows % unit != 0:
        raise ValueError(f"{rows} rows / {unit} = {rows / unit:.2f}; expected a whole number")
    step = max(1, _STEP // (columns * unit)) * unit
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _row_maximum(block: Array, dtype: DType, scratch: _Scratch) -> Array:
    """max|w| of each row as float32."""
    return _finite(_magnitudes(block, scratch).max(axis=1), dtype)


def _magnitudes(block: Array, scratch: _Scratch) -> Array:
    """The bits of floats without their signs, as unsigned integers, which order as the magnitudes do."""
    wide = block.itemsize == 4
    unsigned, mask = (np.uint32, np.uint32(0x7FFFFFFF)) if wide else (np.uint16, np.uint16(0x7FFF))
    magnitude = scratch.array("bits", block.shape, np.dtype(unsigned))
    np.bitwise_and(block.view(unsigned), mask, out=magnitude)
    return magnitude


def _finite(largest: Array, dtype: DType) -> Array:
    """Some of `_magnitudes` as float32; refuses what is not finite."""
    maximum = to_float32(largest.view(dtype.bits), dtype)
    if not np.isfinite(maximum).all():
        raise ValueError("a weight is infinite or not a number; expected finite weights to quantize")
    return maximum


def _widen(bits: Array, dtype: DType, values: Array) -> None:
    """Write finite `bits` of `dtype` into `values` as float32, exactly."""
    if dtype == FP32:
        np.copyto(values, bits)
    elif dtype == BF16:
        wide = values.view(np.uint32)
        np.copyto(wide, bits)
        np.left_shift(wide, np.uint32(16), out=wide)
    elif dtype == FP16:
        # Six times as fast as NumPy's own conversion: the exponent keeps its bias of 15, the product makes it 127's.
        signed = values.view(np.int32)
        np.copyto(signed, bits.view(np.int16))
        np.left_shift(signed, np.int32(13), out=signed)
        np.bitwise_and(values.view(np.uint32), np.uint32(0x8FFFFFFF), out=values.view(np.uint32))
        np.multiply(values, np.float32(2.0**112), out=values)
    else:
        raise ValueError(f"{dtype.name} is not a float type that is quantized")


def _reciprocal(scale: Array, dtype: DType) -> Array | None:
    """Factor whose product with a weight, rounded to nearest, is W / scale rounded half away from zero; None if unsure.

    Weights and the row's maximum have at most 11 significant bits. So W / scale, at most 128, is either a tie or at
    least 2**-14 off it where it is below 1 and 2**-12 where it is not. The factor is 2**-21 too large, relatively: more
    than the 2**-23 by which it and the product are rounded, so a tie moves away from zero; less than would move
    anything else across a tie. float32 weights come arbitrarily near to ties, and a subnormal scale is not exact.
    """
    tiny = (scale > 0) & (scale < np.float32(2**-100))
    if dtype == FP32 or tiny.any():
        return None
    factor = np.zeros_like(scale)
    np.divide(_NUDGE, scale, out=factor, where=scale > 0)
    return factor


def _interleave(columns: Array, packed: Array, bits: int) -> None:
    """Write tiles of 64 elements of 16 / bits columns in turn: of each the first tile, then of each the second, .."""
    group = 16 // bits
    tile = f"V{_K_TILE * bits // 8}"
    rows = columns.shape[0]
    source = columns.view(tile).reshape(rows // group, group, -1)
    np.copyto(packed.view(tile).reshape(rows // group, -1, group), source.transpose(0, 2, 1))


def _exchange(first: Array, second: Array, shift: int, mask: int) -> tuple[Array, Array]:
    """Two arrays of uint32: the even fields of both, `first`'s before `second`'s, and the odd ones; `mask` is even."""
    even, width = np.uint32(mask), np.uint32(shift)
    return (first & even) | ((second & even) << width), ((first >> width) & even) | (second & ~even)


def _round_fp8(values: Array, bits: Array, scratch: _Scratch) -> None:
    """Write float32 `values` (overwritten) into uint8 `bits` as float8_e4m3fn; see `to_fp8`."""
    wide = values.view(np.uint32)
    work = scratch.array("work", values.shape, np.dtype(np.uint32))
    sign = scratch.array("sign", values.shape, np.dtype(np.uint8))
    np.right_shift(wide, np.uint32(24), out=work)
    np.copyto(sign, work, casting="unsafe")
    np.bitwise_and(sign, np.uint8(0x80), out=sign)
    np.bitwise_and(wide, np.uint32(0x7FFFFFFF), out=wide)
    # 480 is where NaN would be as a number; infinities and NaNs are above it as integers.
    np.clip(wide, np.uint32(0), np.float32(480).view(np.uint32), out=wide)
    # Adding 2**(e + 20) to a number of exponent e, -6 at least, rounds it to a multiple of 2**(e - 3): the low byte is
    # then 8 to 16 (0 to 8 below 2**-6), to be added to 8 * (e + 6). 16 carries into the exponent as it should.
    np.bitwise_and(wide, np.uint32(0x7F800000), out=work)
    np.clip(work, np.uint32((127 - 6) << 23), np.uint32(0x7F800000), out=work)
    np.add(work, np.uint32(20 << 23), out=work)
    np.add(values, work.view(np.float32), out=values)
    np.right_shift(work, np.uint32(20), out=work)
    np.add(work, wide, out=work)
    np.copyto(bits, work, casting="unsafe")
    # 8 * (e + 127 + 20) became 8 * (e + 6).
    np.subtract(bits, np.uint8(8 * (127 + 20 - 6) % 256), out=bits)
    np.bitwise_or(bits, sign, out=bits)


def _round_fp4(values: Array, codes: Array, scratch: _Scratch) -> None:
    """Write float32 `values` from -6 to 6 (overwritten) into the low bits of uint8 `codes` as float4_e2m1fn.

    To nearest even. Whatever is below zero has a sign, also where it is rounded to zero; a zero has none.
    """
    sign = scratch.array("sign", values.shape, np.dtype(np.uint8))
    np.less(values, np.float32(0), out=sign.view(np.bool_))
    words = sign.view(np.uint32)
    np.left_shift(words, np.uint32(3), out=words)
    wide = values.view(np.uint32)
    np.bitwise_and(wide, np.uint32(0x7FFFFFFF), out=wide)
    # As in `_round_fp8`: adding 2**(e + 22) to a number of exponent e, 0 at least, rounds it to a multiple of
    # 2**(e - 1), 2 to 4 (0 to 2 below 1), to be added to 2 * e. The constant brings the low byte of the sum there.
    work = scratch.array("work", values.shape, np.dtype(np.uint32))
    np.bitwise_and(wide, np.uint32(0x7F800000), out=work)
    np.clip(work, np.uint32(127 << 23), np.uint32(0x7F800000), out=work)
    np.add(work, np.uint32((22 << 23) + 256 - 2 * (127 + 22) % 256), out=work)
    np.add(values, work.view(np.float32), out=values)
    np.right_shift(work, np.uint32(22), out=work)
    np.add(work, wide, out=work)
    np.copyto(codes, work, casting="unsafe")
    np.bitwise_or(codes, sign, out=codes)


def _pack_fp4(codes: Array, words: Array, scratch: _Scratch) -> None:
    """Join float4 codes into `words`, uint64 (n), of 16 each; `codes` (overwritten) is uint32 (4, n), each of four."""
    joined = scratch.array("work", codes.shape, np.dtype(np.uint32))
    np.right_shift(codes, np.uint32(4), out=joined)
    np.bitwise_or(joined, codes, out=joined)
    np.bitwise_and(joined, np.uint32(0x00FF00FF), out=joined)
    np.right_shift(joined, np.uint32(8), out=codes)
    np.bitwise_or(joined, codes, out=joined)
    fours = scratch.array("values", codes.shape, np.dtype(np.uint64))
    np.copyto(fours, joined)
    np.bitwise_and(fours, np.uint64(0xFFFF), out=fours)
    np.copyto(words, fours[-1])
    for earlier in fours[-2::-1]:
        np.left_shift(words, np.uint64(16), out=words)
        np.bitwise_or(words, earlier, out=words)
