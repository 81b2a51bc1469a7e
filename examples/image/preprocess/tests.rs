//! The stage with every kind of picture, and with what is none.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use image_preprocess::{MEAN, Preprocess, Refused, STD};

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
            ImageBuffer::from_fn(40, 20, |x, y| Rgb(halves().get_pixel(x, y).0.map(wide))).into(),
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
    let cmyk = include_bytes!("../odd/cmyk.jpg");
    assert_near(outer_rows(&run(cmyk).expect("numbers")), HALVES, 8.0);
    let progressive = include_bytes!("../odd/progressive.jpg");
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
    let mut seed = 1u32;
    let noise = RgbImage::from_fn(120, 90, |_, _| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Rgb([(seed >> 24) as u8 | 0x40; 3])
    });
    let progressive = include_bytes!("../odd/progressive.jpg").to_vec();
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
pub fn png_bomb(width: u32, height: u32) -> Vec<u8> {
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
pub fn jpeg_bomb(width: u16, height: u16) -> Vec<u8> {
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
    assert_eq!(stage.kept_bytes(), 0);
}

#[test]
fn any_bytes_are_answered() {
    let seeds = [
        encoded(halves(), ImageFormat::Jpeg),
        encoded(halves(), ImageFormat::Png),
        include_bytes!("../odd/cmyk.jpg").to_vec(),
        include_bytes!("../odd/progressive.jpg").to_vec(),
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
