"""The version of qsr, told once."""

__version__ = "0.1.0"
