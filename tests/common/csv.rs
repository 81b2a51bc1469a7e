//! The tables that `mdm-bench --csv` writes.

use std::collections::HashMap;
use std::path::Path;

/// The lines of a table that `--csv` wrote, by name.
pub fn table(path: &Path) -> Vec<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).expect("the table");
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("names").split(',').collect();
    let line = |line: &str| {
        let fields = names.iter().zip(line.split(','));
        fields
            .map(|(name, field)| (name.to_string(), field.to_string()))
            .collect()
    };
    lines.map(line).collect()
}
