//! Turns the 8x8 digits into pictures as a camera might have taken them: JPEGs of 48 KB to 330 KB, and PNGs.
//!
//! A digit is drawn in ink on paper: its pixels are the real ones, smoothly enlarged, then turned, shifted and scaled a
//! little, under light that falls off to one side, with the noise of a sensor. Everything comes from the seed, so the
//! same digit with the same seed is the same bytes.
#![allow(dead_code)] // each example and benchmark uses some of it

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// The grey level of a digit's pixel that is all ink.
const DARKEST: f32 = 16.0;
/// Samples of the enlarged digit for each of its pixels.
const FINE: usize = 16;
/// The enlarged digit has a pixel of bare paper around it, into which it fades.
const GLYPH: usize = (8 + 2) * FINE;

/// Width, height, and the noise (standard deviation, of 255) that gives a JPEG of that size the bytes it should have.
const SHAPES: [(u32, u32, f32); 8] = [
    (640, 480, 7.0),
    (800, 600, 6.5),
    (768, 1024, 5.5),
    (1024, 768, 5.5),
    (1200, 1200, 4.5),
    (1280, 960, 4.5),
    (1440, 1080, 3.6),
    (1600, 1200, 3.4),
];

/// A JPEG of the digit: 640x480 to 1600x1200 pixels, between 48 KB and 330 KB.
pub fn photograph(pixels: &[u8; 64], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let (width, height, noise) = SHAPES[random.below(SHAPES.len())];
    let quality = 80 + random.below(9) as u8;
    let scene = Scene::new(width, height, noise, &mut random);
    let rgb = scene.take(pixels, &mut random);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&rgb, width, height, ExtendedColorType::Rgb8)
        .expect("the buffer has the picture's size, and a Vec takes any bytes");
    bytes
}

/// A PNG of the digit: 320x240 or 480x360 pixels, up to some hundred KB, as PNG keeps the noise.
pub fn png(pixels: &[u8; 64], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let (width, height) = [(320, 240), (480, 360)][random.below(2)];
    let scene = Scene::new(width, height, 3.0, &mut random);
    let rgb = scene.take(pixels, &mut random);
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&rgb, width, height, ExtendedColorType::Rgb8)
        .expect("the buffer has the picture's size, and a Vec takes any bytes");
    bytes
}

/// How a picture is taken: everything about it but the digit.
struct Scene {
    width: u32,
    height: u32,
    noise: f32,
    paper: [f32; 3],
    ink: [f32; 3],
    /// How much brighter it gets over the picture's width and height.
    light: (f32, f32),
    /// How much darker the corners are than the middle.
    vignette: f32,
    /// From a pixel's place, counted from the middle, to one of [`GLYPH`].
    turn: [f32; 4],
    middle: (f32, f32),
}

impl Scene {
    fn new(width: u32, height: u32, noise: f32, random: &mut Random) -> Scene {
        let shade = random.between(185.0, 245.0);
        let paper = [0, 1, 2].map(|_| shade + random.between(-14.0, 10.0));
        let dark = random.between(15.0, 60.0);
        let ink = [0, 1, 2].map(|_| dark + random.between(-15.0, 35.0));
        // A digit takes up most of the shorter side.
        let side = width.min(height) as f32 * random.between(0.85, 1.1);
        let angle = random.between(-0.14, 0.14);
        let per_pixel = GLYPH as f32 / side;
        let (sin, cos) = (angle.sin() * per_pixel, angle.cos() * per_pixel);
        let glyph = GLYPH as f32 / 2.0;
        Scene {
            width,
            height,
            noise,
            paper,
            ink,
            light: (random.between(-0.25, 0.25), random.between(-0.25, 0.25)),
            vignette: random.between(0.0, 0.15),
            turn: [cos, sin, -sin, cos],
            middle: (
                glyph + random.between(-0.06, 0.06) * GLYPH as f32,
                glyph + random.between(-0.06, 0.06) * GLYPH as f32,
            ),
        }
    }

    /// The picture's RGB8 pixels.
    fn take(&self, pixels: &[u8; 64], random: &mut Random) -> Vec<u8> {
        let glyph = enlarge(pixels);
        let (width, height) = (self.width as usize, self.height as usize);
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            let down = y as f32 - self.height as f32 / 2.0;
            for x in 0..width {
                let right = x as f32 - self.width as f32 / 2.0;
                let ink = coverage(
                    &glyph,
                    self.middle.0 + self.turn[0] * right + self.turn[1] * down,
                    self.middle.1 + self.turn[2] * right + self.turn[3] * down,
                );
                let (u, v) = (right / self.width as f32, down / self.height as f32);
                let light = 1.0 + self.light.0 * u + self.light.1 * v
                    - self.vignette * 2.0 * (u * u + v * v);
                let noise = random.bell() * self.noise;
                for channel in 0..3 {
                    let colour =
                        self.paper[channel] + ink * (self.ink[channel] - self.paper[channel]);
                    // A cast to u8 keeps within 0 and 255.
                    rgb.push((colour * light + noise + 0.5) as u8);
                }
            }
        }
        rgb
    }
}

/// How much ink is at a place of [`GLYPH`], 0 to 1: the four samples around it, weighted.
fn coverage(glyph: &[f32], x: f32, y: f32) -> f32 {
    let last = (GLYPH - 1) as f32;
    if !(0.0..last).contains(&x) || !(0.0..last).contains(&y) {
        return 0.0;
    }
    let (left, top) = (x as usize, y as usize);
    let (u, v) = (x - left as f32, y - top as f32);
    let at = top * GLYPH + left;
    let upper = glyph[at] + u * (glyph[at + 1] - glyph[at]);
    let lower = glyph[at + GLYPH] + u * (glyph[at + GLYPH + 1] - glyph[at + GLYPH]);
    upper + v * (lower - upper)
}

/// The digit's ink (0 to 1) in [`GLYPH`] x [`GLYPH`] samples: Catmull-Rom curves through the pixels' centres.
fn enlarge(pixels: &[u8; 64]) -> Vec<f32> {
    let ink = |x: isize, y: isize| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x @ 0..8), Ok(y @ 0..8)) => f32::from(pixels[y * 8 + x]) / DARKEST,
        _ => 0.0,
    };
    let mut glyph = Vec::with_capacity(GLYPH * GLYPH);
    for y in 0..GLYPH {
        let (top, rows) = curve(y);
        for x in 0..GLYPH {
            let (left, columns) = curve(x);
            let mut sum = 0.0;
            for (dy, row) in (0..).zip(rows) {
                for (dx, column) in (0..).zip(columns) {
                    sum += row * column * ink(left + dx, top + dy);
                }
            }
            glyph.push(sum.clamp(0.0, 1.0));
        }
    }
    glyph
}

/// The first of the four pixels that a sample lies between, and their weights.
fn curve(sample: usize) -> (isize, [f32; 4]) {
    let place = (sample as f32 + 0.5) / FINE as f32 - 1.5;
    let before = place.floor();
    let t = place - before;
    let weights = [
        ((2.0 - t) * t - 1.0) * t / 2.0,
        ((3.0 * t - 5.0) * t * t + 2.0) / 2.0,
        ((4.0 - 3.0 * t) * t + 1.0) * t / 2.0,
        (t - 1.0) * t * t / 2.0,
    ];
    (before as isize - 1, weights)
}

/// splitmix64: enough to be without pattern.
struct Random {
    state: u64,
    /// The half of the last number that [`Random::bell`] has not used.
    rest: Option<u32>,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random {
            state: seed,
            rest: None,
        }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (self.next() >> 40) as f32 / (1u64 << 24) as f32 * (high - low)
    }

    /// About normal, with a standard deviation of 1: the sum of four bytes.
    fn bell(&mut self) -> f32 {
        let bits = self.rest.take().unwrap_or_else(|| {
            let both = self.next();
            self.rest = Some((both >> 32) as u32);
            both as u32
        });
        let sum: u32 = bits.to_le_bytes().map(u32::from).iter().sum();
        (sum as f32 - 510.0) / 147.8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something like a 7.
    const DIGIT: [u8; 64] = [
        0, 0, 7, 12, 16, 16, 4, 0, //
        0, 0, 12, 9, 8, 16, 3, 0, //
        0, 0, 0, 0, 4, 15, 0, 0, //
        0, 0, 4, 8, 13, 13, 4, 0, //
        0, 2, 16, 16, 16, 14, 6, 0, //
        0, 0, 3, 14, 9, 0, 0, 0, //
        0, 0, 5, 16, 2, 0, 0, 0, //
        0, 0, 9, 14, 0, 0, 0, 0,
    ];

    #[test]
    fn photographs_have_48_kb_to_330_kb() {
        let mut shapes = std::collections::BTreeSet::new();
        for seed in 0..24 {
            // Ink compresses differently from paper.
            let digit = match seed % 4 {
                0 => [0; 64],
                1 => std::array::from_fn(|at| if at % 2 == 0 { 16 } else { 0 }),
                _ => DIGIT,
            };
            let jpeg = photograph(&digit, seed);
            let picture = image::load_from_memory(&jpeg).expect("a picture");
            let (width, height) = (picture.width(), picture.height());
            shapes.insert((width, height));
            assert!(
                (48 * 1024..=330_000).contains(&jpeg.len()),
                "seed {seed}, {width}x{height}: {} bytes",
                jpeg.len()
            );
        }
        assert_eq!(shapes.len(), SHAPES.len(), "{shapes:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(photograph(&DIGIT, 1), photograph(&DIGIT, 1));
        assert_eq!(png(&DIGIT, 1), png(&DIGIT, 1));
        assert_ne!(png(&DIGIT, 1), png(&DIGIT, 2));
    }

    #[test]
    fn the_ink_is_where_the_digit_has_it() {
        // Its upper half alone.
        let half: [u8; 64] = std::array::from_fn(|at| if at < 32 { 16 } else { 0 });
        for seed in 0..4 {
            let picture = image::load_from_memory(&png(&half, seed)).expect("a picture");
            let (width, height) = (picture.width(), picture.height());
            let grey = picture.to_luma8();
            let above = grey.get_pixel(width / 2, height / 4)[0];
            let below = grey.get_pixel(width / 2, height * 3 / 4)[0];
            assert!(
                u32::from(above) + 60 < u32::from(below),
                "seed {seed}: {above} above, {below} below"
            );
        }
    }
}
