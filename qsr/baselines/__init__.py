"""What QuantSR is compared with: PAMS, DoReFa and CADyQ, as quantizers in the same layers.

They are known by name to configurations once this room is imported, which `qsr` does.
"""

from ..quantizer import QUANTIZERS
from .cadyq import CADyQ as CADyQ
from .largest import PAMS as PAMS
from .largest import DoReFa as DoReFa

QUANTIZERS.update(dorefa=DoReFa, pams=PAMS, cadyq=CADyQ)
