//! Where a setting comes from: the command line wins over the environment, the environment over the file, the file
//! over the default. Lists are not merged: all values of a repeatable flag come from the one source that wins.
//!
//! The environment and the file are turned into words of the command line, so that one parser reads all three. Each of
//! their settings is first tried alone, which is how an error can name the variable or the key that it came from.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, Parser};

use super::args::Args;
use super::{file, normalize_args};
use crate::error::{Error, Result};

/// What a command line asked for.
#[derive(Clone, Debug)]
pub enum Asked<T> {
    /// To run, with these settings.
    Run(T),
    /// To print this on standard output: `--help`, `--version`.
    Print(String),
}

/// A flag, as the other sources need to know it.
pub(super) struct Flag {
    pub(super) id: String,
    /// The first is the flag itself.
    names: Vec<String>,
    pub(super) repeatable: bool,
}

impl Flag {
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// All its names, the flag itself first.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }
}

/// `MDM_NUM_WORKER` for `--num-worker`.
pub(super) fn variable_of(flag: &str) -> String {
    format!("MDM_{}", flag.to_uppercase().replace('-', "_"))
}

/// A flag's values from the environment or the file.
pub(super) struct Setting {
    pub(super) id: String,
    pub(super) values: Vec<OsString>,
    /// The variable or the key.
    pub(super) origin: String,
}

/// Every flag that has a value: all but `--help`, `--version` and positional arguments.
pub(super) fn flags(command: &Command) -> Vec<Flag> {
    command
        .get_arguments()
        .filter(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
        .filter(|arg| arg.get_long().is_some())
        .map(|arg| Flag {
            id: arg.get_id().to_string(),
            names: arg
                .get_long_and_visible_aliases()
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            repeatable: matches!(arg.get_action(), ArgAction::Append),
        })
        .collect()
}

/// Reads a command line of either spelling and the environment, for any of our commands. The first argument is the
/// program; `variable` looks into the environment.
///
/// # Errors
/// `INVALID_ARGUMENT`, in one line that names the flag or the variable.
pub fn parse_flags<T: Parser>(
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Asked<T>> {
    parse(args, variable, |_, _| Ok(Vec::new()))
}

/// Reads all three sources of the server's settings.
pub(super) fn parse_with_file(
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Asked<Args>> {
    parse(args, variable, from_file)
}

/// What is typed, and to which command.
struct Typed {
    /// The command, or the subcommand that was typed. None of its arguments is required here.
    command: Command,
    /// The words ahead of its flags: the program, and the subcommand if there is one.
    path: Vec<OsString>,
    /// Where among the arguments further flags of it can be inserted.
    at: usize,
    matches: ArgMatches,
}

fn parse<T: Parser>(
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    further: impl Fn(&Typed, &[Setting]) -> Result<Vec<Setting>>,
) -> Result<Asked<T>> {
    let mut args = normalize_args(args);
    let typed = match typed(&T::command(), &args)? {
        Asked::Run(typed) => typed,
        Asked::Print(text) => return Ok(Asked::Print(text)),
    };
    let flags = flags(&typed.command);
    // Those that the command line overrides are checked too: a mistake in them would only show up later.
    let mut settings = environment(&flags, variable);
    for setting in &settings {
        check(&typed, &flags, setting)?;
    }
    for setting in further(&typed, &settings)? {
        if settings.iter().all(|other| other.id != setting.id) {
            settings.push(setting);
        }
    }
    let is_typed = |id: &str| typed.matches.value_source(id) == Some(ValueSource::CommandLine);
    let words: Vec<OsString> = settings
        .iter()
        .filter(|setting| !is_typed(&setting.id))
        .flat_map(|setting| words(&flags, setting))
        .collect();
    // Ahead of what was typed: behind a `--` in it they would not be flags.
    args.splice(typed.at..typed.at, words);
    match matches(&T::command(), args)? {
        Asked::Run(matches) => T::from_arg_matches(&matches)
            .map(Asked::Run)
            .map_err(|e| Error::invalid(one_line(&e))),
        Asked::Print(text) => Ok(Asked::Print(text)),
    }
}

/// The settings of the file that is typed, or else that the environment names.
fn from_file(typed: &Typed, environment: &[Setting]) -> Result<Vec<Setting>> {
    let file = match typed.matches.get_one::<std::path::PathBuf>("config") {
        Some(path) => Some(path.clone()),
        None => environment
            .iter()
            .find(|setting| setting.id == "config")
            .and_then(|setting| setting.values.first().map(Into::into)),
    };
    let Some(path) = file else {
        return Ok(Vec::new());
    };
    let flags = flags_without_config(&typed.command);
    let settings = file::read(&path, &flags)?;
    for setting in &settings {
        check(typed, &flags, setting).map_err(|e| e.context(format!("--config {path:?}")))?;
    }
    Ok(settings)
}

/// Parses the command line by itself. Required flags may be missing: another source may have them.
fn typed(command: &Command, args: &[OsString]) -> Result<Asked<Typed>> {
    fn nothing_required(command: Command) -> Command {
        command
            .mut_args(|arg| arg.required(false))
            .mut_subcommands(nothing_required)
    }
    let command = nothing_required(command.clone());
    let all = match matches(&command, args.to_vec())? {
        Asked::Run(matches) => matches,
        Asked::Print(text) => return Ok(Asked::Print(text)),
    };
    let mut typed = Typed {
        path: args.iter().take(1).cloned().collect(),
        at: args.len().min(1),
        matches: all.clone(),
        command,
    };
    let sub = all.subcommand().and_then(|(name, matches)| {
        let sub = typed.command.find_subcommand(name)?.clone();
        Some((sub, matches.clone()))
    });
    if let Some((sub, matches)) = sub {
        let is_it = |arg: &OsString| {
            let mut names = std::iter::once(sub.get_name()).chain(sub.get_all_aliases());
            names.any(|name| arg == name)
        };
        typed.at = args.iter().skip(1).position(is_it).map_or(1, |at| at + 2);
        typed.path = args[..typed.at].to_vec();
        typed.matches = matches;
        typed.command = sub;
    }
    Ok(Asked::Run(typed))
}

/// The flags that may be in a file: it cannot name another file.
fn flags_without_config(command: &Command) -> Vec<Flag> {
    flags(command)
        .into_iter()
        .filter(|flag| flag.id != "config")
        .collect()
}

/// The variables that are set. An empty one counts as not set: that is how a shell or a compose file takes one back.
fn environment(flags: &[Flag], variable: impl Fn(&str) -> Option<OsString>) -> Vec<Setting> {
    flags
        .iter()
        .filter_map(|flag| {
            let origin = variable_of(&flag.names[0]);
            let is_meant = |value: &OsString| {
                !value.is_empty() && !super::variables::is_of_kubernetes(&origin, value)
            };
            let value = variable(&origin).filter(is_meant)?;
            let values = if flag.repeatable {
                std::env::split_paths(&value)
                    .map(std::path::PathBuf::into_os_string)
                    .filter(|entry| !entry.is_empty())
                    .collect()
            } else {
                vec![value]
            };
            Some(Setting {
                id: flag.id.clone(),
                values,
                origin,
            })
        })
        .collect()
}

fn check(typed: &Typed, flags: &[Flag], setting: &Setting) -> Result<()> {
    // The command or subcommand by itself, without the words ahead of it.
    let program = typed.path.last().cloned();
    let alone = program.into_iter().chain(words(flags, setting));
    matches(&typed.command, alone)
        .map(drop)
        .map_err(|e| e.context(&setting.origin))
}

/// `--num-worker=4`: one word, so that a value that begins with a dash is a value.
fn words(flags: &[Flag], setting: &Setting) -> Vec<OsString> {
    let name = flags
        .iter()
        .find(|flag| flag.id == setting.id)
        .map_or(setting.id.as_str(), |flag| flag.names[0].as_str());
    let word = |value: &OsStr| {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value);
        word
    };
    setting.values.iter().map(|value| word(value)).collect()
}

fn matches(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Asked<ArgMatches>> {
    // So that the error about a negative number names the flag it is for, and does not call the number a flag.
    fn with_negative_numbers(command: Command) -> Command {
        let command = command.mut_args(|arg| {
            let takes_value = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes_value)
        });
        command.mut_subcommands(with_negative_numbers)
    }
    let command = with_negative_numbers(command.clone());
    match command.clone().try_get_matches_from(args) {
        Ok(matches) => Ok(Asked::Run(matches)),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Asked::Print(e.render().to_string()))
        }
        Err(e) if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let orders: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            Err(Error::invalid(format!(
                "expected one of {}; see {} --help",
                orders.join(", "),
                command.get_name()
            )))
        }
        Err(e) => Err(Error::invalid(one_line(&e))),
    }
}

/// The parser's error without its usage lines, in one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        if part.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push_str(if part.starts_with("tip:") { "; " } else { " " });
        }
        line.push_str(part.strip_prefix("error: ").unwrap_or(part));
    }
    line
}
