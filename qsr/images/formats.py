"""Which picture files there are, and what they take. Without torch, since help says so too."""

FORMATS = {  # that are read and written
    ".png": "PNG",
    ".webp": "WEBP",
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
}
READ_ONLY = (".tif", ".tiff", ".bmp", ".gif", ".avif")
# Bytes for each pixel, beside a `Picture`, at the peak of decoding it and of encoding it whole, as
# measured on noise of 9 megapixels (docs/log.md, 2026-11-28).
DECODER_BYTES = {"PNG": 4, "JPEG": 9, "WEBP": 14, "TIFF": 8, "BMP": 5, "GIF": 4, "AVIF": 10}
ENCODER_BYTES = {"PNG": 0, "JPEG": 8, "WEBP": 44}
DEFAULT_MEMORY = 2.0  # GB of planned working memory
SPLITS = ("train", "validation", "all")  # of a set: what is trained on, what is held out
