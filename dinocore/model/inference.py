"""Prepare a model for inference: fold batch norm into convolutions, convert weights to the hardware's layout."""

import copy
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .backbones.swin import Swin
from .deform_attn import MSDeformAttn
from .dino import DINO, DinoOutput
from .layers import FeedForward, FrozenBatchNorm
from .ops import sample_fused
from .proposals import StaticQueries

LOG = logging.getLogger("dinocore")


def for_inference(
    model: DINO, dtype: torch.dtype | None, device: torch.device, int8: bool = False, to_compile: bool = False
) -> DINO:
    """A copy for evaluation on a device, with the same results up to rounding; the model itself is unchanged.

    Args:
        dtype: of weights and activations, None for float32. Boxes stay in float32, as does, on a CPU, a backbone
            that would lose AP in bfloat16.
        int8: use int8 in encoder and decoder layers and in a ResNet's blocks, on a CPU that
            `device.check_int8` accepts.
        to_compile: skip what torch.compile does itself: weight layout and fusion.
    """
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(prepared.backbone)
    in_float32 = dtype is None or (device.type == "cpu" and getattr(prepared.backbone, "loses_in_bf16", False))
    for name, part in prepared.named_children():
        part.to(device=device, dtype=torch.float32 if name == "backbone" and in_float32 else dtype)
    if isinstance(prepared.proposer, StaticQueries):
        assert isinstance(model.proposer, StaticQueries)
        # bfloat16 would move them by pixels
        prepared.proposer.boxes.data = model.proposer.boxes.to(device, torch.float32)
    if int8:
        from .int8 import quantize_layers  # imports Numba, which takes a second

        quantize_layers(prepared.encoder.layers)
        quantize_layers(prepared.decoder.layers)
    if device.type == "cpu":
        _tune_for_cpu(prepared, to_compile)
        if int8:
            _quantize_resnet(prepared, to_compile)
    return prepared


def _tune_for_cpu(model: DINO, to_compile: bool) -> None:
    """Replace parts of a model by implementations that are faster on CPUs, in place."""
    for attention in (module for module in model.modules() if isinstance(module, MSDeformAttn)):
        attention.sample = sample_fused
    for name, attention in list(model.decoder.named_modules()):
        if type(attention) is nn.MultiheadAttention and attention.in_proj_weight.dtype is torch.bfloat16:
            model.decoder.set_submodule(name, QueryAttention(attention))
    if to_compile:
        return
    swins = [module for module in model.backbone.modules() if isinstance(module, Swin)]
    for part in (model.encoder, model.proposer, model.decoder, *swins):  # other modules may read their layers' weights
        _pack_layers(part)
    for part in (model.backbone, model.neck):
        _fuse_convolutions(part)


def _quantize_resnet(model: DINO, to_compile: bool) -> None:
    """Use int8 in the blocks of a ResNet backbone, in place."""
    from .int8 import quantize_blocks

    if any(isinstance(module, (BasicBlock, Bottleneck, FusedBlock)) for module in model.backbone.modules()):
        _fuse_convolutions(model.backbone)
        quantize_blocks(module for module in model.backbone.modules() if isinstance(module, FusedBlock))
        if to_compile:  # the compiler does not support these convolutions
            model.set_submodule("backbone", Uncompiled(model.backbone))


def _pack_layers(module: nn.Module) -> None:
    """Convert the weights of linear layers to the hardware's layout, and process few tokens at a time, in place."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:  # not subclasses, whose weights other code reads
            setattr(module, name, pack_linear(child))
        else:
            _pack_layers(child)
        if isinstance(child, FeedForward):
            setattr(module, name, ChunkedModule(child, 1024))
    if isinstance(module, nn.Sequential):
        _fuse_relus(module)


def _fuse_relus(layers: nn.Sequential) -> None:
    """Fuse the ReLU that follows packed layers into them."""
    for (_, layer), (name, following) in pairwise(list(layers.named_children())):
        if isinstance(layer, PackedLinear) and isinstance(following, nn.ReLU):
            layer.act = "relu"
            layers.set_submodule(name, nn.Identity())


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> None:
    """Fold every frozen batch norm that directly follows a convolution into its weights, in place."""
    for (_, conv), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C,)
            bias = norm.bias - norm.running_mean * scale
            if conv.bias is not None:
                bias = bias + conv.bias * scale
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(bias, requires_grad=False)
            norm.act.was_in_norm = True  # pyright: ignore[reportArgumentType]  modules take attributes of any type
            setattr(module, name, norm.act)
    for child in module.children():
        fold_batch_norm(child)


def _fuse_convolutions(module: nn.Module) -> None:
    """Fuse activations into the convolutions before them, and in a ResNet's blocks also the sum, in place.

    In a `Sequential`, or if it was part of the batch norm, an activation is known to follow directly; elsewhere, it may
    come after a sum.
    """
    children = list(module.named_children())
    for name, child in children:
        if isinstance(child, (BasicBlock, Bottleneck)) and _fusible(child.conv1):
            setattr(module, name, FusedBlock(child))
        elif isinstance(child, nn.Conv2d) and _fusible(child):
            setattr(module, name, FusedConv(child))
        else:
            _fuse_convolutions(child)
    for (name, _), (following, act) in pairwise(children):
        conv = getattr(module, name)
        follows = isinstance(module, nn.Sequential) or getattr(act, "was_in_norm", False)
        if isinstance(conv, FusedConv) and type(act) in FUSED_ACTS and follows and not act._forward_hooks:
            conv.act = FUSED_ACTS[type(act)]
            setattr(module, following, nn.Identity())


def _fusible(module: nn.Module) -> bool:
    """Whether a module is a plain convolution without hooks, in a dtype that oneDNN supports."""
    plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    supported = plain and module.weight.dtype in (torch.float32, torch.bfloat16)
    hooked = module._forward_pre_hooks or module._forward_hooks
    return supported and not hooked and torch.backends.mkldnn.is_available()


class FusedConv(nn.Module):
    """A convolution for CPUs, without gradients, with a fused residual and activation.

    It always uses oneDNN. PyTorch would choose another implementation, half as fast, for a float32 image on one thread.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.kernel_size = conv.weight, conv.bias, conv.kernel_size
        self.options = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.act = ("none", [])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, D, h, w) -> (B, D, h, w)."""
        name, limits = self.act
        conv = torch.ops.mkldnn._convolution_pointwise
        if residual is None:
            return conv(x, self.weight, self.bias, *self.options, name, limits, "")
        return conv.binary(x, residual, self.weight, self.bias, *self.options, "add", 1.0, name, limits, "")


FUSED_ACTS = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])}


class FusedBlock(nn.Module):
    """A residual block of torchvision's ResNets whose batch norms are folded."""

    def __init__(self, block: BasicBlock | Bottleneck):
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.convs = nn.ModuleList(map(FusedConv, convs))
        for conv in self.convs:
            conv.act = FUSED_ACTS[nn.ReLU]
        self.downsample = block.downsample
        if self.downsample is not None:
            _fuse_convolutions(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        residual = x if self.downsample is None else self.downsample(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        return self.convs[-1](x, residual)


class Uncompiled(nn.Module):
    """A module that torch.compile does not compile."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    @torch.compiler.disable
    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Hide torch.compile's developer messages."""
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class CompiledModel:
    """A model prepared for inference that uses torch.compile for frequent batch shapes.

    Compiling takes about half a minute per shape, and saves a few percent of a large model's time and a fifth of a
    small one's. So a shape runs uncompiled until it has taken that long. Results are the same up to rounding.
    """

    def __init__(self, plain: DINO, to_compile: DINO, after: float = 30, limit: int = 8):
        """
        Args:
            plain, to_compile: the model, prepared both ways by `for_inference`.
            after: seconds that a shape must have taken before it is compiled.
            limit: the largest number of compiled shapes; each keeps its own weights.
        """
        self.plain, self.to_compile = plain, to_compile
        self.after, self.limit = after, limit
        self._start()

    def _start(self) -> None:
        self.seconds: dict[torch.Size, float] = defaultdict(float)  # time spent so far on uncompiled shapes
        self.compiled: set[torch.Size] = set()
        self.call = torch.compile(self.to_compile, dynamic=False)

    def __getstate__(self) -> tuple:
        return self.plain, self.to_compile, self.after, self.limit

    def __setstate__(self, state: tuple) -> None:
        self.plain, self.to_compile, self.after, self.limit = state
        self._start()

    def __call__(self, images: Tensor, padding: Tensor) -> DinoOutput:
        """As `DINO.forward`, without targets."""
        shape = images.shape
        if shape not in self.compiled:
            if self.seconds[shape] < self.after or len(self.compiled) == self.limit:
                begin = time.perf_counter()
                output = self.plain(images, padding)
                self.seconds[shape] += time.perf_counter() - begin
                return output
            count, _, height, width = shape
            LOG.info("compiling for %d x %d pixels, batch size %d; this takes a while", height, width, count)
            self.compiled.add(shape)
        from torch._dynamo import config as dynamo  # importing these takes a second
        from torch._inductor import config as inductor

        # freezing converts weights once; a function may be recompiled several times per shape
        freezing = inductor.patch(freezing=images.device.type == "cpu")
        try:
            with freezing, dynamo.patch(recompile_limit=8 * self.limit), _quiet_compiler():
                return self.call(images, padding)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an error of the compiler: the uncompiled model has worked for this shape
            self.compiled.discard(shape)
            self.limit = len(self.compiled)
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            warnings.warn(f"torch.compile failed, continuing without it: {message}", stacklevel=2)
            return self.plain(images, padding)


def pack_linear(linear: nn.Linear) -> nn.Module:
    """The same layer with its weight converted to oneDNN's layout once instead of in every call."""
    if not torch.backends.mkldnn.is_available() or linear.weight.dtype == torch.float16:
        return linear
    return PackedLinear(linear)


class PackedLinear(nn.Module):
    """A linear layer for CPUs, without gradients; `act = "relu"` applies a ReLU while the result is in the cache."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, num_tokens: int = 1024):
        """
        Args:
            num_tokens: the typical number of tokens, for which the layout is optimized; any number works.
        """
        super().__init__()
        self.num_tokens = num_tokens
        # an opaque tensor, which cannot be copied or pickled
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), num_tokens)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.act = "none"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"weight": self.weight.to_dense()}  # for copies and pickles

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.act, [], "")


class QueryAttention(nn.Module):
    """nn.MultiheadAttention for inference in bfloat16 on CPUs, with all scores in bfloat16.

    PyTorch's implementation computes them in float32, block by block, and takes twice as long on a CPU without AMX.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        dim, self.num_heads = attention.embed_dim, attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.project_q, self.project_k, self.project_v = map(_linear, weights, biases)
        for parameter in self.project_q.parameters():
            parameter.mul_((dim // self.num_heads) ** -0.5)
        self.project_out = attention.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: None, need_weights: bool) -> tuple[Tensor, None]:
        """(N, B, C) each -> (N, B, C), without a mask and without weights."""
        num_queries, batch, dim = q.shape
        q, k, v = (
            x.view(num_queries, batch * self.num_heads, -1).transpose(0, 1)  # (B * M, N, D)
            for x in (self.project_q(q), self.project_k(k), self.project_v(v))
        )
        scores = torch.bmm(q, k.transpose(1, 2))  # (B * M, N, N)
        if torch.compiler.is_compiling():  # the compiler would replace a softmax here by PyTorch's attention
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            attended = torch.bmm(weights, v) / weights.sum(-1, keepdim=True)  # (B * M, N, D)
        else:
            attended = torch.bmm(scores.softmax(-1), v)
        return self.project_out(attended.transpose(0, 1).reshape(num_queries, batch, dim)), None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(x.clone(), requires_grad=False) for x in (weight, bias))
    return linear


class ChunkedModule(nn.Module):
    """Applies a module that processes tokens independently to a few at a time: activations stay in the cache."""

    def __init__(self, module: nn.Module, num_tokens: int):
        super().__init__()
        self.module = module
        self.num_tokens = num_tokens

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        tokens = x.flatten(0, 1)  # (B * N, C)
        result = torch.empty_like(tokens)
        for begin in range(0, len(tokens), self.num_tokens):
            part = slice(begin, begin + self.num_tokens)
            result[part] = self.module(tokens[part])
        return result.view_as(x)
