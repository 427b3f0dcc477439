"""Networks for other engines."""

FORMS = ("plain", "qdq")  # of quantised layers
