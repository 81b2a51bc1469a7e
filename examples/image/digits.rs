//! The handwritten digits that the pictures are made of, and which of them no training has seen.
#![allow(dead_code)] // each example and benchmark uses some of it

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use npyz::NpyFile;

/// From one digit that is held out to the next that is taken: no factor of 357, so that all have their turn.
const STEP: usize = 11;

/// One of the 1,797.
#[derive(Clone, Copy)]
pub struct Digit {
    /// Its row in the data.
    pub index: usize,
    /// Ink, 0 to 16: 8 x 8.
    pub pixels: [u8; 64],
    /// What it shows.
    pub label: i64,
}

/// All of them, in order.
pub fn all() -> Result<Vec<Digit>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let pixels: Vec<f32> = read(&data.join("images.npy"))?;
    let labels: Vec<i64> = read(&data.join("labels.npy"))?;
    let (images, _) = pixels.as_chunks::<64>();
    let digits = images.iter().zip(labels).enumerate();
    let digit = |(index, (image, label)): (usize, (&[f32; 64], i64))| Digit {
        index,
        pixels: image.map(|ink| ink as u8),
        label,
    };
    Ok(digits.map(digit).collect())
}

/// Whether training must not see it: whole blocks of ten digits, of which the last of every five is.
pub fn is_held_out(index: usize) -> bool {
    index / 10 % 5 == 4
}

/// So many of those that are held out, from all over the data (again from the start, if there are not as many).
pub fn held_out(count: usize) -> Result<Vec<Digit>> {
    let mut digits = all()?;
    digits.retain(|digit| is_held_out(digit.index));
    let total = digits.len();
    Ok((0..count)
        .map(|number| digits[number * STEP % total])
        .collect())
}

fn read<T: npyz::Deserialize>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    Ok(NpyFile::new(BufReader::new(file))?.into_vec()?)
}
