//! Rows that are read a few at a time: an array's, and a file's lines.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result, ensure};
use mdm::tensor::Data;
use mdm::{DataType, Tensor};

use crate::array::Header;

/// What is read ahead of lines: large files are read in fewer calls.
const LINE_BUFFER: usize = 256 << 10;

/// What may be read at once.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub rows: usize,
    /// Enough, ...
    pub bytes: usize,
    /// ... but for rows of many bytes, of which so many ...
    pub few_rows: usize,
    /// ... are read where they take no more than this.
    pub few_bytes: usize,
    /// A line that is longer is an error.
    pub line_bytes: usize,
}

impl Most {
    /// All that there is.
    pub const ALL: Most = Most {
        rows: usize::MAX,
        bytes: usize::MAX,
        few_rows: usize::MAX,
        few_bytes: usize::MAX,
        line_bytes: usize::MAX,
    };

    fn is_reached(&self, rows: usize, bytes: usize) -> bool {
        let has_bytes = bytes >= self.few_bytes || (bytes >= self.bytes && rows >= self.few_rows);
        rows >= self.rows || (rows > 0 && has_bytes)
    }

    /// The most rows of so many bytes each.
    pub fn rows_of(&self, row_bytes: usize) -> usize {
        (self.bytes / row_bytes)
            .max(self.few_rows.min(self.few_bytes / row_bytes))
            .min(self.rows)
            .max(1)
    }
}

/// An array's rows.
pub struct ArrayRows {
    pub reader: Box<dyn Read>,
    pub header: Header,
    pub row_bytes: usize,
    pub left: usize,
}

impl ArrayRows {
    /// The next rows, of which the first has that number.
    pub fn next(&mut self, most: Most, first: u64) -> Result<Option<Tensor>> {
        /// What is set aside before any of it has come: a header may promise anything.
        const SET_ASIDE: usize = 64 << 20;

        if self.left == 0 {
            let more = self.reader.read(&mut [0])?;
            ensure!(
                more == 0,
                "there is more data than shape {:?} takes: it is damaged",
                self.header.shape
            );
            return Ok(None);
        }
        let rows = most.rows_of(self.row_bytes).min(self.left);
        let expected = rows * self.row_bytes;
        let mut bytes = Vec::with_capacity(expected.min(SET_ASIDE));
        self.reader
            .by_ref()
            .take(expected as u64)
            .read_to_end(&mut bytes)?;
        ensure!(
            bytes.len() == expected,
            "shape {:?} takes {} bytes of data, and they end within row {}: it is damaged or cut short",
            self.header.shape,
            self.header.data_bytes,
            first + (bytes.len() / self.row_bytes) as u64
        );
        self.left -= rows;
        Ok(Some(self.header.rows(rows, bytes)?))
    }
}

/// A file's lines.
pub struct TextLines {
    reader: Box<dyn BufRead>,
    /// The number of the line that was read last, from 1.
    number: usize,
    pub bytes: u64,
    pub ended: bool,
}

impl TextLines {
    /// Lines from the first on.
    pub fn new(reader: impl Read + 'static) -> TextLines {
        TextLines {
            reader: Box::new(BufReader::with_capacity(LINE_BUFFER, reader)),
            number: 0,
            bytes: 0,
            ended: false,
        }
    }

    /// Reads a line behind what `into` has, and gives the number of its bytes; `None` at the end.
    fn line(&mut self, into: &mut Vec<u8>, most: Most) -> Result<Option<usize>> {
        let start = into.len();
        // A line feed more than the line may have.
        let limit = (most.line_bytes as u64).saturating_add(2);
        let read = self.reader.by_ref().take(limit).read_until(b'\n', into)?;
        self.bytes += read as u64;
        if read == 0 {
            self.ended = true;
            return Ok(None);
        }
        self.number += 1;
        // Every line ends with a line feed; the last one may go without.
        if into.last() == Some(&b'\n') {
            into.pop();
            if into.len() > start && into.last() == Some(&b'\r') {
                into.pop();
            }
        }
        let length = into.len() - start;
        ensure!(
            length <= most.line_bytes,
            "line {} has more than {} bytes, which is what the server takes in one request; raise its \
             --max-request-bytes",
            self.number,
            most.line_bytes
        );
        Ok(Some(length))
    }

    /// The next lines as strings.
    pub fn texts(&mut self, most: Most) -> Result<Option<Tensor>> {
        let mut values = Vec::new();
        let mut offsets = 0u64.to_le_bytes().to_vec();
        let mut rows = 0;
        while !most.is_reached(rows, values.len() + offsets.len()) {
            if self.line(&mut values, most)?.is_none() {
                break;
            }
            offsets.extend_from_slice(&(values.len() as u64).to_le_bytes());
            rows += 1;
        }
        if rows == 0 {
            return Ok(None);
        }
        let data = Data::Variable {
            offsets: offsets.into(),
            values: values.into(),
        };
        Ok(Some(Tensor::new("", DataType::Bytes, vec![rows], data)?))
    }

    /// The next lines that are not blank, as JSON, with their numbers.
    pub fn documents(&mut self, most: Most) -> Result<Option<Vec<(usize, serde_json::Value)>>> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        let mut line = Vec::new();
        while !most.is_reached(rows.len(), bytes) {
            line.clear();
            let Some(length) = self.line(&mut line, most)? else {
                break;
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let row = serde_json::from_slice(&line)
                .with_context(|| format!("line {}: not JSON", self.number))?;
            rows.push((self.number, row));
            bytes += length;
        }
        Ok((!rows.is_empty()).then_some(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_many_bytes_come_in_small_numbers_but_not_one_by_one() {
        let most = Most {
            rows: 1000,
            bytes: 100,
            few_rows: 16,
            few_bytes: 640,
            line_bytes: usize::MAX,
        };
        let rows = [1, 10, 20, 40, 80, 1000].map(|bytes| most.rows_of(bytes));
        assert_eq!(rows, [100, 16, 16, 16, 8, 1]);
        let seven = Most {
            rows: 7,
            ..Most::ALL
        };
        assert_eq!(seven.rows_of(1), 7);
        assert_eq!(Most::ALL.rows_of(1), usize::MAX);
    }
}
