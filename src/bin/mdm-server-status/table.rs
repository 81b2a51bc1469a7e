//! Tables and numbers as people read them.

use std::fmt::{self, Write};

/// Adds columns as wide as their widest cell; the first row is the heading. Columns of numbers are aligned to the right.
pub fn table(page: &mut String, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column| cells(column).map(|cell| cell.chars().count()).max();
    let is_number = |column| {
        let mut filled = cells(column).skip(1).filter(|cell| !cell.is_empty());
        filled.all(|cell| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit()))
    };
    let columns: Vec<(usize, bool)> = (0..columns)
        .map(|column| (width(column).unwrap_or(0), is_number(column)))
        .collect();
    for row in rows {
        let cells = row.iter().zip(&columns);
        let line: String = cells
            .map(|(cell, (width, is_number))| match is_number {
                true => format!("  {cell:>width$}"),
                false => format!("  {cell:width$}"),
            })
            .collect();
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
}

pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// So many a second: `12.3 k`.
pub fn rate(per_s: f64) -> String {
    match per_s {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{per_s:.2}"),
        ..10.0 => format!("{per_s:.1}"),
        ..1e3 => format!("{per_s:.0}"),
        ..1e6 => format!("{:.1} k", per_s / 1e3),
        _ => format!("{:.1} M", per_s / 1e6),
    }
}

/// A time that is given in microseconds: `1.5 ms`.
pub fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        ..1_000 => format!("{us} us"),
        ..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        ..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

pub fn uptime(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {seconds} s"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_aligned() {
        assert_eq!(rate(12_345.0), "12.3 k");
        assert_eq!(
            [rate(0.0), rate(0.016), rate(3.14), rate(999.0)],
            ["0", "0.02", "3.1", "999"]
        );
        assert_eq!(
            [time(250), time(1_500), time(2_000_000)],
            ["250 us", "1.5 ms", "2.0 s"]
        );
        let mut page = String::new();
        let rows = [
            row(["name", "rows"]),
            row(["a", "7"]),
            row(["longer", "1234"]),
        ];
        table(&mut page, &rows).unwrap();
        assert_eq!(page, "  name    rows\n  a          7\n  longer  1234\n");
    }
}
