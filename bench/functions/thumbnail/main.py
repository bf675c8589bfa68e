"""Makes a thumbnail: {"image": base64, "width": 160} -> {"image": base64 of a JPEG, "width", "height", "bytes"}."""

import base64
import io

from PIL import Image, ImageOps

WIDTH_MAX = 1024
Image.MAX_IMAGE_PIXELS = 40_000_000  # a small file may unpack to a huge picture


def handler(event, context):
    width = int(event.get("width", 160))
    if not 1 <= width <= WIDTH_MAX:
        raise ValueError(f"width {width}: use 1-{WIDTH_MAX}")
    raw = base64.b64decode(event["image"], validate=True)
    with Image.open(io.BytesIO(raw)) as photo:
        source = f"{photo.format} {photo.width}x{photo.height}"
        photo.draft("RGB", (width, width))  # decode a JPEG at a fraction of its size
        small = ImageOps.exif_transpose(photo).convert("RGB")
    small.thumbnail((width, width * 4))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82, optimize=True)
    print(f"{source}, {len(raw)} bytes -> {small.width}x{small.height}, {out.tell()} bytes")
    return {
        "image": base64.b64encode(out.getvalue()).decode(),
        "width": small.width,
        "height": small.height,
        "bytes": out.tell(),
    }
