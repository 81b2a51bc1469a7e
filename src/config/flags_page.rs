//! Writes the page of flags, `flags.md`, from the flags' definitions, and a test checks that it is up to date.

use std::fmt::Write;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, CommandFactory};

use super::Args;

const PAGE: &str = include_str!("flags.md");

/// What stands ahead of the tables.
const HEAD: &str = "\
# The flags of `mdm-server-start`

Every flag can be given as `--num-worker 4`, `--num-worker=4`, `-num_worker=4` or `–num_worker 4`, and is read from the
environment (`MDM_NUM_WORKER=4`; those that can be repeated are split like `PATH`) and from a TOML file (`--config`;
`num_worker = 4`, lists for those that can be repeated). The command line wins over the environment, the environment over the
file. An empty variable is not set. Sizes are bytes, or a number with KiB, MiB, GiB or TiB (1024) or kB, MB, GB or TB (1000).

This page is made from the definitions that `--help` shows too.
";

/// The flags under each heading of `--help`, in its order.
fn page() -> String {
    let command = Args::command();
    let flags = || {
        let all = command.get_arguments();
        all.filter(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
    };
    let mut headings: Vec<&str> = Vec::new();
    for heading in flags().map(heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut page = HEAD.to_owned();
    for own in headings {
        write!(
            page,
            "\n## {own}\n\n| flag | default | meaning |\n|---|---|---|\n"
        )
        .unwrap();
        for arg in flags().filter(|arg| heading(arg) == own) {
            page += &row(arg);
        }
    }
    page
}

fn heading(arg: &Arg) -> &str {
    arg.get_help_heading().unwrap_or("Settings from a file")
}

fn row(arg: &Arg) -> String {
    let names = arg.get_long_and_visible_aliases().unwrap_or_default();
    let shorts = arg.get_short().into_iter().map(|short| format!("-{short}"));
    let names = names.iter().map(|name| format!("--{name}")).chain(shorts);
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let help = arg.get_help().map(StyledStr::to_string).unwrap_or_default();
    // What is worked out when the server starts has its default in words.
    let (help, worked_out) = match help.split_once(" [default: ") {
        Some((help, default)) => (
            help.to_owned(),
            Some(default.trim_end_matches(']').to_owned()),
        ),
        None => (help, None),
    };
    let given = arg.get_default_values().iter();
    let given: Vec<_> = given.map(|value| value.to_string_lossy()).collect();
    let default = match (worked_out, &*given) {
        (Some(words), _) => in_code(&words),
        (None, [value]) => format!("`{value}`"),
        (None, _) => String::new(),
    };
    format!(
        "| {} | {default} | {} |\n",
        names.join(", "),
        in_code(&help)
    )
}

/// Flags, patterns and files among the words as code: they are to be read as they are typed.
fn in_code(text: &str) -> String {
    let words = text.replace('|', "\\|");
    let words = words.split(' ').map(|word| {
        let bare = word.trim_end_matches([',', ';', ':', '.']);
        let is_code =
            bare.starts_with("--") || bare.contains(['*', '"', '$']) || bare.starts_with("mdm-");
        if is_code {
            format!("`{bare}`{}", &word[bare.len()..])
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// With `MDM_WRITE_FLAGS=1` in the environment it is written anew instead.
#[test]
fn flags_page_is_what_the_definitions_say() {
    let page = page();
    if std::env::var_os("MDM_WRITE_FLAGS").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/flags.md");
        std::fs::write(file, page).expect("the page is written");
        return;
    }
    for (number, (own, written)) in page.lines().zip(PAGE.lines()).enumerate() {
        assert_eq!(
            own,
            written,
            "line {} of src/config/flags.md; MDM_WRITE_FLAGS=1 cargo test --lib flags_page writes it",
            number + 1
        );
    }
    assert_eq!(
        page.lines().count(),
        PAGE.lines().count(),
        "lines of src/config/flags.md"
    );
}
