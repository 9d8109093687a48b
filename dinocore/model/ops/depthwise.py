"""Training depthwise convolutions on CPUs, where oneDNN is fast forward but slow backward.

The gradient of the input is another convolution. The gradient of the weights is computed by our own Numba kernel, which
is called through a `torch.library` operator. Source: ours.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from dinocore.model.ops.dispatch import is_reference

LANES = 16  # channels that the kernel processes at a time
_kernel_works = True  # False once it has failed; the user is warned when that happens


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution with the same results and parameter names as `nn.Conv2d`, and a faster backward pass."""

    def __init__(self, conv: nn.Conv2d):
        """
        Args:
            conv: the layer to replace; its parameters are shared, not copied.
        """
        channels, side, stride = conv.in_channels, conv.kernel_size[0], conv.stride[0]
        # device="meta": no initialization
        super().__init__(channels, channels, side, stride, groups=channels, bias=False, device="meta")
        self.padding = conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        # TensorFlow's SAME padding (timm's `Conv2dSame`) depends on the size of the input
        self.same_padding = type(conv).__name__.endswith("Same")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        if self.same_padding:
            side, stride = self.kernel_size[0], self.stride[0]
            # symbolic sizes in an exported graph are multiples of every stride
            remainders = (0 if isinstance(length, torch.SymInt) else length % stride for length in input.shape[-2:])
            below, right = (max(0, side - (remainder or stride)) for remainder in remainders)
            input = F.pad(input, (right // 2, right - right // 2, below // 2, below - below // 2))
        if not torch.is_grad_enabled() or input.device.type != "cpu" or is_reference():
            return super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        return _Depthwise.apply(input, self.weight, self.bias, self.stride[0], self.padding)  # pyright: ignore


def replace_depthwise_convs(body: nn.Module) -> None:
    """Replace a module's depthwise convolutions by `DepthwiseConv` where the kernel supports them, in place."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and not isinstance(child, DepthwiseConv) and _is_supported(child):
                setattr(module, name, DepthwiseConv(child))


def _is_supported(conv: nn.Conv2d) -> bool:
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
        grad_images = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_images = _input_gradient(grad, images, weight.to(grad.dtype), ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            below, right = ctx.padding
            padded = F.pad(images, (right, right, below, below)) if below or right else images
            grad_weight = torch.ops.dino.depthwise_weight_grad(padded, grad, weight.shape[-1], ctx.stride)
            grad_weight = torch.empty_like(weight).copy_(grad_weight)  # with its strides, or DDP warns
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype)
        return grad_images, grad_weight, grad_bias, None, None


def _input_gradient(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): the dilated output gradient, convolved with the flipped kernel."""
    side = weight.shape[-1]
    if stride > 1:
        height, width = (length + 2 * p - side + 1 for length, p in zip(images.shape[-2:], padding, strict=True))
        dilated = torch.zeros_like(images[..., :1, :1]).repeat(1, 1, height, width)
        dilated = dilated.contiguous(memory_format=torch.channels_last)
        dilated[..., ::stride, ::stride] = grad
        grad = dilated
    flipped_padding = [side - 1 - p for p in padding]
    return F.conv2d(grad, weight.flip(2, 3), None, 1, flipped_padding, groups=len(weight))


torch.library.define("dino::depthwise_weight_grad", "(Tensor padded, Tensor grad, int side, int stride) -> Tensor")


@torch.library.impl("dino::depthwise_weight_grad", "cpu")
def _weight_gradient(padded: Tensor, grad: Tensor, side: int, stride: int) -> Tensor:
    """Padded input (B, C, H, W), output gradient (B, C, h, w) -> (C, 1, side, side), in float32 or float64."""
    global _kernel_works
    if _kernel_works:
        try:
            from dinocore.model.ops.numba.cpu import depthwise_weight_gradient

            return depthwise_weight_gradient(padded, grad, side, stride)
        except MemoryError:
            raise
        except Exception as error:
            _kernel_works = False
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"slow training of depthwise convolutions: {type(error).__name__}: {reason}", stacklevel=2)
    dtype = torch.promote_types(padded.dtype, torch.float32)
    shape = (padded.shape[1], 1, side, side)
    height, width = ((length - 1) * stride + side for length in grad.shape[-2:])  # what the kernel covered
    covered = padded[..., :height, :width].to(dtype)
    return conv2d_weight(covered, shape, grad.to(dtype), stride, groups=shape[0])


@torch.library.register_fake("dino::depthwise_weight_grad")
def _(padded: Tensor, grad: Tensor, side: int, stride: int) -> Tensor:
    dtype = torch.float64 if padded.dtype == torch.float64 else torch.float32
    return padded.new_empty(padded.shape[1], 1, side, side, dtype=dtype)
