"""qsr: low-bit quantised image super-resolution (QuantSR, NeurIPS 2023).

Learn it, train it, run it on integers:

    net = qsr.QuantSR(qsr.quantsr_c(scale=4, bits=4))     a network and its depths
    qsr.calibrate(net, batch); qsr.fit(net, data, config)  training
    packed = qsr.pack(net); qsr.save("m.qsr", packed)      integers in bit planes
    image = qsr.upscale("photo.jpg", qsr.load("quantsr-c-x4-w4a4"))

A name is imported when it is first used, so `import qsr` alone does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING

from .system.renamed import follow
from .system.version import __version__ as __version__

# The public names, by the room that has them.
NAMES = {
    "quantizer": "Quantizer QuantSpec LSQ RLQ",
    "layers": "QConv2d QLinear QMatmul",
    "convert": "quantize",
    "equalization": "equalize",
    "calibration": "calibrate",
    "schedule": "TrainConfig",
    "config": "preset srresnet quantsr_c swinir_s quantsr_t",
    "backbone": "QuantSR DepthPlan rank_blocks slice_depth",
    "train": "train_step",
    "infer": "upscale",
    "scores": "Scores evaluate",
    "images.resize": "imresize",
    "images.metrics": "psnr_y ssim_y",
    "images.data": "Patches",
    "integer.packing": "PackedModel pack",
    "integer.report": "report",
    "integer.unpacking": "unpack",
    "runs.fit": "fit",
    "runs.sensitivity": "sensitivity",
    "runs.tune": "tune",
    "runs.linear_tail": "fit_tail",
    "models.file": "save",
    "models.zoo": "load",
    "models.official": "load_official",
    "models.edsr": "load_edsr",
    "baselines": "PAMS DoReFa CADyQ",
    "export.onnx": "export_onnx",
    "paper.costs": "complexity",
    "course.check": "check",
}
MODULES = {  # modules that are public by another name than their place
    "data": "images.data",
    "kernels": "integer.kernels",
    "reference": "integer.reference",
}
_PLACES = {name: room for room, names in NAMES.items() for name in names.split()}

follow(__name__, MODULES)

if TYPE_CHECKING:  # the same names, for editors and type checkers; a test compares both
    from .backbone import DepthPlan as DepthPlan
    from .backbone import QuantSR as QuantSR
    from .backbone import rank_blocks as rank_blocks
    from .backbone import slice_depth as slice_depth
    from .baselines import PAMS as PAMS
    from .baselines import CADyQ as CADyQ
    from .baselines import DoReFa as DoReFa
    from .calibration import calibrate as calibrate
    from .config import preset as preset
    from .config import quantsr_c as quantsr_c
    from .config import quantsr_t as quantsr_t
    from .config import srresnet as srresnet
    from .config import swinir_s as swinir_s
    from .convert import quantize as quantize
    from .course.check import check as check
    from .equalization import equalize as equalize
    from .export.onnx import export_onnx as export_onnx
    from .images import data as data
    from .images.data import Patches as Patches
    from .images.metrics import psnr_y as psnr_y
    from .images.metrics import ssim_y as ssim_y
    from .images.resize import imresize as imresize
    from .infer import upscale as upscale
    from .integer import kernels as kernels
    from .integer import reference as reference
    from .integer.packing import PackedModel as PackedModel
    from .integer.packing import pack as pack
    from .integer.report import report as report
    from .integer.unpacking import unpack as unpack
    from .layers import QConv2d as QConv2d
    from .layers import QLinear as QLinear
    from .layers import QMatmul as QMatmul
    from .models.edsr import load_edsr as load_edsr
    from .models.file import save as save
    from .models.official import load_official as load_official
    from .models.zoo import load as load
    from .paper.costs import complexity as complexity
    from .quantizer import LSQ as LSQ
    from .quantizer import RLQ as RLQ
    from .quantizer import Quantizer as Quantizer
    from .quantizer import QuantSpec as QuantSpec
    from .runs.fit import fit as fit
    from .runs.linear_tail import fit_tail as fit_tail
    from .runs.sensitivity import sensitivity as sensitivity
    from .runs.tune import tune as tune
    from .schedule import TrainConfig as TrainConfig
    from .scores import Scores as Scores
    from .scores import evaluate as evaluate
    from .train import train_step as train_step


def __getattr__(name: str):
    """A public name, or a room."""
    if name in _PLACES:
        importlib.import_module(".baselines", __name__)  # quantizers that configurations name
        value = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *MODULES})
