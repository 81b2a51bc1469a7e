//! Variables of the environment that begin with `MDM_` and that no command reads: mostly a flag's name with a typing error
//! in it, which would otherwise change nothing without a word.
//!
//! ```text
//! a flag of any command, MDM_LOG              read, or meant for another command
//! MDM_SERVICE_*, MDM_PORT_*_TCP* and others   Kubernetes' own, of a service whose name begins with "mdm"
//! MDM_PORT=tcp://…, MDM_HTTP_PORT=tcp://…     Kubernetes' too, under a flag's name: a warning, and not read
//! up to two letters off, one of a short name    an error
//! anything else                               one warning
//! ```

use std::ffi::{OsStr, OsString};

use clap::CommandFactory;

use super::args::Args;
use super::sources::{flags, variable_of};
use crate::error::{Error, Result};

/// Flags of the other commands that are not flags of the server too. A test of each command finds those that are missing.
const OTHER_FLAGS: [&str; 31] = [
    "cast",
    "concurrency",
    "connections",
    "csv",
    "door",
    "duration",
    "input",
    "input-format",
    "ip",
    "json",
    "mdm",
    "model",
    "now",
    "on-bad-row",
    "onnx",
    "output",
    "output-format",
    "params",
    "plot",
    "plugin",
    "rate",
    "requests",
    "rows",
    "rows-per-request",
    "server",
    "settings",
    "timeout",
    "timeout-ms",
    "url",
    "warm-up",
    "watch",
];
/// What is no flag.
const OTHER_VARIABLES: [&str; 1] = ["MDM_LOG"];
/// So many letters that are wrong, missing, too many or swapped are a typing error.
const NEAR: usize = 2;
/// Of a name of so few letters it is one.
const SHORT: usize = 4;

/// Looks at the names and values of an environment; gives a warning for what is not read, if there is any.
///
/// # Errors
/// `INVALID_ARGUMENT` for a name that is nearly a flag's, which it says.
pub fn check_variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Option<String>> {
    let known = known();
    let mut warnings = Vec::new();
    let mut unknown = Vec::new();
    for (name, value) in environment {
        // An empty one is not set.
        let Some(name) = name.to_str().filter(|_| !value.is_empty()) else {
            continue;
        };
        if !name.starts_with("MDM_") || OTHER_VARIABLES.contains(&name) {
            continue;
        }
        if known.iter().any(|(own, _)| own == name) {
            if is_of_kubernetes(name, &value) {
                warnings.push(format!(
                    "{name}={} is not read: Kubernetes sets it for a service of that name",
                    value.to_string_lossy()
                ));
            }
            continue;
        }
        if is_service(name) {
            continue;
        }
        let flags = known.iter().map(|(own, flag)| {
            let meant = format!("{}, which is --{flag}", variable_of(flag));
            (nearness(own, name), meant)
        });
        let others = OTHER_VARIABLES.map(|own| (nearness(own, name), own.to_owned()));
        // Of those that are as near the server's own, which come first.
        let near = flags
            .chain(others)
            .filter_map(|(near, own)| Some((near?, own)));
        if let Some((_, meant)) = near.min_by_key(|(near, _)| *near) {
            return Err(Error::invalid(format!(
                "{name} in the environment is read by no command: did you mean {meant}?"
            )));
        }
        unknown.push(name.to_owned());
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        warnings.push(format!(
            "{} in the environment: read by no command",
            unknown.join(", ")
        ));
    }
    Ok((!warnings.is_empty()).then(|| warnings.join("; ")))
}

/// Whether a variable is that of a flag of one of our commands.
pub fn is_flag_variable(name: &str) -> bool {
    known()
        .iter()
        .any(|(own, flag)| own == name && variable_of(flag) == name)
}

/// Whether Kubernetes has set a flag's variable, for a service of the name that it would have without `_PORT`.
pub(super) fn is_of_kubernetes(name: &str, value: &OsStr) -> bool {
    let value = value.as_encoded_bytes();
    let is_address = [&b"tcp://"[..], b"udp://", b"sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    name.ends_with("_PORT") && is_address
}

/// Whether a name is one that Kubernetes makes of a service's name: `MDM_SERVICE_HOST`, `MDM_PORT_5555_TCP_ADDR`, or of a
/// service `mdm-server` `MDM_SERVER_SERVICE_PORT`.
fn is_service(name: &str) -> bool {
    let numbered = |rest: &str| {
        let port = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        port.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| port.starts_with(protocol))
    };
    name.contains("_SERVICE_")
        || name.ends_with("_SERVICE")
        || name
            .match_indices("_PORT_")
            .any(|(at, found)| numbered(&name[at + found.len()..]))
}

/// Every variable that could be meant, and the flag that it stands for.
fn known() -> Vec<(String, String)> {
    let mut known = Vec::new();
    for flag in flags(&Args::command()) {
        for name in flag.names() {
            known.push((variable_of(name), flag.names()[0].clone()));
        }
    }
    for flag in OTHER_FLAGS {
        known.push((variable_of(flag), flag.to_owned()));
    }
    known
}

/// How far one name is from the other, if it could be a typing error: a short name is not every other one of them.
fn nearness(own: &str, name: &str) -> Option<usize> {
    let letters = own.len() - "MDM_".len();
    let near = if letters > SHORT { NEAR } else { 1 };
    let apart = strsim::osa_distance(own, name);
    (apart <= near.min(letters.saturating_sub(1))).then_some(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[(&str, &str)]) -> Result<Option<String>> {
        let pairs = names.iter();
        check_variables(pairs.map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn a_typing_error_in_a_variable_is_an_error_that_names_the_flag() {
        for (name, flag) in [
            ("MDM_NUM_WORKERS", "MDM_NUM_WORKER, which is --num-worker"),
            ("MDM_NUMWORKER", "MDM_NUM_WORKER"),
            ("MDM_PORTS", "MDM_PORT"),
            ("MDM_PROT", "MDM_PORT, which is --port"),
            ("MDM_LOGS", "MDM_LOG?"),
            ("MDM_TIMEOUT_S", "MDM_TIMEOUT_MS"),
            ("MDM_MODELS", "MDM_MODEL"),
            ("MDM_num_worker", ""),
        ] {
            let read = check(&[("PATH", "/bin"), (name, "3")]);
            match flag {
                "" => assert!(read.unwrap().unwrap().contains(name)),
                flag => {
                    let e = read.unwrap_err();
                    assert!(
                        e.message().starts_with(name) && e.message().contains(flag),
                        "{e}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_flag_at_all_is_one_warning() {
        let names = [
            ("MDM_WEATHER", "1"),
            ("MDM_ANYTHING_ELSE", "2"),
            ("MDM_EMPTY_ONE", ""),
            // Two letters from MDM_DOOR, which has no more.
            ("MDM_FOO", "3"),
        ];
        let warning = check(&names).unwrap().unwrap();
        assert_eq!(
            warning,
            "MDM_ANYTHING_ELSE, MDM_FOO, MDM_WEATHER in the environment: read by no command"
        );
    }

    #[test]
    fn what_is_known_is_silent() {
        let own = [
            ("MDM_LOG", "debug"),
            ("MDM_NUM_WORKER", "3"),
            ("MDM_ROWS_PER_REQUEST", "3"),
            ("MDM_PORT", "5555"),
            ("MDMA", "3"),
        ];
        assert_eq!(check(&own).unwrap(), None);
        let services = [
            "MDM_SERVICE_HOST",
            "MDM_SERVICE_PORT",
            "MDM_SERVICE_PORT_REQUESTS",
            "MDM_PORT_5555_TCP",
            "MDM_PORT_5555_TCP_ADDR",
            "MDM_PORT_5555_TCP_PORT",
            "MDM_SERVER_SERVICE_HOST",
            "MDM_SERVER_PORT_80_TCP_PROTO",
        ];
        for name in services {
            assert_eq!(check(&[(name, "10.0.0.1")]).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn a_services_address_under_a_flags_name_is_a_warning() {
        let warning = check(&[("MDM_PORT", "tcp://10.0.0.1:5555")])
            .unwrap()
            .unwrap();
        assert!(
            warning.contains("MDM_PORT=tcp://10.0.0.1:5555 is not read"),
            "{warning}"
        );
        assert!(
            check(&[("MDM_HTTP_PORT", "tcp://10.0.0.1:80")])
                .unwrap()
                .is_some()
        );
    }
}
