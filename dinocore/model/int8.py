"""Linear layers of encoder and decoder, and a ResNet's 3 x 3 convolutions, as products of bytes, for CPUs.

A weight has a scale for each output channel, an activation one for each token or, before a convolution, one for each
image, found when it is computed: nothing is calibrated. `export.quantize` makes the same of an ONNX graph's linear
layers. Between two products there is one pass over the data.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .deform_attn import MSDeformAttn
from .inference import FusedBlock, FusedConv
from .layers import FeedForward
from .ops.numba.int8 import MIDDLE, quantize, quantize_hidden, quantize_image, scale_sums
from .ops.numba.kernel_int8 import LANES


def quantize_layers(layers: nn.ModuleList) -> None:
    """Replace the linear layers of encoder or decoder layers by products of bytes, in place.

    Where attention samples and by which weights stays as it is, for AP suffers from it; so do the attention between
    queries and layers with fewer than LANES channels.
    """
    for module in list(layers.modules()):
        if isinstance(module, MSDeformAttn):
            for name in ("value", "output"):
                linear = getattr(module, name)
                if type(linear) is nn.Linear and _is_wide(linear):
                    setattr(module, name, Int8Linear(linear))
        elif isinstance(module, FeedForward) and isinstance(module.net, nn.Sequential):
            first, second = (child for child in module.net if isinstance(child, nn.Linear))
            if _is_wide(first) and _is_wide(second):
                module.net = Int8FeedForward(first, second)


def quantize_blocks(blocks: Iterable[FusedBlock]) -> None:
    """Replace the wide kernels of a ResNet's blocks that a ReLU follows by products of bytes, in place.

    Those of one pixel gain less than it takes to make bytes of what they read.
    """
    for block in blocks:
        for k, conv in enumerate(list(block.convs)[:-1]):
            assert isinstance(conv, FusedConv)
            if conv.kernel_size[0] > 1 and conv.options[-1] == 1 and min(conv.weight.shape[:2]) >= LANES:
                block.convs[k] = Int8Conv(conv)


def _is_wide(linear: nn.Linear) -> bool:
    return min(linear.in_features, linear.out_features) >= LANES


class Int8Linear(nn.Module):
    """A linear layer for CPUs, without gradients."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.product = Int8Product(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        data, steps = quantize(x.reshape(-1, x.shape[-1]))
        sums = self.product(data, MIDDLE, x.dtype)
        return scale_sums(sums, steps, self.product.bias, x.dtype).view(*x.shape[:-1], sums.shape[1])


class Int8FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, for CPUs, without gradients."""

    num_tokens = 4096  # best at once: more leave the cache, and with fewer the calls take too long

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        self.first, self.second = Int8Product(first), Int8Product(second)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        tokens = x.reshape(-1, x.shape[-1])
        if torch.compiler.is_compiling() and len(tokens) > self.num_tokens:
            return self._by_parts(tokens).view(x.shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return self._compute(tokens).view(x.shape)

    def _compute(self, tokens: Tensor) -> Tensor:
        data, steps = quantize(tokens)
        data, steps = quantize_hidden(self.first(data, MIDDLE, tokens.dtype), steps, self.first.bias)
        return scale_sums(self.second(data, 0, tokens.dtype), steps, self.second.bias, tokens.dtype)

    @torch.compiler.disable
    def _by_parts(self, tokens: Tensor) -> Tensor:
        """Hidden layers that stay in the cache save more than fused loops over all tokens do."""
        return torch.cat([self._compute(part) for part in tokens.split(self.num_tokens)])


class _Packed(nn.Module):
    """What holds a tensor in a layout of its own, which copies and pickles make anew."""

    def _pack(self) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"}  # no usual tensor

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()


class Int8Product(_Packed):
    """The matrix of a linear layer, laid out for products of unsigned by signed bytes; its bias is for the caller."""

    matrix: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, num_tokens: int = 1024):
        """
        Args:
            num_tokens: of a typical call; the layout that is best for so many suits any number.
        """
        super().__init__()
        self.num_tokens = num_tokens
        self.out_features = linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 127  # (C_out,)
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("matrix", (weight / scale[:, None]).round().to(torch.int8))  # (C_out, C_in)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._pack()

    def _packed_matrix(self) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.matrix, [self.num_tokens, self.matrix.shape[1]])

    def _pack(self) -> None:
        self.packed = self._packed_matrix()
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)

    def forward(self, data: Tensor, zero: int, dtype: torch.dtype) -> Tensor:
        """Bytes (N, C_in), of which `zero` stands for 0, by the matrix: (N, C_out) in dtype, to be scaled by token."""
        packed = self._packed_matrix() if torch.compiler.is_compiling() else self.packed
        return torch.ops.onednn.qlinear_pointwise(
            data, 1.0, zero, packed, self.scale, self.zeros, None, 1.0, 0, dtype, "none", [], ""
        )


class Int8Conv(_Packed):
    """A convolution of numbers that are not negative, and the ReLU behind it, for CPUs, without gradients."""

    matrix: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, conv: FusedConv, side: int = 128):
        """
        Args:
            conv: the convolution that this one replaces.
            side: of a typical map; the layout that is best for it suits any.
        """
        super().__init__()
        self.side = side
        padding, stride, dilation, groups = conv.options
        self.options = stride, padding, dilation, groups
        weight = conv.weight.detach().float()
        scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-30) / 127  # (D,)
        bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().float()
        self.register_buffer("matrix", (weight / scale[:, None, None, None]).round().to(torch.int8))  # (D, C, h, w)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._pack()

    def _pack(self) -> None:
        shape = [1, self.matrix.shape[1], self.side, self.side]
        self.packed = torch.ops.onednn.qconv_prepack(self.matrix, self.scale, 1.0, 0, *self.options, shape)
        self.zeros = torch.zeros(len(self.matrix), dtype=torch.int64)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w). An image has a scale of its own, so that it does not depend on its batch."""
        images = [self._convolve(image[None]) for image in x]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _convolve(self, image: Tensor) -> Tensor:
        data, step = quantize_image(image)
        weights = self.packed, self.scale, self.zeros, self.bias
        output = 1.0, 0, image.dtype, "relu", [], ""
        result = torch.ops.onednn.qconv2d_pointwise(data, step, 0, *weights, *self.options, *output)
        return result if math.isfinite(step) else result.fill_(math.nan)  # of which its ReLU makes 0
