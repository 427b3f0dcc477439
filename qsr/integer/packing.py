"""From a trained network to one that runs on integers.

Training only pretends: it multiplies floats that happen to lie on a grid. `pack` makes it true. For
each quantised layer it computes the weight codes once, packs them into bit planes, and keeps what
is left of the steps:

    codes = clamp(round((x + tau) / step_a))          quantised and packed in one pass
    acc   = codes conv weight_codes                   integers, exact
    y     = acc * (step_a * step_w) + bias            float32, each operation rounded once

A packed network agrees with `qsr.reference` bit for bit (same integers, same three float
operations). With its float training graph it agrees up to float rounding: a value that lies on a
rounding threshold within the last bits may get the neighbouring code. The float convolutions of
head and tail sum in one fixed order, and LayerNorm, GELU and softmax are written out, so that a
picture in strips gives the same bits as a whole one.

Packed networks run forward only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from ..backbone import ChannelNorm, DepthPlan, QuantSR, check_pictures
from ..blocks import GELU, LayerNorm, WindowAttention
from ..config import NetworkConfig
from ..convert import copy_module, listed, not_packed, replace_layers
from ..layers import (
    Projection,
    QConv1d,
    QConv2d,
    QConvTranspose2d,
    QLinear,
    QMatmul,
    QMultiheadAttention,
    Quantized,
    become,
)
from ..system.once import SETTING_UP
from . import compiled, kernels, plan_table
from .packed_layers import (
    FixedBatchNorm,
    FloatConv2d,
    PackedConv1d,
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLayer,
    PackedLinear,
    PackedMatmul,
    PackedProjection,
    refuse_another_type,
)
from .packed_swin import FixedChannelNorm, FixedGELU, FixedLayerNorm, PackedAttention
from .program import Program


class PackedModel(nn.Module):
    """A packed QuantSR, all its depths together.

    packed(lr, blocks=None): lr float RGB [N, 3, H, W] in [0, 1] -> sr [N, 3, scale H, scale W], not
    clipped. blocks: how many blocks run (None: all); it was trained at `config.depths`.

    Where there are fused kernels for the network it runs as a planned program (`self.program`),
    else layer by layer (`self.network`): the same integers and the same features. The program is
    planned at the first call and again after load_state_dict. Inside torch.compile the model is one
    operator (`qsr.integer.compiled`); torch.export takes its layers, after that first call.

    Several threads may call one model at once: each gets the bytes that it would get alone. Loading
    values or moving the model to another device is for a moment when none does. A copy and a pickle
    take the values along and not the program, which belongs to a processor.
    """

    def __init__(self, network: QuantSR, kernel: str = "auto") -> None:
        super().__init__()
        self.network: QuantSR = network.eval().requires_grad_(False)
        self.kernel, self._number = kernel, compiled.number(self)
        self._forget()
        self.register_load_state_dict_post_hook(self._forget)
        network.register_load_state_dict_post_hook(self._forget)

    def _forget(self, *_: object) -> None:
        """Other values, or on another device: what was derived from them is to be made again."""
        self._program: Program | None = None
        self._order: tuple[int, ...] | None = None

    def _apply(self, fn, recurse: bool = True):
        refuse_another_type(fn)
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_number": compiled.number(self)})

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    @classmethod
    def empty(cls, config: NetworkConfig, kernel: str = "auto") -> PackedModel:
        """The packed network of a configuration, without values: load_state_dict gives them."""
        network = QuantSR(config)
        _replace_layers(network, kernel, fill=False)
        return cls(network, kernel)

    @property
    def program(self) -> Program | None:
        """The planned program, or None where the network runs layer by layer."""
        if self._program is None:
            with SETTING_UP:  # by one of the threads that come together
                if self._program is None:
                    self._program = self._planned()
        return self._program

    def _planned(self) -> Program | None:
        device = self.mean.device
        programs: tuple[type[Program], ...]
        if device.type == "cpu":
            from .residual import ResidualProgram  # which know the layers above
            from .swin import SwinProgram

            programs = ResidualProgram, SwinProgram
        else:
            from .program_cuda import CudaProgram

            programs = (CudaProgram,)
        for program in programs:
            names = program.available(self.config, device)
            if names and self.kernel in ("auto", *names):
                network = self.network
                if device.type != "cpu":  # it is planned here and runs there
                    network = cast(QuantSR, copy_module(network)).cpu()
                with torch.device("cpu"):  # another may be the user's default
                    return program(network, self.kernel, device)
        return None

    @property
    def plan(self) -> ModelPlan:
        """How the network runs: print it. plan(blocks) is the depth plan that keeps the `blocks`
        most valuable blocks (None: all).
        """
        return ModelPlan(self)

    @property
    def mean(self) -> Tensor:
        """What the network subtracts from pictures: float32 [1, 3, 1, 1], on its device."""
        return self.network.mean

    @property
    def pixel_bytes(self) -> int:
        """Working memory for each lr pixel at once, bytes: a program knows what it allocates."""
        return (self.program or self.network).pixel_bytes

    def pieces(
        self, lr: Tensor, plan: DepthPlan, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, sr rows from there on): what becomes of the rows [first, last) of lr."""
        program = self.program
        if program is None:
            yield from self.network.pieces(lr, plan, first, last)
        else:
            scale = self.config.scale
            yield first, program(lr, plan)[:, :, scale * first : scale * last]

    def release(self) -> None:
        """Free the working memory that is kept for the next call."""
        if self._program is not None:
            self._program.release()

    @torch.no_grad()  # not inference_mode, which torch.compile does not take here
    def forward(self, lr: Tensor, blocks: int | None = None) -> Tensor:
        check_pictures(lr)
        if lr.device != self.mean.device:
            raise ValueError(
                f"`lr` is on {lr.device} and the network on {self.mean.device}; move one of them."
            )
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return compiled.run(lr, self._number, blocks)
        plan, program = self.plan(blocks), self.program
        if program is None:
            return self.network(lr, plan)
        if torch.compiler.is_exporting():  # the same bits; tables are for sizes that are numbers
            features = self.network.features(lr.float(), plan).permute(0, 2, 3, 1)
            return program.enlarged(features, *lr.shape[2:])
        return program(lr, plan)


@dataclass(frozen=True)
class ModelPlan:
    """The plan of a packed QuantSR: of its steps, and called, of its blocks."""

    model: PackedModel

    def __call__(self, blocks: int | None = None) -> DepthPlan:
        model = self.model
        if model._order is None:  # remembered as numbers, not as a tensor: torch.export needs them
            model._order = model.network.order
        return DepthPlan.from_order(model._order, model.config.blocks if blocks is None else blocks)

    @property
    def coverage(self) -> float:
        """The share of the multiply-accumulates that the steps do on integers, 0 to 1."""
        program = self.model.program
        return 0.0 if program is None else plan_table.coverage_of_quantsr(program)

    def __str__(self) -> str:
        return str(self.model.program or "layer by layer: no program fits the network")


@overload
def pack(module: QuantSR, kernel: str = "auto") -> PackedModel: ...


@overload
def pack(module: nn.Module, kernel: str = "auto") -> nn.Module: ...


def pack(module: nn.Module, kernel: str = "auto") -> nn.Module:
    """A copy of `module` whose quantised layers run on packed integers, in eval mode, on the CPU.

    It computes in float32: a module of another type is converted first, as `module.float()` would.
    A QuantSR becomes a `PackedModel`; any other module stays what it is, with packed layers inside.
    kernel: "auto", "reference", or a name from qsr.kernels.available(), which then runs every
    quantised layer (a network of linear layers needs one that multiplies 1x1).
    Forward hooks of a quantised layer stay with the packed one. A BatchNorm2d becomes a factor and
    a number to add for each channel.
    Raises ValueError if there is nothing to pack, a layer that can be trained but not yet packed
    (`qsr.report` lists them), or one that the kernel can't run.
    """
    if kernel != "auto" and kernel not in kernels.available("conv2d"):
        raise ValueError(
            f"`kernel` is {kernel!r}; this machine has {', '.join(kernels.available('conv2d'))}."
        )
    if isinstance(module, PackedModel):
        raise ValueError("this network is packed already.")
    if not any(isinstance(m, (Quantized, QMatmul)) for m in module.modules()):
        raise ValueError(
            "nothing to pack: the network has no quantised layer. Build it with bits=4 or 2, "
            "or pass it through qsr.quantize first."
        )
    if waiting := not_packed(module):
        raise ValueError(
            f"layers can be trained, not yet packed: {listed(module, waiting)}. "
            "Keep them in full precision (skip them in qsr.quantize)."
        )
    with torch.device("cpu"):  # another may be the user's default
        packed = _replace_layers(copy_module(module).cpu().float(), kernel, fill=True).eval()
    if isinstance(packed, QuantSR):
        return PackedModel(packed, kernel)
    from .planned import planned  # which knows the layers above

    return planned(packed, kernel)


def pack_empty(module: nn.Module) -> nn.Module:
    """As `pack`, without values: load_state_dict gives them. module: quantised, calibrated or not,
    and no QuantSR (`PackedModel.empty`).
    """
    if not any(isinstance(m, (Quantized, QMatmul)) for m in module.modules()):
        raise ValueError("the network has no quantised layer; pass it through qsr.quantize.")
    from .planned import planned

    packed = _replace_layers(copy_module(module).cpu().float(), "auto", fill=False)
    return planned(packed.eval(), "auto")


def _replace_layers(module: nn.Module, kernel: str, fill: bool) -> nn.Module:
    """`module` with packed layers in place of quantised ones, in place."""
    exact_floats = isinstance(module, QuantSR)
    fixed: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.Conv2d: lambda conv: FloatConv2d(conv, kernel),
        LayerNorm: FixedLayerNorm,
        ChannelNorm: FixedChannelNorm,
        GELU: lambda gelu: FixedGELU(),
    }

    def packed_twin(layer: nn.Module) -> nn.Module | None:
        if exact_floats and type(layer) in fixed:
            return fixed[type(layer)](layer)
        if type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
            return with_hooks(FixedBatchNorm(layer), layer)
        if isinstance(layer, WindowAttention):
            for name in ("qkv", "proj", "scores", "mix"):
                setattr(layer, name, replace_layers(getattr(layer, name), packed_twin))
            return PackedAttention(layer, kernel)
        if isinstance(layer, QMultiheadAttention):
            return _pack_attention(layer, kernel, packed_twin, fill)
        packed: PackedLayer | PackedMatmul
        if isinstance(layer, QMatmul):
            packed = PackedMatmul(layer)
        elif isinstance(layer, QConv2d):
            packed = PackedConv2d(layer, kernel)
        elif isinstance(layer, QConv1d):
            packed = PackedConv1d(layer, kernel)
        elif isinstance(layer, QConvTranspose2d):
            packed = PackedConvTranspose2d(layer, kernel)
        elif isinstance(layer, QLinear):
            packed = PackedLinear(layer, kernel)
        else:
            return None
        return with_hooks(packed.fill(layer) if fill else packed, layer)  # type: ignore[arg-type]

    def with_hooks(packed: nn.Module, layer: nn.Module) -> nn.Module:
        for hooks in _FORWARD_HOOKS:
            getattr(packed, hooks).update(getattr(layer, hooks))
        return packed

    return replace_layers(module, packed_twin)


def _pack_attention(
    attention: QMultiheadAttention,
    kernel: str,
    packed_twin: Callable[[nn.Module], nn.Module | None],
    fill: bool,
) -> QMultiheadAttention:
    """`attention` with packed parts in place of quantised ones, and without their weights."""
    joined = attention.in_proj_bias
    biases = [None] * 3 if joined is None else joined.chunk(3)
    parts = zip(("query", "key", "value"), attention._in_projections(), biases, strict=True)
    for name, weight, bias in parts:
        projection = cast(Projection, getattr(attention, name))
        linear = become(nn.Linear(weight.shape[1], len(weight), bias is not None), QLinear)
        linear.weight.data = weight.detach()
        if bias is not None:
            linear.bias.data = bias.detach()
        linear.weight_quantizer = projection.weight_quantizer
        linear.input_quantizer = projection.input_quantizer
        packed = PackedProjection(linear, kernel)
        setattr(attention, name, packed.fill(linear) if fill else packed)
    for name in ("scores", "mix", "out_proj"):
        setattr(attention, name, replace_layers(getattr(attention, name), packed_twin))
    for name in ("in_proj_weight", "in_proj_bias", *(f"{x}_proj_weight" for x in "qkv")):
        attention.register_parameter(name, None)
    return attention


_FORWARD_HOOKS = (  # where nn.Module keeps them
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
