//! The preprocess stage: the bytes of a JPEG or PNG in, the numbers that a convolutional net takes out.
//!
//! ```text
//! bytes -> whole? -> header: few enough pixels? -> decode -> resize -> normalise, HWC -> CHW
//! ```
//!
//! Whatever the bytes are, the memory is bounded: nothing is decoded before the header has been looked at, a picture has
//! at most [`MAX_PIXELS`], and a decoder takes at most 11 bytes for each (a progressive JPEG's coefficients and its
//! pixels; a PNG takes 8). So 275 MB is the most for one picture, and what stays afterwards is [`KEPT_BYTES`], twice.
//! [`MAX_SIDE`] is for resizing, which first makes one side shorter and then the other: in between, 1 x 25,000,000 pixels
//! could become 224 times as many.
//!
//! What a picture says beyond its pixels is left aside: colour profiles, orientation, transparency (the colour under
//! it counts), further frames.

use std::fmt;
use std::io::Cursor;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder, ImageFormat, Limits};

/// What ImageNet's pictures have on average (R, G, B; 0 to 1), which nets are trained to expect.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ... and how much they vary.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// A picture of more pixels is refused: as many as a camera of 24 megapixels gives.
pub const MAX_PIXELS: u64 = 25_000_000;
/// A picture with a longer side is refused, too.
pub const MAX_SIDE: u32 = 20_000;
/// Memory for decoded pixels that is kept for the next picture; one of 1600x1200 fits.
const KEPT_BYTES: usize = 8 << 20;
/// For what a PNG has beside its pixels: profiles and texts, which can be compressed a thousandfold.
const PNG_EXTRA_BYTES: u64 = 32 << 20;

/// Why a picture was refused: the text is for whoever sent it.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// 0 bytes.
    Empty,
    /// Neither of the two formats, as far as the first bytes say.
    OtherFormat,
    /// More pixels than [`MAX_PIXELS`], or a side beyond [`MAX_SIDE`].
    TooLarge(u32, u32),
    /// It has no pixels at all.
    NoPixels(u32, u32),
    /// The file ends before the picture does.
    Truncated(&'static str),
    /// The decoder's words.
    Damaged(String),
    /// The output is not of the size that the stage was made for: the caller's mistake.
    Output { expected: usize, found: usize },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Refused::Empty => write!(f, "the picture has 0 bytes"),
            Refused::OtherFormat => write!(f, "not a JPEG or PNG"),
            Refused::TooLarge(width, height) => write!(
                f,
                "{width} x {height} pixels: at most {MAX_PIXELS} in all and {MAX_SIDE} to a side are taken"
            ),
            Refused::NoPixels(width, height) => write!(f, "{width} x {height} pixels: no picture"),
            Refused::Truncated(missing) => write!(f, "the picture is truncated: {missing}"),
            Refused::Damaged(why) => write!(f, "the picture is damaged: {why}"),
            Refused::Output { expected, found } => {
                write!(
                    f,
                    "{expected} numbers come out, but there is room for {found}"
                )
            }
        }
    }
}

impl std::error::Error for Refused {}

/// The stage, for one thread: what is prepared once, and memory that pictures take turns in.
pub struct Preprocess {
    size: u32,
    /// A pixel's byte, times the first, plus the second: for R, G and B.
    scale: [(f32, f32); 3],
    options: ResizeOptions,
    resizer: Resizer,
    /// As u64, so that pixels of 16 bits lie where they have to.
    decoded: Vec<u64>,
    resized: Vec<u64>,
}

impl Preprocess {
    /// For pictures of `size` x `size` pixels, of which a channel's values (0 to 1) become `(value - mean) / std`.
    ///
    /// # Panics
    ///
    /// If `size` is 0.
    pub fn new(size: u32, mean: [f32; 3], std: [f32; 3]) -> Preprocess {
        assert!(size > 0, "a picture of 0 x 0 pixels");
        Preprocess {
            size,
            scale: std::array::from_fn(|c| (1.0 / (255.0 * std[c]), -mean[c] / std[c])),
            // As training does: bilinear, over all the pixels that make up a new one. No alpha: see above.
            options: ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
                .use_alpha(false),
            resizer: Resizer::new(),
            decoded: Vec::new(),
            resized: Vec::new(),
        }
    }

    /// How many bytes of decoded pixels are kept for the next picture.
    pub fn kept_bytes(&self) -> usize {
        self.decoded.capacity() * size_of::<u64>()
    }

    /// How many numbers a picture becomes.
    pub fn numbers(&self) -> usize {
        3 * self.size as usize * self.size as usize
    }

    /// One picture into `out`, of [`Preprocess::numbers`] numbers: all red ones, row by row, then green, then blue. The
    /// whole picture is taken, its sides stretched to be of one length.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why. `out` is then as it was.
    pub fn run(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(), Refused> {
        if out.len() != self.numbers() {
            return Err(Refused::Output {
                expected: self.numbers(),
                found: out.len(),
            });
        }
        let outcome = match image::guess_format(bytes) {
            _ if bytes.is_empty() => Err(Refused::Empty),
            Ok(ImageFormat::Jpeg) => self.jpeg(bytes, out),
            Ok(ImageFormat::Png) => self.png(bytes, out),
            _ => Err(Refused::OtherFormat),
        };
        if self.kept_bytes() > KEPT_BYTES {
            self.decoded = Vec::new();
        }
        if self.resizer.size_of_internal_buffers() > KEPT_BYTES {
            self.resizer.reset_internal_buffers();
        }
        outcome
    }

    fn jpeg(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(), Refused> {
        // The decoder would fill what is missing with grey.
        if !jpeg_is_whole(bytes) {
            return Err(Refused::Truncated("a JPEG without its end marker"));
        }
        self.decode(JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?, out)
    }

    fn png(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(), Refused> {
        if !png_is_whole(bytes) {
            return Err(Refused::Truncated("a PNG without its IEND chunk"));
        }
        // The decoder makes room for a row before it can be asked for the size.
        if let Some((width, height)) = png_dimensions(bytes) {
            few_enough(width, height)?;
        }
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(PNG_EXTRA_BYTES);
        let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(damaged)?;
        self.decode(decoder, out)
    }

    fn decode(&mut self, decoder: impl ImageDecoder, out: &mut [f32]) -> Result<(), Refused> {
        let (width, height) = decoder.dimensions();
        few_enough(width, height)?;
        // Resizing is the first thing that is done to the pixels, whatever their kind: afterwards there are few.
        let color = decoder.color_type();
        let pixel = match color {
            ColorType::L8 => PixelType::U8,
            ColorType::La8 => PixelType::U8x2,
            ColorType::Rgb8 => PixelType::U8x3,
            ColorType::Rgba8 => PixelType::U8x4,
            ColorType::L16 => PixelType::U16,
            ColorType::La16 => PixelType::U16x2,
            ColorType::Rgb16 => PixelType::U16x3,
            ColorType::Rgba16 => PixelType::U16x4,
            other => return Err(Refused::Damaged(format!("pixels of kind {other:?}"))),
        };
        let pixel_bytes = usize::from(color.bytes_per_pixel());
        let decoded_bytes = width as usize * height as usize * pixel_bytes;
        let decoded = room(&mut self.decoded, decoded_bytes);
        decoder.read_image(decoded).map_err(damaged)?;

        let resized_bytes = self.size as usize * self.size as usize * pixel_bytes;
        let resized = room(&mut self.resized, resized_bytes);
        let from = ImageRef::new(width, height, decoded, pixel).map_err(damaged)?;
        let mut to = Image::from_slice_u8(self.size, self.size, resized, pixel).map_err(damaged)?;
        self.resizer
            .resize(&from, &mut to, &self.options)
            .map_err(damaged)?;

        // Of 16 bits, the high byte is what 8 bits would have been.
        let channels = usize::from(color.channel_count());
        let channel_bytes = pixel_bytes / channels;
        let high = match cfg!(target_endian = "little") {
            true => channel_bytes - 1,
            false => 0,
        };
        // Grey is the same for all three; alpha comes last and is not asked for.
        let at = [0, 1, 2].map(|c| if channels < 3 { 0 } else { c } * channel_bytes + high);
        match pixel_bytes {
            1 => planes::<1>(resized, at, self.scale, out),
            2 => planes::<2>(resized, at, self.scale, out),
            3 => planes::<3>(resized, at, self.scale, out),
            4 => planes::<4>(resized, at, self.scale, out),
            6 => planes::<6>(resized, at, self.scale, out),
            _ => planes::<8>(resized, at, self.scale, out),
        }
        Ok(())
    }
}

/// Normalises, HWC -> CHW: pixels of so many bytes, of which R, G and B are at `at`.
fn planes<const BYTES: usize>(
    pixels: &[u8],
    at: [usize; 3],
    scale: [(f32, f32); 3],
    out: &mut [f32],
) {
    let (pixels, _) = pixels.as_chunks::<BYTES>();
    for ((plane, at), (factor, shift)) in out.chunks_exact_mut(pixels.len()).zip(at).zip(scale) {
        for (number, pixel) in plane.iter_mut().zip(pixels) {
            *number = f32::from(pixel[at]) * factor + shift;
        }
    }
}

/// So many bytes of the buffer, all zero: no decoder shall leave a place in which someone else's picture still is.
fn room(buffer: &mut Vec<u64>, bytes: usize) -> &mut [u8] {
    buffer.clear();
    buffer.resize(bytes.div_ceil(size_of::<u64>()), 0);
    &mut bytemuck::cast_slice_mut(buffer)[..bytes]
}

fn few_enough(width: u32, height: u32) -> Result<(), Refused> {
    if width == 0 || height == 0 {
        Err(Refused::NoPixels(width, height))
    } else if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        Err(Refused::TooLarge(width, height))
    } else {
        Ok(())
    }
}

fn damaged(error: impl fmt::Display) -> Refused {
    Refused::Damaged(error.to_string())
}

/// Whether a JPEG goes on to its end marker.
///
/// Within the coded pixels, FF is followed by 00, and other segments say how long they are, so an end marker is never
/// something else. After it anything may come: phones append whole further pictures.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    // As most end; a file that is cut does so by chance only if it is cut before its pixels begin.
    bytes.ends_with(&[0xff, 0xd9]) || jpeg_has_end(bytes)
}

fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        // The coded pixels are passed over here, and whatever else is between segments.
        let Some(start) = rest.iter().position(|&byte| byte == 0xff) else {
            return false;
        };
        rest = &rest[start + 1..];
        match rest {
            [] => return false,
            [0xd9, ..] => return true,
            // An FF that is a pixel's, one that only fills, a start marker, and the markers that restart: no segments.
            [0x00 | 0x01 | 0xd0..=0xd8 | 0xff, ..] => {}
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                match rest.get(1 + length..) {
                    Some(after) => rest = after,
                    None => return false,
                }
            }
            _ => return false,
        }
    }
}

/// Whether a PNG's chunks go on to the last, IEND.
fn png_is_whole(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, kind @ ..] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        // The checksum's 4 bytes come after it.
        match after.get(length.saturating_add(4)..) {
            Some(_) if kind == *b"IEND" => return true,
            Some(after) => rest = after,
            None => return false,
        }
    }
    false
}

/// What IHDR says, which has to be the first chunk.
fn png_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let (head, rest) = bytes.get(12..)?.split_first_chunk::<4>()?;
    let (width, rest) = rest.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    (head == b"IHDR").then_some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}
