"""qsr: low-bit quantised image super-resolution (QuantSR, NeurIPS 2023)."""
