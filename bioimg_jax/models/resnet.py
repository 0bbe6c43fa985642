"""Residual networks (He et al., arXiv 1512.03385) in the v1.5 form: stride in the 3 x 3."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Depth -> blocks a stage, factor from a block's inner width to its output (1: basic block).
DEPTHS = {
    10: ((1, 1, 1, 1), 1),
    18: ((2, 2, 2, 2), 1),
    34: ((3, 4, 6, 3), 1),
    50: ((3, 4, 6, 3), 4),
}
WIDTH = 64  # inner width of the first stage, as published


def stage_widths(width: int) -> tuple[int, ...]:
    """Inner widths of the four stages: each twice that of the one before."""
    return tuple(width * 2**i for i in range(4))


# Up to this many output pixels a convolution is one matrix product over gathered neighbourhoods:
# XLA's CPU convolution of 2 x 2 pixels and 512 channels runs at 2 GFLOP/s, the product at 160.
# From 8 x 8 pixels on the convolution is the faster of the two.
MATRIX_PRODUCT_PIXELS = 16


class Conv(nnx.Module):
    """Convolution without bias, padded to keep the size; [b, h, w, c] -> [b, h / s, w / s, d]."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.size, self.stride, self.dtype = size, stride, dtype
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, pad, s = self.kernel[...].astype(self.dtype), self.size // 2, self.stride
        b, h, w, _ = x.shape
        rows, columns = -(-h // s), -(-w // s)
        if rows * columns > MATRIX_PRODUCT_PIXELS:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (s, s),
                [(pad, pad), (pad, pad)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        neighbours = [
            x[:, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
            for i in range(self.size)
            for j in range(self.size)
        ]
        gathered = jnp.concatenate(neighbours, axis=-1).reshape(b * rows * columns, -1)
        return (gathered @ kernel.reshape(-1, kernel.shape[-1])).reshape(b, rows, columns, -1)


class ConvNorm(nnx.Module):
    """Convolution, then BatchNorm."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.conv = Conv(inputs, outputs, size, stride, dtype, rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(x), use_running_average=not train)


class ResidualBlock(nnx.Module):
    """Basic (two 3 x 3) or bottleneck (1 x 1, 3 x 3, 1 x 1) block."""

    def __init__(
        self, inputs: int, inner: int, expansion: int, stride: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        outputs = inner * expansion
        if expansion == 1:
            shapes = [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
        else:
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        # Named, not listed: integer keys come back from a checkpoint as text, in text order.
        self.conv_names = tuple(f"conv{i + 1}" for i in range(len(shapes)))
        for name, shape in zip(self.conv_names, shapes, strict=True):
            setattr(self, name, ConvNorm(*shape, dtype, rngs))
        self.shortcut = (
            ConvNorm(inputs, outputs, 1, stride, dtype, rngs)
            if inputs != outputs or stride != 1
            else None
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        skip = x if self.shortcut is None else self.shortcut(x, train)
        for name in self.conv_names[:-1]:
            x = jax.nn.relu(getattr(self, name)(x, train))
        return jax.nn.relu(getattr(self, self.conv_names[-1])(x, train) + skip)


class ResNet(nnx.Module):
    """Images [b, h, w, c] -> the outputs of the four stages, each [b, h_i, w_i, d_i]."""

    def __init__(
        self, *, n_channels: int, depth: int, width: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        self.stem = ConvNorm(n_channels, width, 7, 2, dtype, rngs)
        counts, expansion = DEPTHS[depth]
        stages = []
        for i, (inner, count) in enumerate(zip(stage_widths(width), counts, strict=True)):
            names = []
            for j in range(count):
                stride = 2 if i and not j else 1
                names.append(f"stage{i + 1}_block{j + 1}")
                block = ResidualBlock(width, inner, expansion, stride, dtype, rngs)
                setattr(self, names[-1], block)
                width = inner * expansion
            stages.append(tuple(names))
        self.stage_names = tuple(stages)

    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        x = jax.nn.relu(self.stem(images.astype(self.dtype), train))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for names in self.stage_names:
            for name in names:
                x = getattr(self, name)(x, train)
            outputs.append(x)
        return tuple(outputs)
