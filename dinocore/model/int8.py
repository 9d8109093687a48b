"""Linear layers of encoder and decoder, and a ResNet's convolutions, in int8 on CPUs.

Weights have a scale per output channel. Activations have a scale per token or, before a kernel of several pixels, per
image; it is computed from the data, so no calibration is needed. `export.quantize` does the same for the linear layers
of an ONNX graph.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .deform_attn import MSDeformAttn
from .inference import FusedBlock, FusedConv
from .layers import FeedForward
from .ops.numba.int8 import LANES, ZERO_POINT, Weights, pack


def quantize_layers(layers: nn.ModuleList) -> None:
    """Replace the linear layers in encoder or decoder layers by int8 layers, in place.

    Not replaced are sampling offsets and attention weights, because this would reduce AP, attention between queries,
    and layers with fewer than LANES channels.
    """
    for name, module in list(layers.named_modules()):
        if isinstance(module, MSDeformAttn):
            for part in ("value", "output"):
                layer = getattr(module, part)
                if type(layer) is nn.Linear and _is_wide(layer.weight):
                    setattr(module, part, Int8Linear(layer))
        elif isinstance(module, FeedForward) and _can_be_int8(module):
            layers.set_submodule(name, Int8FeedForward(module))


def quantize_blocks(blocks: Iterable[FusedBlock]) -> None:
    """Replace convolutions in a ResNet's blocks, whose inputs come from a ReLU, by int8 convolutions, in place.

    Not replaced are grouped and dilated convolutions, and those with fewer than LANES channels.
    """
    for block in blocks:
        last = f"convs.{len(block.convs) - 1}"
        for name in ("downsample.0", "convs.0", "convs.1", "convs.2"):
            conv = dict(block.named_modules()).get(name)
            if not isinstance(conv, FusedConv) or not _is_wide(conv.weight) or conv.options[-1] != 1:
                continue
            if conv.kernel_size == (1, 1):
                block.set_submodule(name, Int8PointwiseConv(conv))
            elif conv.act[0] == "relu" and name != last and conv.options[2] == [1, 1]:
                block.set_submodule(name, Int8Conv(conv))


def _can_be_int8(block: FeedForward) -> bool:
    return isinstance(block.net, nn.Sequential) and all(_is_wide(layer.weight) for layer in _linear_layers(block))


def _is_wide(weight: Tensor) -> bool:
    return min(weight.shape[:2]) >= LANES


class Int8Weights(nn.Module):
    """The weight matrix of a layer in the layout for int8 products, with its scales and bias."""

    matrix: Tensor
    starts: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, zero: int, slabs: int | None = None):
        """
        Args:
            weight: (D, C).
            bias: (D,).
            zero, slabs: see `pack`.
        """
        super().__init__()
        weight = weight.detach().float()
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        for name, value in Weights(*pack(weight, zero, slabs), bias)._asdict().items():
            self.register_buffer(name, value)

    def __call__(self) -> Weights:
        """The weights in the form that the kernels expect."""
        return Weights(self.matrix, self.starts, self.scale, self.bias)


class Int8Linear(nn.Module):
    """A linear layer in int8 for CPUs, without gradients."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.layer = Int8Weights(linear.weight, linear.bias, ZERO_POINT)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return torch.ops.dino.int8_linear(x, self.layer(), ZERO_POINT, None, False)


class Int8FeedForward(nn.Module):
    """A feed-forward block with residual connection and norm, in int8 for CPUs, without gradients."""

    def __init__(self, block: FeedForward):
        super().__init__()
        first, second = _linear_layers(block)
        self.first = Int8Weights(first.weight, first.bias, ZERO_POINT)
        self.second = Int8Weights(second.weight, second.bias, 0)
        self.norm = [value.detach().float() for value in (block.norm.weight, block.norm.bias)]
        self.eps = block.norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return torch.ops.dino.int8_feed_forward(x, self.first(), self.second(), self.norm, self.eps)


def _linear_layers(block: FeedForward) -> list[nn.Linear]:
    return [layer for layer in block.net.children() if isinstance(layer, nn.Linear)]


class Int8PointwiseConv(nn.Module):
    """A 1 x 1 convolution of non-negative inputs, with fused residual and ReLU, in int8 for CPUs, without gradients."""

    def __init__(self, conv: FusedConv):
        super().__init__()
        self.stride, self.relu = conv.options[1], conv.act[0] == "relu"
        self.layer = Int8Weights(conv.weight.flatten(1), conv.bias, zero=0)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, D, h, w) -> (B, D, h, w)."""
        pixels = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]  # (B, h, w, C)
        residual = None if residual is None else residual.permute(0, 2, 3, 1)
        return torch.ops.dino.int8_linear(pixels, self.layer(), 0, residual, self.relu).permute(0, 3, 1, 2)


class Int8Conv(nn.Module):
    """A convolution of non-negative inputs with a fused ReLU, in int8 for CPUs, without gradients."""

    def __init__(self, conv: FusedConv):
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.options[1]
        self.padding = [int(pixels) for pixels in conv.options[0]]
        matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (D, h * w * C)
        self.layer = Int8Weights(matrix, conv.bias, zero=0, slabs=conv.kernel_size[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w). Each image has its own scale, so results do not depend on the batch."""
        return torch.ops.dino.int8_convolution(x, self.layer(), self.kernel_size, self.padding, self.stride)
