"""qsr: low-bit quantised image super-resolution (QuantSR, NeurIPS 2023)."""

from .backbone import QuantSR as QuantSR
from .backbone import quantsr_c as quantsr_c
from .backbone import quantsr_t as quantsr_t
from .backbone import rank_blocks as rank_blocks
from .backbone import slice_depth as slice_depth
from .backbone import srresnet as srresnet
from .backbone import swinir_s as swinir_s
from .depth import DepthPlan as DepthPlan
from .layers import QConv2d as QConv2d
from .layers import QLinear as QLinear
from .layers import QMatmul as QMatmul
from .layers import calibrate as calibrate
from .layers import quantize as quantize
from .quantizer import LSQ as LSQ
from .quantizer import RLQ as RLQ
from .quantizer import Quantizer as Quantizer
from .quantizer import QuantSpec as QuantSpec
