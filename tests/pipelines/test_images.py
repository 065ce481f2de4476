"""Decoding: every kind of file to the same kind of array."""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.facts import measure
from pipelines.images import ImageError, _upright, decode_image
from pipelines.preprocess import Preprocess

RNG = np.random.default_rng(0)


def noise(channels: int = 3, dtype: type = np.uint8, height: int = 12, width: int = 20) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


RGB, GREY, RGBA, FIVE = noise(3), noise(1), noise(4), noise(5, np.uint16)
DEEP, DEEP_GREY, FLOATS = noise(3, np.uint16), noise(1, np.uint16), RNG.normal(size=(12, 20, 7)).astype(np.float32)
PLANES = np.ascontiguousarray(FIVE.transpose(2, 0, 1))
PLAIN = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(saved(Image.fromarray(RGB), "PNG"), RGB, id="png"),
        pytest.param(saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB, id="webp"),
        pytest.param(saved(Image.fromarray(RGB), "BMP"), RGB, id="bmp"),
        pytest.param(saved(Image.fromarray(RGB), "TIFF"), RGB, id="tiff"),
        pytest.param(saved(Image.fromarray(GREY[:, :, 0]), "PNG"), GREY, id="grey"),
        pytest.param(saved(Image.fromarray(RGBA), "PNG"), RGBA[:, :, :3], id="alpha is dropped"),
        pytest.param(saved(Image.fromarray(RGBA), "TIFF"), RGBA[:, :, :3], id="alpha of a tiff is dropped"),
        pytest.param(saved(Image.fromarray(DEEP_GREY[:, :, 0]), "PNG"), DEEP_GREY, id="16 bit grey"),
        pytest.param(imagecodecs.png_encode(DEEP), DEEP, id="16 bit colour keeps 16 bits"),
        pytest.param(imagecodecs.png_encode(np.dstack([DEEP, DEEP_GREY])), DEEP, id="16 bit alpha is dropped"),
        pytest.param(tiff(DEEP, photometric="rgb"), DEEP, id="16 bit tiff"),
        pytest.param(tiff(DEEP_GREY[:, :, 0], compression="lzw"), DEEP_GREY, id="lzw"),
        pytest.param(tiff(DEEP_GREY[:, :, 0], byteorder=">"), DEEP_GREY, id="big endian"),
        pytest.param(tiff(FIVE, **PLAIN), FIVE, id="five bands"),
        pytest.param(tiff(PLANES, photometric="minisblack", planarconfig="separate"), FIVE, id="five planes"),
        pytest.param(tiff(PLANES, photometric="minisblack"), FIVE, id="five pages"),
        pytest.param(tiff(PLANES, photometric="minisblack", compression="zlib"), FIVE, id="five deflated pages"),
        pytest.param(tiff(RGBA, **PLAIN), RGBA, id="four bands are no alpha"),
        pytest.param(tiff(FLOATS[:, :, 0]), FLOATS[:, :, :1], id="floating-point tiff"),
        pytest.param(npy(FIVE), FIVE, id="npy"),
        pytest.param(npy(GREY[:, :, 0]), GREY, id="npy without channels"),
        pytest.param(npy(FLOATS), FLOATS, id="floating-point npy"),
        pytest.param(npy(FLOATS.astype(">f8")), FLOATS, id="big-endian doubles"),
        pytest.param(npy(np.asfortranarray(FIVE)), FIVE, id="fortran order"),
    ],
)
def test_decodes(data, wanted):
    found = decode_image(data)
    assert found.dtype == wanted.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


def test_jpeg_and_palette():
    smooth = np.linspace(0, 255, 12 * 20 * 3).reshape(12, 20, 3).astype(np.uint8)
    assert np.abs(decode_image(saved(Image.fromarray(smooth), "JPEG", quality=95)).astype(int) - smooth).mean() < 4
    few = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(decode_image(saved(few, "PNG")), np.asarray(few.convert("RGB")))
    np.testing.assert_array_equal(decode_image(saved(few, "TIFF")), np.asarray(few.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(RGB), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data), _upright(RGB, orientation))  # Pillow's turn against ours
    deep = tiff(DEEP, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    np.testing.assert_array_equal(decode_image(deep), _upright(DEEP, orientation))


def header(shape: tuple) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"just text, named .jpg", "not an image in a known format"),
        (saved(Image.fromarray(RGB), "PNG")[:-40], "cannot be decoded"),
        (saved(Image.fromarray(RGB), "JPEG")[:400], "cannot be decoded|not an image"),
        (tiff(FIVE, **PLAIN)[:-2000], "cannot be decoded|cut"),
        (npy(FIVE)[:-7], "the header promises"),
        (header((10**6, 10**6, 3)), "the header promises"),
        (npy(np.array([[{}]], object)), "Python objects"),
        (npy(np.zeros((4, 4), np.int32) - 1), "pixels of type int32"),
        (npy(np.full((4, 4), np.nan)), "NaN or infinite"),
        (npy(np.zeros(5, np.uint8)), "an array of shape"),
        (npy(np.zeros((0, 5), np.uint8)), "0 pixels|5x0"),
        (npy(np.zeros((2, 2, 300), np.uint8)), "at most 256 channels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
    ],
)
def test_says_why_it_cannot_be_used(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked():
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(90001) * 100, 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"30000x30000 pixels|decompression bomb"):
        decode_image(png)


@pytest.mark.parametrize("image", [RGB, GREY, FIVE, DEEP, FLOATS], ids=["rgb", "grey", "five", "deep", "floats"])
def test_facts_are_those_of_numpy_in_double_precision(image):
    scale = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    scaled = image.astype(np.float64) / scale
    found = measure(image)
    np.testing.assert_allclose(found["channel_mean"], scaled.mean((0, 1)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["channel_std"], scaled.std((0, 1)), rtol=1e-6)
    grey = scaled.mean(2)
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    assert found["sharpness"] == pytest.approx(inner.var(), rel=1e-9)
    assert found["brightness"] == pytest.approx(scaled.mean(), rel=1e-6, abs=1e-7)


def test_grey_is_taken_where_colour_is_wanted_and_nothing_else_is():
    prepare = Preprocess(3, 12, 20, "stretch", 255.0, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(prepare.pixels(GREY), np.repeat(GREY, 3, 2))
    with pytest.raises(ValueError, match="the model takes 3 channel"):
        prepare.pixels(FIVE)


def test_facts_of_a_large_image_are_those_of_a_sample_of_it():
    image = noise(3, height=600, width=800)
    image[:, :, 1] //= 2
    found = measure(image)
    scaled = image / 255
    np.testing.assert_allclose(found["channel_mean"], scaled.mean((0, 1)), atol=2e-3)
    np.testing.assert_allclose(found["channel_std"], scaled.std((0, 1)), atol=2e-3)
    grey = scaled.mean(2)
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    assert found["sharpness"] == pytest.approx(inner.var(), rel=0.02)
    other = image.copy()
    other[-1, -1, -1] ^= 1
    assert measure(other)["pixel_hash"] != found["pixel_hash"], "the hash is of every pixel"
