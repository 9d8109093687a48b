"""Training depthwise convolutions on CPUs, where oneDNN is fast forward but slow backward.

The gradient of the input is a convolution again; that of the weights is a kernel of ours, behind an operator of
`torch.library` as the sampling is. Source: ours.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from dinocore.model.ops.dispatch import is_reference

LANES = 16  # channels that the kernel takes at a time
_kernel_runs = True  # until it fails, of which a warning tells once


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel by itself; the numbers and the names of the weights are those of `nn.Conv2d`."""

    def __init__(self, conv: nn.Conv2d):
        """
        Args:
            conv: the layer that this one replaces, whose weights it takes.
        """
        channels, side, stride = conv.in_channels, conv.kernel_size[0], conv.stride[0]
        super().__init__(channels, channels, side, stride, groups=channels, bias=False, device="meta")  # draws nothing
        self.padding = conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        # TensorFlow's SAME padding (timm's `Conv2dSame`) depends on the size of the input
        self.pads_by_size = type(conv).__name__.endswith("Same")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        if self.pads_by_size:
            side, stride = self.kernel_size[0], self.stride[0]
            # a side that is a symbol in an exported graph is a multiple of every stride
            rests = (0 if isinstance(length, torch.SymInt) else length % stride for length in input.shape[-2:])
            below, right = (max(0, side - (rest or stride)) for rest in rests)
            input = F.pad(input, (right // 2, right - right // 2, below // 2, below - below // 2))
        if not torch.is_grad_enabled() or input.device.type != "cpu" or is_reference():
            return super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        return _Depthwise.apply(input, self.weight, self.bias, self.stride[0], self.padding)  # pyright: ignore


def quick_depthwise(body: nn.Module) -> None:
    """Replace the depthwise convolutions below a module that the kernel can do, in place."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and not isinstance(child, DepthwiseConv) and _fits(child):
                setattr(module, name, DepthwiseConv(child))


def _fits(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.in_channels % LANES == 0
    square = conv.kernel_size[0] == conv.kernel_size[1] > 1 and conv.stride[0] == conv.stride[1]
    plain = conv.padding_mode == "zeros" and conv.dilation == (1, 1) and isinstance(conv.padding, tuple)
    return depthwise and square and plain


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.bias_dtype = stride, padding, None if bias is None else bias.dtype
        bias = None if bias is None else bias.to(images.dtype)
        return F.conv2d(images, weight.to(images.dtype), bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = ctx.saved_tensors
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_images = _input_gradient(grad, images, weight.to(grad.dtype), ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            below, right = ctx.padding
            padded = F.pad(images, (right, right, below, below)) if below or right else images
            found = torch.ops.dino.depthwise_weight_grad(padded, grad, weight.shape[-1], ctx.stride)
            of_weight = torch.empty_like(weight).copy_(found)  # with its strides, or DDP warns
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype)
        return of_images, of_weight, of_bias, None, None


def _input_gradient(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """The gradient (B, C, h, w) with zeros between its numbers, by the turned kernel: (B, C, H, W)."""
    side = weight.shape[-1]
    if stride > 1:
        height, width = (length + 2 * p - side + 1 for length, p in zip(images.shape[-2:], padding, strict=True))
        spread = torch.zeros_like(images[..., :1, :1]).repeat(1, 1, height, width)
        spread = spread.contiguous(memory_format=torch.channels_last)
        spread[..., ::stride, ::stride] = grad
        grad = spread
    turned_padding = [side - 1 - p for p in padding]
    return F.conv2d(grad, weight.flip(2, 3), None, 1, turned_padding, groups=len(weight))


torch.library.define("dino::depthwise_weight_grad", "(Tensor padded, Tensor grad, int side, int stride) -> Tensor")


@torch.library.impl("dino::depthwise_weight_grad", "cpu")
def _weight_gradient(padded: Tensor, grad: Tensor, side: int, stride: int) -> Tensor:
    """(B, C, H, W) with its padding, (B, C, h, w) -> (C, 1, side, side), in float32 or float64."""
    global _kernel_runs
    if _kernel_runs:
        try:
            from dinocore.model.ops.numba.cpu import depthwise_weight_gradient

            return depthwise_weight_gradient(padded, grad, side, stride)
        except MemoryError:
            raise
        except Exception as error:
            _kernel_runs = False
            text = " ".join(str(error).split())[:200]
            warnings.warn(f"slow training of depthwise convolutions: {type(error).__name__}: {text}", stacklevel=2)
    dtype = torch.promote_types(padded.dtype, torch.float32)
    shape = (padded.shape[1], 1, side, side)
    height, width = ((length - 1) * stride + side for length in grad.shape[-2:])  # what the kernel has seen
    seen = padded[..., :height, :width].to(dtype)
    return conv2d_weight(seen, shape, grad.to(dtype), stride, groups=shape[0])


@torch.library.register_fake("dino::depthwise_weight_grad")
def _(padded: Tensor, grad: Tensor, side: int, stride: int) -> Tensor:
    dtype = torch.float64 if padded.dtype == torch.float64 else torch.float32
    return padded.new_empty(padded.shape[1], 1, side, side, dtype=dtype)
