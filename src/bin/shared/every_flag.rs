//! Every flag of a command in every spelling, and from the environment.

use std::ffi::OsString;

use clap::{ArgAction, Command, Parser};
use mdm::config::{Asked, parse_flags};

fn parsed<T: Parser>(words: &[String], variable: Option<(&str, &str)>) -> Result<T, String> {
    let words = words.iter().map(OsString::from);
    let value = |name: &str| Some(variable.filter(|(own, _)| *own == name)?.1.into());
    match parse_flags::<T>(words, value) {
        Ok(Asked::Run(typed)) => Ok(typed),
        Ok(Asked::Print(text)) => panic!("printed {text}"),
        Err(e) => Err(e.message().to_owned()),
    }
}

/// Tries every flag of the command that `start` begins (the program, a subcommand, what that needs) but those of
/// `start`. `sample` has a value for a flag which is not its default, and one that is wrong, if there is one; `shown`
/// is what was read.
pub fn reads<T: Parser>(
    start: &[&str],
    sample: impl Fn(&str) -> (&'static str, Option<&'static str>),
    shown: impl Fn(&T) -> String,
) {
    let own = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    let all = T::command();
    let command: &Command = match start.get(1).and_then(|name| all.find_subcommand(name)) {
        Some(sub) => sub,
        None => &all,
    };
    let usual = shown(&parsed(&own(start), None).unwrap());
    let mut tried = 0;
    for arg in command.get_arguments() {
        let is_flag = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let Some(long) = arg.get_long().filter(|_| is_flag) else {
            // What remains is the parser's own: help and version.
            let known = ["help", "version"].contains(&arg.get_id().as_str());
            assert!(
                known || arg.is_positional(),
                "{arg} is not read from the environment"
            );
            continue;
        };
        if start
            .iter()
            .any(|word| word.trim_start_matches('-') == long)
        {
            continue;
        }
        let (value, wrong) = sample(long);
        let names = arg.get_long_and_visible_aliases().unwrap();
        let first = parsed(
            &[own(start), own(&[&format!("--{long}={value}")])].concat(),
            None,
        );
        let expected = shown(&first.unwrap_or_else(|e| panic!("--{long}={value}: {e}")));
        assert_ne!(expected, usual, "--{long}={value} changes nothing");
        let is_switch = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
        for name in names {
            for name in [name.to_owned(), name.replace('-', "_")] {
                for dash in ["--", "-", "\u{2013}"] {
                    let mut typed = vec![vec![format!("{dash}{name}={value}")]];
                    if !is_switch {
                        typed.push(vec![format!("{dash}{name}"), value.to_owned()]);
                    }
                    for words in typed {
                        let words = [own(start), words].concat();
                        let read =
                            parsed(&words, None).unwrap_or_else(|e| panic!("{words:?}: {e}"));
                        assert_eq!(shown(&read), expected, "{words:?}");
                        tried += 1;
                    }
                }
            }
        }
        let variable = format!("MDM_{}", long.to_uppercase().replace('-', "_"));
        assert!(
            mdm::config::is_flag_variable(&variable),
            "{variable} is not known to the other commands: src/config/variables.rs"
        );
        let read = parsed(&own(start), Some((&variable, value))).unwrap();
        assert_eq!(shown(&read), expected, "{variable}={value}");
        // An empty one is not set.
        let read = parsed(&own(start), Some((&variable, ""))).unwrap();
        assert_eq!(shown(&read), usual, "{variable}=");
        if let Some(wrong) = wrong {
            let Err(e) = parsed::<T>(&own(start), Some((&variable, wrong))) else {
                panic!("{variable}={wrong} was taken");
            };
            assert!(e.starts_with(&variable) && e.contains("expected"), "{e}");
            assert_eq!(e.lines().count(), 1, "{e}");
        }
    }
    assert!(tried > 0, "no flags were found");
}
