//! What is to be measured: lists and ranges of numbers, and the cases that they make.

use std::fmt;
use std::str::FromStr;

use crate::generator::Case;

/// More cases than anybody waits for: a step that was typed wrong.
const MAX_CASES: usize = 1000;

const EXPECTED: &str = "expected whole numbers above 0 and ranges of them, such as 1,16,1024, 1:64:x2 (each twice the \
     one before) or 10:50:+10";

/// Numbers as they were typed: `1,16,1024`, `1:64:x2`, `10:50:+10`, or several of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(pub Vec<u64>);

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        let mut numbers = Vec::new();
        for item in text.split(',') {
            let parts: Vec<&str> = item.split(':').map(str::trim).collect();
            match parts[..] {
                [one] => numbers.push(number(one)?),
                [from, to, step] => range(number(from)?, number(to)?, step, &mut numbers)?,
                _ => return Err(EXPECTED.to_owned()),
            }
            if numbers.len() > MAX_CASES {
                return Err(format!("these are more than {MAX_CASES} numbers"));
            }
        }
        Ok(Numbers(numbers))
    }
}

fn number(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| EXPECTED.to_owned())
}

/// From one number of a range to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Times(u64),
    Plus(u64),
}

fn range(from: u64, to: u64, step: &str, into: &mut Vec<u64>) -> Result<(), String> {
    let step = match step.split_at_checked(1) {
        Some(("x", by)) => Step::Times(number(by)?),
        Some(("+", by)) => Step::Plus(number(by)?),
        _ => return Err(EXPECTED.to_owned()),
    };
    if from > to {
        return Err(format!(
            "the range begins at {from} and ends at {to}, below it"
        ));
    }
    if step == Step::Times(1) {
        return Err("a range by x1 does not end; expected x2 or more".to_owned());
    }
    let mut at = Some(from);
    while let Some(number) = at.filter(|at| *at <= to && into.len() <= MAX_CASES) {
        into.push(number);
        at = match step {
            Step::Times(by) => number.checked_mul(by),
            Step::Plus(by) => number.checked_add(by),
        };
    }
    Ok(())
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// Every combination; those of the same rows together, which makes a line of the plot.
///
/// # Errors
/// If they are too many.
pub fn cases(
    rows: &Numbers,
    concurrency: &Numbers,
    rates: Option<&Numbers>,
) -> Result<Vec<Case>, String> {
    let rates: Vec<Option<u64>> = match rates {
        Some(rates) => rates.0.iter().copied().map(Some).collect(),
        None => vec![None],
    };
    let count = rows.0.len() * concurrency.0.len() * rates.len();
    if count > MAX_CASES {
        return Err(format!(
            "--rows-per-request, --concurrency and --rate make {count} cases, and at most {MAX_CASES} are measured"
        ));
    }
    let mut cases = Vec::with_capacity(count);
    for &rows in &rows.0 {
        for &concurrency in &concurrency.0 {
            cases.extend(rates.iter().map(|&rate| Case {
                rows: usize::try_from(rows).unwrap_or(usize::MAX),
                concurrency: usize::try_from(concurrency).unwrap_or(usize::MAX),
                rate,
            }));
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read() {
        let read = |text: &str| text.parse::<Numbers>().unwrap().0;
        assert_eq!(read("7"), [7]);
        assert_eq!(read("1, 16,1024"), [1, 16, 1024]);
        assert_eq!(read("1:64:x2"), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(read("1:50:x2"), [1, 2, 4, 8, 16, 32]);
        assert_eq!(read("10:50:+20,100"), [10, 30, 50, 100]);
        assert_eq!(read("5:5:x2"), [5]);
        let most = u64::MAX;
        assert_eq!(read(&format!("{most}:{most}:x2")), [most]);
    }

    #[test]
    fn what_is_no_list_says_what_is_expected() {
        for text in [
            "", "0", "-1", "1.5", "a", "1:4", "1:4:2", "1:4:x", "1:4:x0", "1:4:+0", "1,,2",
            "1:2:x2:3",
        ] {
            let e = text.parse::<Numbers>().unwrap_err();
            assert!(e.contains("expected"), "{text}: {e}");
        }
        let e = "1:4:x1".parse::<Numbers>().unwrap_err();
        assert!(e.contains("does not end"), "{e}");
        let e = "4:1:x2".parse::<Numbers>().unwrap_err();
        assert!(e.contains("below"), "{e}");
        for text in ["1:18446744073709551615:+1", "1:18446744073709551615:+1,1"] {
            let e = text.parse::<Numbers>().unwrap_err();
            assert!(e.contains("more than 1000"), "{e}");
        }
    }

    #[test]
    fn cases_of_the_same_rows_are_together() {
        let numbers = |text: &str| text.parse::<Numbers>().unwrap();
        let made = cases(&numbers("1,16"), &numbers("2,4"), None).unwrap();
        let made: Vec<_> = made
            .iter()
            .map(|c| (c.rows, c.concurrency, c.rate))
            .collect();
        assert_eq!(
            made,
            [(1, 2, None), (1, 4, None), (16, 2, None), (16, 4, None)]
        );
        let made = cases(&numbers("1"), &numbers("8"), Some(&numbers("5,6"))).unwrap();
        assert_eq!(
            made.iter().map(|c| c.rate).collect::<Vec<_>>(),
            [Some(5), Some(6)]
        );
        let many = numbers("1:100:+1");
        assert!(
            cases(&many, &many, None)
                .unwrap_err()
                .contains("10000 cases")
        );
    }
}
