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
#![allow(dead_code)] // each example and benchmark uses some of it

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
        if self.decoded.capacity() * size_of::<u64>() > KEPT_BYTES {
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

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};

    const SIZE: u32 = 4;

    fn run(bytes: &[u8]) -> Result<Vec<f32>, Refused> {
        // Values of 0 to 255 come out.
        let mut stage = Preprocess::new(SIZE, [0.0; 3], [1.0 / 255.0; 3]);
        let mut out = vec![f32::NAN; stage.numbers()];
        stage.run(bytes, &mut out).map(|()| out)
    }

    fn error(bytes: &[u8]) -> String {
        run(bytes).expect_err("no picture").to_string()
    }

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).expect("bytes");
        bytes.into_inner()
    }

    /// Red above, blue below; 40x20.
    fn halves() -> RgbImage {
        RgbImage::from_fn(40, 20, |_, y| match y < 10 {
            true => Rgb([200, 100, 0]),
            false => Rgb([0, 100, 240]),
        })
    }

    /// Rows 0 and 3 of each plane, which no pixel of the other half reaches.
    fn outer_rows(out: &[f32]) -> [[f32; 2]; 3] {
        std::array::from_fn(|c| [out[c * 16 + 1], out[c * 16 + 13]])
    }

    #[track_caller]
    fn assert_near(found: [[f32; 2]; 3], expected: [[f32; 2]; 3], tolerance: f32) {
        for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f - e).abs() <= tolerance, "{found:?}, not {expected:?}");
        }
    }

    const HALVES: [[f32; 2]; 3] = [[200.0, 0.0], [100.0, 100.0], [0.0, 240.0]];

    #[test]
    fn a_png_becomes_planes() {
        let png = encoded(halves(), ImageFormat::Png);
        assert_near(outer_rows(&run(&png).expect("numbers")), HALVES, 0.01);
    }

    #[test]
    fn a_jpeg_becomes_planes() {
        let jpeg = encoded(halves(), ImageFormat::Jpeg);
        assert_near(outer_rows(&run(&jpeg).expect("numbers")), HALVES, 6.0);
    }

    #[test]
    fn values_are_normalised() {
        let png = encoded(halves(), ImageFormat::Png);
        let mut stage = Preprocess::new(SIZE, MEAN, STD);
        let mut out = vec![0.0; stage.numbers()];
        stage.run(&png, &mut out).expect("numbers");
        for (c, rows) in HALVES.iter().enumerate() {
            let [upper, lower] = rows.map(|value| (value / 255.0 - MEAN[c]) / STD[c]);
            assert!((out[c * 16] - upper).abs() < 1e-5);
            assert!((out[c * 16 + 15] - lower).abs() < 1e-5);
        }
    }

    #[test]
    fn every_kind_of_pixel_is_taken() {
        let grey = |y: u32| if y < 10 { 30 } else { 220 };
        let wide = |value: u8| u16::from(value) * 257;
        let grey_planes = [[30.0, 220.0]; 3];
        // Transparent: the colour under it counts.
        let kinds: [(DynamicImage, [[f32; 2]; 3]); 7] = [
            (
                GrayImage::from_fn(40, 20, |_, y| Luma([grey(y)])).into(),
                grey_planes,
            ),
            (
                ImageBuffer::from_fn(40, 20, |x, y| LumaA([grey(y), x as u8])).into(),
                grey_planes,
            ),
            (
                ImageBuffer::from_fn(40, 20, |x, y| {
                    let Rgb([r, g, b]) = *halves().get_pixel(x, y);
                    Rgba([r, g, b, x as u8])
                })
                .into(),
                HALVES,
            ),
            (
                ImageBuffer::from_fn(40, 20, |_, y| Luma([wide(grey(y))])).into(),
                grey_planes,
            ),
            (
                ImageBuffer::from_fn(40, 20, |x, y| LumaA([wide(grey(y)), x as u16])).into(),
                grey_planes,
            ),
            (
                ImageBuffer::from_fn(40, 20, |x, y| Rgb(halves().get_pixel(x, y).0.map(wide)))
                    .into(),
                HALVES,
            ),
            (
                ImageBuffer::from_fn(40, 20, |x, y| {
                    let [r, g, b] = halves().get_pixel(x, y).0.map(wide);
                    Rgba([r, g, b, x as u16])
                })
                .into(),
                HALVES,
            ),
        ];
        for (picture, planes) in kinds {
            let color = picture.color();
            let out = run(&encoded(picture, ImageFormat::Png)).expect("numbers");
            println!("{color:?}");
            assert_near(outer_rows(&out), planes, 0.01);
        }
        let jpeg = encoded(
            GrayImage::from_fn(40, 20, |_, y| Luma([grey(y)])),
            ImageFormat::Jpeg,
        );
        assert_near(outer_rows(&run(&jpeg).expect("numbers")), grey_planes, 6.0);
    }

    #[test]
    fn jpegs_for_print_and_of_several_scans_are_taken() {
        let cmyk = include_bytes!("odd/cmyk.jpg");
        assert_near(outer_rows(&run(cmyk).expect("numbers")), HALVES, 8.0);
        let progressive = include_bytes!("odd/progressive.jpg");
        assert_near(outer_rows(&run(progressive).expect("numbers")), HALVES, 8.0);
    }

    #[test]
    fn what_follows_a_whole_picture_is_ignored() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            let mut bytes = encoded(halves(), format);
            let alone = run(&bytes).expect("numbers");
            bytes.extend_from_slice(&[0xff, 0xd8, 0, 1, 2, 3]);
            assert_eq!(run(&bytes).expect("numbers"), alone);
        }
    }

    #[test]
    fn memory_is_lent_from_one_picture_to_the_next_without_mixing_them() {
        let mut stage = Preprocess::new(SIZE, [0.0; 3], [1.0 / 255.0; 3]);
        let mut out = vec![0.0; stage.numbers()];
        let large = encoded(
            RgbImage::from_pixel(300, 200, Rgb([9; 3])),
            ImageFormat::Png,
        );
        let small = encoded(halves(), ImageFormat::Png);
        for bytes in [&large, &small, &large, &small] {
            stage.run(bytes, &mut out).expect("numbers");
            assert_eq!(out, run(bytes).expect("numbers"));
        }
    }

    #[test]
    fn no_bytes_are_an_error() {
        assert_eq!(error(&[]), "the picture has 0 bytes");
    }

    #[test]
    fn another_format_is_an_error() {
        assert_eq!(error(b"GIF89a\x01\0\x01\0"), "not a JPEG or PNG");
        assert_eq!(error(b"BM"), "not a JPEG or PNG");
        assert_eq!(error(&[0xff]), "not a JPEG or PNG");
    }

    #[test]
    fn a_truncated_picture_is_an_error_wherever_it_is_cut() {
        let with_noise = crate::pictures::png(&[7; 64], 1);
        let noise = image::load_from_memory(&with_noise).expect("a picture");
        let noise = noise.thumbnail(120, 90);
        let progressive = include_bytes!("odd/progressive.jpg").to_vec();
        for whole in [
            encoded(noise.clone(), ImageFormat::Jpeg),
            encoded(noise, ImageFormat::Png),
            progressive,
        ] {
            run(&whole).expect("numbers");
            for cut in 0..whole.len() {
                let text = error(&whole[..cut]);
                if cut >= 8 {
                    assert!(
                        text.starts_with("the picture is truncated: "),
                        "{cut} of {} bytes: {text}",
                        whole.len()
                    );
                }
            }
        }
    }

    /// A PNG of so many pixels, with nothing but a few bytes for them.
    fn png_bomb(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
        header.extend_from_slice(&[8, 2, 0, 0, 0]);
        for (kind, data) in [
            (b"IHDR", header),
            (b"IDAT", vec![0x78; 960]),
            (b"IEND", vec![]),
        ] {
            let typed = [kind.as_slice(), &data].concat();
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&typed);
            bytes.extend_from_slice(&crc(&typed).to_be_bytes());
        }
        bytes
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        })
    }

    /// A small JPEG that claims to have so many pixels.
    fn jpeg_bomb(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = encoded(halves(), ImageFormat::Jpeg);
        let frame = bytes.windows(2).position(|at| at == [0xff, 0xc0]);
        let frame = frame.expect("a frame header");
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    }

    #[test]
    fn too_many_pixels_are_refused_by_the_header() {
        let bomb = png_bomb(30_000, 30_000);
        assert!(bomb.len() <= 1024, "{} bytes", bomb.len());
        let text = "30000 x 30000 pixels: at most 25000000 in all and 20000 to a side are taken";
        assert_eq!(error(&bomb), text);
        assert_eq!(error(&jpeg_bomb(30_000, 30_000)), text);
        for (width, height) in [(0x7fff_ffff, 1), (1, 25_000_000), (20_001, 2), (5001, 5000)] {
            let outcome = run(&png_bomb(width, height));
            assert_eq!(outcome, Err(Refused::TooLarge(width, height)));
        }
        let outcome = run(&jpeg_bomb(65_535, 65_535));
        assert_eq!(outcome, Err(Refused::TooLarge(65_535, 65_535)));
        // Few enough, but they are not there.
        assert!(error(&png_bomb(5000, 5000)).starts_with("the picture is damaged: "));
        assert_eq!(error(&png_bomb(0, 7)), "0 x 7 pixels: no picture");
    }

    #[test]
    fn what_was_large_is_given_back() {
        let mut stage = Preprocess::new(SIZE, MEAN, STD);
        let mut out = vec![0.0; stage.numbers()];
        stage.run(&png_bomb(5000, 5000), &mut out).unwrap_err();
        assert_eq!(stage.decoded.capacity(), 0);
    }

    #[test]
    fn any_bytes_are_answered() {
        let seeds = [
            encoded(halves(), ImageFormat::Jpeg),
            encoded(halves(), ImageFormat::Png),
            include_bytes!("odd/cmyk.jpg").to_vec(),
            include_bytes!("odd/progressive.jpg").to_vec(),
        ];
        let mut state = 1u64;
        let mut random = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for round in 0..4000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            match round % 3 {
                0 => bytes[8..].fill_with(|| random() as u8),
                1 => {
                    let length = bytes.len();
                    bytes[random() % length] = random() as u8;
                }
                _ => {
                    let length = bytes.len();
                    for _ in 0..8 {
                        bytes[random() % length] ^= 1 << (random() % 8);
                    }
                }
            }
            // Numbers or an error; a panic fails the test.
            if let Ok(out) = run(&bytes) {
                assert!(out.iter().all(|number| number.is_finite()));
            }
        }
    }

    #[test]
    fn an_output_of_another_size_is_an_error() {
        let mut stage = Preprocess::new(SIZE, MEAN, STD);
        let outcome = stage.run(&encoded(halves(), ImageFormat::Png), &mut [0.0; 5]);
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "48 numbers come out, but there is room for 5"
        );
    }
}
