"""qsr: low-bit quantised image super-resolution (QuantSR, NeurIPS 2023).

Learn it, train it, run it on integers:

    net = qsr.QuantSR(qsr.quantsr_c(scale=4, bits=4))     a network and its depths
    qsr.calibrate(net, batch); qsr.fit(net, data, config)  training
    packed = qsr.pack(net); qsr.save("m.qsr", packed)      integers in bit planes
    image = qsr.upscale("photo.jpg", qsr.load("quantsr-c-x4-w4a4"))
"""

__version__ = "0.1.0"

from . import kernels as kernels
from .backbone import QuantSR as QuantSR
from .backbone import preset as preset
from .backbone import quantsr_c as quantsr_c
from .backbone import quantsr_t as quantsr_t
from .backbone import rank_blocks as rank_blocks
from .backbone import slice_depth as slice_depth
from .backbone import srresnet as srresnet
from .backbone import swinir_s as swinir_s
from .baselines import PAMS as PAMS
from .baselines import DoReFa as DoReFa
from .cadyq import CADyQ as CADyQ
from .checkpoint import save as save
from .complexity import complexity as complexity
from .course import check as check
from .data import Patches as Patches
from .depth import DepthPlan as DepthPlan
from .evaluate import Scores as Scores
from .evaluate import evaluate as evaluate
from .export import export_onnx as export_onnx
from .image import imresize as imresize
from .infer import upscale as upscale
from .layers import QConv2d as QConv2d
from .layers import QLinear as QLinear
from .layers import QMatmul as QMatmul
from .layers import calibrate as calibrate
from .layers import quantize as quantize
from .metrics import psnr_y as psnr_y
from .metrics import ssim_y as ssim_y
from .official import load_official as load_official
from .pack import PackedModel as PackedModel
from .pack import pack as pack
from .quantizer import LSQ as LSQ
from .quantizer import RLQ as RLQ
from .quantizer import Quantizer as Quantizer
from .quantizer import QuantSpec as QuantSpec
from .runs import fit as fit
from .train import TrainConfig as TrainConfig
from .train import train_step as train_step
from .zoo import load as load
