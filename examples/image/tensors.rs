//! Writes what training reads: all digits as pictures, as the preprocess stage hands them on.
//!
//! `image-tensors FOLDER [PICTURES]` makes so many pictures of each digit (4 unless told; each fourth a PNG) and writes
//!
//! ```text
//! tensors.npy   float32 [N,3,32,32]   what the stage makes of the pictures, a digit's side by side
//! digits.npy    int64 [N]             which digit it is a picture of: a row of examples/digits/images.npy
//! labels.npy    int64 [N]             what the digit shows
//! held_out.npy  uint8 [N]             1: training must not see it
//! ```
//!
//! Whole digits are held out, in blocks of ten, of which the last of every five is. It also prints how long a picture
//! takes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use npyz::WriterBuilder;

mod digits;
mod pictures;

use image_preprocess::{MEAN, Preprocess, STD};

/// What the net takes.
const SIZE: u32 = 32;

/// A file whose rows come one after the other.
fn writer<T: npyz::AutoSerialize>(
    path: PathBuf,
    shape: &[u64],
) -> Result<npyz::NpyWriter<T, BufWriter<File>>> {
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    Ok(npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .writer(BufWriter::new(file))
        .begin_nd()?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: FOLDER [PICTURES]")?);
    let pictures: u64 = arguments.next().map_or(Ok(4), |count| count.parse())?;
    std::fs::create_dir_all(&folder)?;

    let all = digits::all()?;
    let mut stage = Preprocess::new(SIZE, MEAN, STD);
    let mut row = vec![0.0; stage.numbers()];
    let count = all.len() as u64 * pictures;
    let side = u64::from(SIZE);
    let mut tensors = writer::<f32>(folder.join("tensors.npy"), &[count, 3, side, side])?;
    let mut numbers = writer::<i64>(folder.join("digits.npy"), &[count])?;
    let mut labels = writer::<i64>(folder.join("labels.npy"), &[count])?;
    let mut held_out = writer::<u8>(folder.join("held_out.npy"), &[count])?;
    let mut times: BTreeMap<String, (u32, usize, Duration)> = BTreeMap::new();
    for digit in &all {
        for picture in 0..pictures {
            let seed = digit.index as u64 | picture << 32;
            let (format, bytes) = match picture % 4 {
                3 => ("PNG", pictures::png(&digit.pixels, seed)),
                _ => ("JPEG", pictures::photograph(&digit.pixels, seed)),
            };
            let started = Instant::now();
            stage.run(&bytes, &mut row)?;
            let elapsed = started.elapsed();
            let (width, height) = image::ImageReader::new(std::io::Cursor::new(&bytes))
                .with_guessed_format()?
                .into_dimensions()?;
            let kind = format!("{format} {width:4} x {height:4}");
            let (times, size, total) = times.entry(kind).or_default();
            *times += 1;
            *size += bytes.len();
            *total += elapsed;

            tensors.extend(row.iter().copied())?;
            numbers.push(&(digit.index as i64))?;
            labels.push(&digit.label)?;
            held_out.push(&u8::from(digits::is_held_out(digit.index)))?;
        }
    }
    tensors.finish()?;
    numbers.finish()?;
    labels.finish()?;
    held_out.finish()?;
    for (kind, (times, size, total)) in times {
        println!(
            "{kind}: {times} pictures of {} KB, {:.2} ms each",
            size / times as usize / 1000,
            (total / times).as_secs_f64() * 1e3
        );
    }
    Ok(())
}
