//! Files of rows: `.npy`, `.npz`, `.jsonl`, `.txt`, or standard input. Where rows follow each other they are read in
//! pieces, so that a file may be larger than memory.
//!
//! What a line of `.jsonl` means depends on the model: `rows.rs`.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, stdin};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mdm::{Batch, Tensor};
use npyz::npz::NpzArchive;

use crate::array::{self, Header};
use crate::pieces::{ArrayRows, Most, TextLines};
use crate::rows::Lines;

/// What a file's name says that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One array.
    Npy,
    /// Named arrays.
    Npz,
    /// A JSON document a line.
    Jsonl,
    /// A string a line.
    Txt,
}

impl Format {
    /// The format that a file's name ends with.
    pub fn of(path: &Path) -> Result<Format> {
        let end = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let end = end.to_ascii_lowercase();
        if let Ok(format) = Format::parse(&end) {
            return Ok(format);
        }
        let path = path.display();
        match &*end {
            "csv" | "tsv" | "parquet" | "feather" | "arrow" | "xlsx" => bail!(
                "{path}: .{end} is neither read nor written, only .npy, .npz, .jsonl and .txt (which is only read); pandas \
                 converts it, such as pandas.read_{}(FILE).to_json(\"rows.jsonl\", orient=\"records\", lines=True)",
                match &*end {
                    "tsv" => "table",
                    "arrow" => "feather",
                    "xlsx" => "excel",
                    end => end,
                }
            ),
            _ => bail!(
                "{path}: the name does not end in .npy, .npz, .jsonl or .txt, so the format is not known; say it with \
                 --input-format or --output-format"
            ),
        }
    }

    /// The format of that name, as a flag's value.
    pub fn parse(name: &str) -> Result<Format, String> {
        match name {
            "npy" => Ok(Format::Npy),
            "npz" => Ok(Format::Npz),
            "jsonl" => Ok(Format::Jsonl),
            "txt" => Ok(Format::Txt),
            _ => Err("expected npy, npz, jsonl or txt".to_owned()),
        }
    }
}

/// Whether a path stands for standard input or output.
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What a file holds, or a piece of it.
#[derive(Debug)]
pub enum Contents {
    /// One input without a name, or for `.npz` the inputs of its arrays' names.
    Inputs(Batch),
    /// JSON documents.
    Lines(Lines),
}

/// A file of rows that is being read.
pub struct Source {
    /// What errors call it.
    name: String,
    format: Format,
    form: Form,
    /// The length of a file of lines, if it has one.
    bytes: Option<u64>,
    rows_read: u64,
}

enum Form {
    /// An array whose rows follow each other.
    Array(ArrayRows),
    /// Strings.
    Texts(TextLines),
    /// JSON documents.
    Documents(TextLines),
    /// What has to be read at once, and how many rows of it were given.
    All(Batch, usize),
}

/// How far the reading has come.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // mdm-bench reads all at once
pub struct Progress {
    /// All rows, where their number is known.
    pub rows: Option<u64>,
    /// The share of the file that was read, where its length is known.
    pub share: Option<f64>,
}

impl Source {
    /// Opens a file, or standard input, and reads what stands ahead of its rows.
    pub fn open(path: &Path, format: Option<Format>) -> Result<Source> {
        let name = match is_standard(path) {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        };
        let format = match format {
            Some(format) => format,
            None if is_standard(path) => bail!(
                "standard input has no name that says its format; give --input-format npy, npz, jsonl or txt"
            ),
            None => Format::of(path)?,
        };
        let (form, bytes) = match is_standard(path) {
            true => (Form::read(format, stdin().lock(), None), None),
            false => {
                let file = File::open(path).with_context(|| name.clone())?;
                let metadata = file.metadata().with_context(|| name.clone())?;
                ensure!(
                    !metadata.is_dir(),
                    "{name}: it is a folder, expected a file"
                );
                let length = metadata.is_file().then_some(metadata.len());
                let form = match (format, length) {
                    // Read where it lies: an archive's directory is at its end.
                    (Format::Npz, Some(_)) => archive(BufReader::new(file)).map(Form::whole),
                    _ => Form::read(format, file, length),
                };
                (form, length)
            }
        };
        let form = form.with_context(|| name.clone())?;
        let source = Source {
            name,
            format,
            form,
            bytes,
            rows_read: 0,
        };
        match &source.form {
            Form::Array(array) => ensure!(array.left > 0, source.no_rows()),
            Form::All(batch, _) => {
                let empty = batch.tensors.iter().any(|t| t.rows() == Some(0));
                ensure!(!empty, source.no_rows());
            }
            Form::Texts(_) | Form::Documents(_) => {}
        }
        Ok(source)
    }

    /// What it holds.
    #[allow(dead_code)] // as below
    pub fn format(&self) -> Format {
        self.format
    }

    /// What errors call it.
    #[allow(dead_code)] // as below
    pub fn name(&self) -> &str {
        &self.name
    }

    fn no_rows(&self) -> String {
        format!("{}: there are no rows in it", self.name)
    }

    /// Whether it has rows that can be cut: arrays that differ in their number have none in common.
    #[allow(dead_code)] // mdm-bench reads all at once
    pub fn has_rows(&self) -> bool {
        match &self.form {
            Form::All(batch, _) => batch.rows().is_ok(),
            _ => true,
        }
    }

    /// How far the reading has come.
    #[allow(dead_code)] // mdm-bench reads all at once
    pub fn progress(&self) -> Progress {
        let share = |read: u64, all: u64| read as f64 / all.max(1) as f64;
        match &self.form {
            Form::Array(array) => {
                let rows = array.header.shape[0] as u64;
                Progress {
                    rows: Some(rows),
                    share: Some(share(self.rows_read, rows)),
                }
            }
            Form::All(batch, _) => {
                let rows = batch.rows().unwrap_or(1) as u64;
                Progress {
                    rows: Some(rows),
                    share: Some(share(self.rows_read, rows)),
                }
            }
            Form::Texts(lines) | Form::Documents(lines) => Progress {
                rows: lines.ended.then_some(self.rows_read),
                share: match lines.ended {
                    true => Some(1.0),
                    false => self.bytes.map(|all| share(lines.bytes, all)),
                },
            },
        }
    }

    /// All of it.
    pub fn all(mut self) -> Result<Contents> {
        if let Form::All(batch, 0) = self.form {
            return Ok(Contents::Inputs(batch));
        }
        let no_rows = self.no_rows();
        self.next(Most::ALL)?.context(no_rows)
    }

    /// The next rows, in the file's order; `None` after the last.
    pub fn next(&mut self, most: Most) -> Result<Option<Contents>> {
        let first = self.rows_read;
        let contents = match &mut self.form {
            Form::Array(array) => array.next(most, first).map(inputs),
            Form::Texts(lines) => lines.texts(most).map(inputs),
            Form::Documents(lines) => lines.documents(most).map(|rows| {
                let file = self.name.clone();
                rows.map(|rows| Contents::Lines(Lines { file, rows }))
            }),
            Form::All(batch, given) => Ok(slice(batch, given, most).map(Contents::Inputs)),
        };
        let contents = contents.with_context(|| self.name.clone())?;
        match &contents {
            Some(Contents::Inputs(batch)) => self.rows_read += batch.rows()? as u64,
            Some(Contents::Lines(lines)) => self.rows_read += lines.rows.len() as u64,
            None => ensure!(self.rows_read > 0, self.no_rows()),
        }
        Ok(contents)
    }
}

fn inputs(tensor: Option<Tensor>) -> Option<Contents> {
    tensor.map(|tensor| Contents::Inputs(Batch::from(tensor)))
}

fn slice(batch: &Batch, given: &mut usize, most: Most) -> Option<Batch> {
    let all = batch.rows().unwrap_or(0);
    let left = all.saturating_sub(*given);
    if left == 0 {
        return None;
    }
    let rows = most.rows_of((batch.payload_bytes() / all).max(1)).min(left);
    let piece = batch.slice_rows(*given, rows);
    *given += rows;
    Some(piece)
}

/// Reads all of a file's rows.
#[allow(dead_code)] // mdm-infer reads in pieces
pub fn read(path: &Path) -> Result<Contents> {
    Source::open(path, None)?.all()
}

impl Form {
    fn whole(batch: Batch) -> Form {
        Form::All(batch, 0)
    }

    fn read(format: Format, reader: impl Read + 'static, length: Option<u64>) -> Result<Form> {
        Ok(match format {
            Format::Npy => array_rows(reader, length)?,
            Format::Npz => {
                let mut bytes = Vec::new();
                let mut reader = reader;
                reader.read_to_end(&mut bytes)?;
                Form::whole(archive(Cursor::new(bytes))?)
            }
            Format::Jsonl => Form::Documents(TextLines::new(reader)),
            Format::Txt => Form::Texts(TextLines::new(reader)),
        })
    }
}

fn array_rows(reader: impl Read + 'static, length: Option<u64>) -> Result<Form> {
    // A header is read in many small pieces; of data that is larger than the buffer, nothing is copied.
    let mut reader = Counted {
        reader: BufReader::new(reader),
        bytes: 0,
    };
    let header = Header::read(&mut reader)?;
    if let Some(length) = length {
        header.check_bytes(length.saturating_sub(reader.bytes))?;
    }
    Ok(match header.row_bytes() {
        Some(row_bytes) => Form::Array(ArrayRows {
            left: header.shape[0],
            row_bytes,
            header,
            reader: Box::new(reader.reader),
        }),
        // Columns one after the other, rows without a byte, or no rows.
        None => Form::whole(Batch::from(array::data("", &header, reader.reader)?)),
    })
}

/// Counts what is read.
struct Counted<R> {
    reader: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

fn archive(reader: impl Read + Seek) -> Result<Batch> {
    let mut archive = NpzArchive::new(reader).context("not an .npz file")?;
    let zip = archive.zip_archive();
    let mut batch = Batch::default();
    // By position: the inputs keep the order in which they were saved.
    for index in 0..zip.len() {
        let file = zip.by_index(index).context("not an .npz file")?;
        let entry = file.name().to_owned();
        if let Some(name) = npyz::npz::array_name_from_file_name(&entry) {
            let tensor = array::array(name, file).with_context(|| format!("array {name:?}"))?;
            batch.tensors.push(tensor);
        }
    }
    ensure!(!batch.tensors.is_empty(), "there is no array in it");
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(format: Format, bytes: &[u8], most: Most) -> Result<Vec<Contents>> {
        let mut source = Source {
            name: "f".to_owned(),
            format,
            form: Form::read(format, Cursor::new(bytes.to_vec()), None)?,
            bytes: None,
            rows_read: 0,
        };
        let mut pieces = Vec::new();
        while let Some(piece) = source.next(most)? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn few(rows: usize) -> Most {
        Most { rows, ..Most::ALL }
    }

    fn texts(pieces: Vec<Contents>) -> Vec<Vec<String>> {
        let of = |piece| match piece {
            Contents::Inputs(batch) => {
                let strings = batch.tensors[0].strings().unwrap();
                strings.into_iter().map(str::to_owned).collect()
            }
            Contents::Lines(lines) => {
                let rows = lines.rows.iter();
                rows.map(|(line, row)| format!("{line}: {row}")).collect()
            }
        };
        pieces.into_iter().map(of).collect()
    }

    #[test]
    fn lines_are_read_in_pieces() {
        let all = pieces(Format::Txt, b"one\ntwo\r\n\nfour\r", few(3)).unwrap();
        assert_eq!(texts(all), [vec!["one", "two", ""], vec!["four\r"]]);
        let all = pieces(Format::Jsonl, b"1\n \n[2]\n\n3", few(2)).unwrap();
        assert_eq!(texts(all), [vec!["1: 1", "3: [2]"], vec!["5: 3"]]);
        let why = |e: anyhow::Error| format!("{e:#}");
        let e = pieces(Format::Jsonl, b"1\n\n{\n", few(1)).unwrap_err();
        assert!(why(e).starts_with("f: line 3: not JSON"));
        for format in [Format::Txt, Format::Jsonl] {
            let e = pieces(format, b"", few(1)).unwrap_err();
            assert_eq!(why(e), "f: there are no rows in it");
        }
        let short = Most {
            line_bytes: 4,
            ..Most::ALL
        };
        assert!(pieces(Format::Txt, b"four\nfour\r\n", short).is_ok());
        let e = pieces(Format::Txt, b"four\nfive5\n", short).unwrap_err();
        assert!(why(e).starts_with("f: line 2 has more than 4 bytes"));
    }

    #[test]
    fn an_array_is_read_in_pieces_and_ends_where_its_header_says() {
        let mut file = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (5, 2), }";
        file.extend(format!("{header:<69}\n").as_bytes());
        let data = (0..10i16).flat_map(i16::to_le_bytes);
        file.extend(data);
        let most = Most {
            bytes: 9,
            few_rows: 1,
            few_bytes: 9,
            ..Most::ALL
        };
        let read = pieces(Format::Npy, &file, most).unwrap();
        let rows = read.into_iter().map(|piece| match piece {
            Contents::Inputs(batch) => batch.tensors[0].to_vec::<i16>().unwrap(),
            other => panic!("{other:?}"),
        });
        let expected: [&[i16]; 3] = [&[0, 1, 2, 3], &[4, 5, 6, 7], &[8, 9]];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
        let e = pieces(Format::Npy, &file[..file.len() - 1], most).unwrap_err();
        assert!(format!("{e:#}").contains("end within row 4"), "{e:#}");
        file.push(0);
        let e = pieces(Format::Npy, &file, most).unwrap_err();
        assert!(format!("{e:#}").contains("more data than"), "{e:#}");
    }

    #[test]
    fn formats_that_are_left_out_say_what_to_do() {
        let why = |name: &str| Format::of(Path::new(name)).unwrap_err().to_string();
        for name in ["a.csv", "a.parquet", "a.CSV"] {
            let e = why(name);
            assert!(e.contains("neither read nor written"), "{e}");
            assert!(e.contains("pandas.read_"), "{e}");
        }
        assert!(why("rows").contains("--input-format"));
        assert_eq!(Format::of(Path::new("A.NPY")).unwrap(), Format::Npy);
    }
}
