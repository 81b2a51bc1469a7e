//! One screen that is drawn over itself: lines are cut to what fits, so that a terminal never scrolls.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write, stdout};
use std::time::Instant;

/// A terminal, and what it shows.
pub struct Screen {
    page: String,
    drawn: Option<Instant>,
}

impl Screen {
    /// Standard output, if it is a terminal.
    pub fn of_stdout() -> Option<Screen> {
        stdout().is_terminal().then(|| Screen {
            page: String::new(),
            drawn: None,
        })
    }

    /// Draws a page over what was there.
    pub fn draw(&mut self, page: &str) -> io::Result<()> {
        self.page = page.to_owned();
        self.show(&self.page)?;
        self.drawn = Some(Instant::now());
        Ok(())
    }

    /// The last page with an error ahead of it.
    pub fn complain(&self, error: &mdm::Error) -> io::Result<()> {
        let ago = self.drawn.map_or(0, |drawn| drawn.elapsed().as_secs());
        let message = error.message().replace('\n', " ");
        let page = &self.page;
        self.show(&format!("{message}\nas it was {ago} s ago:\n\n{page}"))
    }

    fn show(&self, page: &str) -> io::Result<()> {
        let mut out = stdout().lock();
        if self.drawn.is_none() {
            out.write_all(b"\x1b[2J")?; // what was on the screen before
        }
        out.write_all(fitted(page, size()).as_bytes())?;
        out.flush()
    }
}

/// Rows and columns of the terminal; 24 and 80 if it does not say.
pub fn size() -> (usize, usize) {
    #[cfg(unix)]
    if let Ok(size) = rustix::termios::tcgetwinsize(stdout())
        && size.ws_row > 0
        && size.ws_col > 0
    {
        return (size.ws_row.into(), size.ws_col.into());
    }
    (24, 80)
}

/// From the upper left corner: each line, emptied before it is written, then all that is below. The last line has no end of
/// line, which would scroll.
fn fitted(page: &str, (rows, columns): (usize, usize)) -> String {
    let lines = page.lines().count();
    let fits = lines <= rows;
    let shown = if fits { lines } else { rows.saturating_sub(1) };
    let mut lines: Vec<String> = page
        .lines()
        .take(shown)
        .map(|line| line.chars().take(columns).collect())
        .collect();
    if !fits {
        let more = format!("… {} lines more", page.lines().count() - shown);
        lines.push(more.chars().take(columns).collect());
    }
    let mut screen = "\x1b[H".to_owned();
    for (index, line) in lines.iter().enumerate() {
        let end = if index + 1 < lines.len() { "\r\n" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(screen, "\x1b[2K{line}{end}");
    }
    screen + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_does_not_fit_is_cut_and_never_scrolls() {
        let page = "abcdef\n".repeat(10);
        let screen = fitted(&page, (4, 3));
        assert_eq!(screen.matches("\r\n").count(), 3);
        assert_eq!(screen.matches("\x1b[2Kabc\r").count(), 3);
        assert!(
            !screen.contains("abcd") && screen.contains("… 7"),
            "{screen:?}"
        );
        let screen = fitted(&page, (10, 80));
        assert_eq!(screen.matches("abcdef").count(), 10);
    }
}
