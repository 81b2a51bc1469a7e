//! Where a request's rows stand in the file: errors name the file's rows, and of text the lines.

use mdm::Error;

use crate::read::Contents;

/// The places of some rows in their file.
#[derive(Clone, Debug)]
pub struct Numbering {
    file: String,
    places: Places,
}

#[derive(Clone, Debug)]
enum Places {
    /// They begin with that row, counted from 0.
    Rows(u64),
    /// They begin with that line, counted from 1.
    Lines(u64),
    /// Each has a line of its own.
    Listed(Vec<usize>),
}

impl Numbering {
    /// The rows from that one on.
    pub fn rows(file: &str, first: u64) -> Numbering {
        Numbering {
            file: file.to_owned(),
            places: Places::Rows(first),
        }
    }

    /// The rows of a piece of a file, which begins with that row.
    pub fn of(file: &str, first: u64, contents: &Contents, is_text: bool) -> Numbering {
        let places = match contents {
            Contents::Lines(lines) => {
                Places::Listed(lines.rows.iter().map(|(line, _)| *line).collect())
            }
            Contents::Inputs(_) if is_text => Places::Lines(first + 1),
            Contents::Inputs(_) => Places::Rows(first),
        };
        Numbering {
            file: file.to_owned(),
            places,
        }
    }

    /// The rows `start..start + rows` of these.
    pub fn slice(&self, start: usize, rows: usize) -> Numbering {
        let places = match &self.places {
            Places::Rows(first) => Places::Rows(first + start as u64),
            Places::Lines(first) => Places::Lines(first + start as u64),
            Places::Listed(lines) => {
                Places::Listed(lines.iter().skip(start).take(rows).copied().collect())
            }
        };
        Numbering {
            file: self.file.clone(),
            places,
        }
    }

    /// `row 8195`, or of text `line 8196`.
    pub fn row(&self, row: usize) -> String {
        format!("{} {}", self.word(), self.number(row))
    }

    /// `row 7`, `rows 7 to 9` or `lines 8 to 10`.
    pub fn range(&self, first: usize, count: usize) -> String {
        match count {
            0 | 1 => self.row(first),
            _ => format!(
                "{}s {} to {}",
                self.word(),
                self.number(first),
                self.number(first + count - 1)
            ),
        }
    }

    fn word(&self) -> &'static str {
        match self.places {
            Places::Rows(_) => "row",
            Places::Lines(_) | Places::Listed(_) => "line",
        }
    }

    fn number(&self, row: usize) -> u64 {
        match &self.places {
            Places::Rows(first) | Places::Lines(first) => first + row as u64,
            Places::Listed(lines) => lines.get(row).or(lines.last()).map_or(0, |n| *n as u64),
        }
    }

    /// An error about a request of these rows, so many, as one about the file. The server numbers the rows in the request.
    pub fn in_file(&self, error: Error, rows: usize) -> Error {
        let message = error.message();
        let place = match blamed(message) {
            Some((first, count, _)) => self.range(first, count),
            None => self.range(0, rows),
        };
        let words = self.words(message);
        Error::new(error.code(), format!("{}: {place}: {words}", self.file))
    }

    /// What a server's message says, without the rows that it begins with. If no row has a result it names one of them, which
    /// is named as the file does.
    pub fn words(&self, message: &str) -> String {
        if let Some((_, _, words)) = blamed(message) {
            return words.to_owned();
        }
        let one_of_all = |(begin, words): (&str, &str)| {
            let (all, one) = message.split_once(&format!(" {words}; row "))?;
            let (row, what) = one.split_once(": ")?;
            let row = self.row(row.parse().ok()?);
            all.starts_with(begin)
                .then(|| format!("{all} {words}; {row}: {what}"))
        };
        [("all ", "rows failed"), ("none of ", "rows has a result")]
            .into_iter()
            .find_map(one_of_all)
            .unwrap_or_else(|| message.to_owned())
    }
}

/// The rows that a server's message begins with, `row 3: ` or `rows 3 to 5: `, how many, and the words behind them.
fn blamed(message: &str) -> Option<(usize, usize, &str)> {
    let (place, words) = message.split_once(": ")?;
    if let Some(row) = place.strip_prefix("row ") {
        return Some((row.parse().ok()?, 1, words));
    }
    let (first, last) = place.strip_prefix("rows ")?.split_once(" to ")?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    Some((first, last.checked_sub(first)? + 1, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_rows_of_the_file() {
        let rows = Numbering::rows("f.npy", 1000).slice(20, 30);
        let said = |message: &str| {
            rows.in_file(Error::invalid(message), 30)
                .message()
                .to_owned()
        };
        assert_eq!(said("row 3: no"), "f.npy: row 1023: no");
        assert_eq!(
            said("rows 3 to 4: no: 1"),
            "f.npy: rows 1023 to 1024: no: 1"
        );
        assert_eq!(
            said("all 30 rows failed; row 2: no"),
            "f.npy: rows 1020 to 1049: all 30 rows failed; row 1022: no"
        );
        assert_eq!(
            rows.words("none of 30 rows has a result; row 2: INTERNAL: no; 1 failed and 29 may be good: left"),
            "none of 30 rows has a result; row 1022: INTERNAL: no; 1 failed and 29 may be good: left"
        );
        assert_eq!(rows.words("row 0: no"), "no");
        for other in ["no such thing", "row x: no", "rows 4 to 3: no"] {
            assert_eq!(said(other), format!("f.npy: rows 1020 to 1049: {other}"));
        }
        let listed = Numbering {
            file: "f".to_owned(),
            places: Places::Listed(vec![1, 3, 7, 8]),
        };
        assert_eq!(listed.slice(1, 2).range(0, 2), "lines 3 to 7");
        assert_eq!(listed.slice(1, 2).row(1), "line 7");
    }
}
