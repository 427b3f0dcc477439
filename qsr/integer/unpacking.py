"""From a network on integers back to one that learns.

Packing forgets where between two points of its grid a weight lay. What the network computes never
depended on that, so `unpack` puts each weight on its point,

    weight = codes * step_w          step_w = scale / step_a

and training can go on from what it finds: other pictures, another scale, fewer bits.

A packed layer keeps the product `scale` of its two steps, rounded to float32, and a quotient of
rounded numbers may miss step_w by a last bit. Of the floats around it, one whose product with
step_a is `scale` is taken; there is one, as step_w was. So packing again gives every bit back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone import QuantSR
from ..quantizer import QUANTIZERS, Quantizer
from .bitplanes import unpack_codes
from .packed_layers import PackedLayer, PackedMatmul
from .packing import PackedModel

NEAR = 2  # floats on each side: product and quotient are off by half of one each, or all of one


@torch.no_grad()
def unpack(model: PackedModel) -> QuantSR:
    """The training graph of a packed QuantSR: float32, on the CPU, in eval mode.

    `pack` of it has the state of `model`, bit for bit. Weights lie on the points of their grids; a
    file that training left (`save` of a network that is not packed) has those between them as well,
    and is the better start where there is one. Raises ValueError for a network whose steps follow
    from other parameters (PAMS, DoReFa), which a packed one does not hold.

    >>> import qsr
    >>> packed = qsr.load("quantsr-c-x2-w2a2")
    >>> again = qsr.pack(qsr.unpack(packed)).state_dict()
    >>> all(torch.equal(again[name], value) for name, value in packed.state_dict().items())
    True
    """
    if not isinstance(model, PackedModel):
        raise TypeError(f"`model` is a {type(model).__name__}; qsr.unpack takes a packed QuantSR.")
    quantizer = model.config.quantizer
    if QUANTIZERS[quantizer].step is not Quantizer.step:
        raise ValueError(
            f"this network was trained with {quantizer!r}, whose steps follow from parameters that "
            "a packed one does not hold; take the file that training left."
        )
    with torch.device("cpu"):  # another may be the user's default
        net = QuantSR(model.config)
    own, there = net.state_dict(), model.network.state_dict()
    state = {name: value for name, value in there.items() if name in own}
    for name, layer in model.network.named_modules():
        if isinstance(layer, PackedLayer):
            state |= _unpacked(layer, name, own[f"{name}.weight"].shape)
        elif isinstance(layer, PackedMatmul):
            for side, step in (("left", layer.left_step), ("right", layer.right_step)):
                spec = layer.specs[side]
                at = f"{name}.{side}_quantizer"
                state |= {f"{at}.step_size": step, **_extra(at, spec.bits, spec.signed)}
    net.load_state_dict(state)
    return net.eval()


def _unpacked(layer: PackedLayer, name: str, shape: torch.Size) -> dict[str, Tensor]:
    """What the quantised layer `name` has in a state: weight [shape] and quantizers."""
    step_w = _factor(layer.scale, layer.step_size)
    codes = unpack_codes(layer.planes).movedim(-1, 1).float()  # channels last before
    each = step_w if step_w.ndim == 0 else step_w.view(-1, *[1] * (codes.ndim - 1))
    inputs, weights = f"{name}.input_quantizer", f"{name}.weight_quantizer"
    return {
        f"{name}.weight": (codes * each).reshape(shape),
        f"{weights}.step_size": step_w,
        **_extra(weights, layer.planes.bits, True),
        f"{inputs}.step_size": layer.step_size,
        **({} if layer.tau is None else {f"{inputs}.tau": layer.tau}),
        **_extra(inputs, layer.bits, layer.signed),
    }


def _extra(name: str, bits: int, signed: bool) -> dict[str, Tensor]:
    """What a calibrated quantizer keeps beside its parameters."""
    return {f"{name}._extra_state": torch.tensor([bits, signed], dtype=torch.uint8)}


def _factor(product: Tensor, one: Tensor) -> Tensor:
    """The other factor of a product that was rounded to float32: near product / one."""
    found = quotient = product / one
    for direction in (torch.inf, 0.0):
        beside = quotient
        for _ in range(NEAR):
            beside = torch.nextafter(beside, torch.tensor(direction))
            found = torch.where(found * one == product, found, beside)
    return found
