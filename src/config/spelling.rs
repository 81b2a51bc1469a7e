//! The older spelling of flags, that of the servers which MDM replaces, turned into ours before they are parsed.
//!
//! ```text
//! -num_worker=4  -port 5555  –run_script_dir=models   ->   --num-worker=4  --port 5555  --run-script-dir=models
//! ```

use std::ffi::{OsStr, OsString};

/// What word processors put in place of a dash: hyphens, figure dash, en dash, em dash, horizontal bar, minus.
const DASHES: [char; 8] = [
    '-', '\u{2010}', '\u{2011}', '\u{2012}', '\u{2013}', '\u{2014}', '\u{2015}', '\u{2212}',
];

/// Turns flags of the older spelling into ours: one dash or two, of any kind, and underscores.
///
/// The first argument (the program) stays as it is, and so does all that follows `--`. Left alone are `-` by itself,
/// short flags (one dash and one letter, with or without `=`), and what has no letter behind its dashes, such as `-1`.
/// A value, which is what follows `=` or is an argument by itself, is never altered. Short flags cannot be joined
/// (`-vh`): in the older spelling that is a long flag.
pub fn normalize_args(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut normal: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        if arg == "--" {
            normal.push(arg);
            normal.extend(args);
            break;
        }
        normal.push(flag(&arg).unwrap_or(arg));
    }
    normal
}

/// The argument in our spelling, if it is a long flag.
fn flag(arg: &OsStr) -> Option<OsString> {
    let bytes = arg.as_encoded_bytes();
    let end = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
    let typed = std::str::from_utf8(&bytes[..end]).ok()?;
    let name = typed.trim_start_matches(DASHES);
    let dashes = typed.strip_suffix(name)?;
    let long = name.chars().count() > 1 || dashes.chars().count() > 1;
    if dashes.is_empty()
        || dashes.chars().count() > 2
        || !long
        || !name.starts_with(char::is_alphabetic)
    {
        return None;
    }
    let mut flag = OsString::from(format!("--{}", name.replace('_', "-")));
    flag.push(tail(arg, end)?);
    Some(flag)
}

/// What follows the first `at` bytes, which are text. The rest may be a path that is not UTF-8, and is not changed.
#[cfg(unix)]
fn tail(arg: &OsStr, at: usize) -> Option<&OsStr> {
    use std::os::unix::ffi::OsStrExt;
    arg.as_bytes().get(at..).map(OsStr::from_bytes)
}

#[cfg(not(unix))]
fn tail(arg: &OsStr, at: usize) -> Option<&OsStr> {
    arg.to_str()?.get(at..).map(OsStr::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(args: &[&str]) -> Vec<String> {
        normalize_args(
            std::iter::once("program")
                .chain(args.iter().copied())
                .map(OsString::from),
        )
        .into_iter()
        .skip(1)
        .map(|arg| arg.into_string().unwrap())
        .collect()
    }

    #[test]
    fn the_manuals_own_command_line() {
        // Its first flag has an en dash, the others one dash.
        assert_eq!(
            normal(&[
                "\u{2013}num_worker=4",
                "-device_map=-1",
                "-port=5555",
                "-port_out=5556",
                "-run_script_dir=/workspace/my_models/-old_ones"
            ]),
            [
                "--num-worker=4",
                "--device-map=-1",
                "--port=5555",
                "--port-out=5556",
                "--run-script-dir=/workspace/my_models/-old_ones"
            ]
        );
    }

    #[test]
    fn any_dash_and_either_separator() {
        assert_eq!(normal(&["\u{2014}num_worker", "4"]), ["--num-worker", "4"]);
        assert_eq!(
            normal(&["\u{2013}\u{2013}num_worker=4"]),
            ["--num-worker=4"]
        );
        assert_eq!(normal(&["\u{2212}port=1"]), ["--port=1"]);
        assert_eq!(
            normal(&["--num_worker=4", "--port-out=1"]),
            ["--num-worker=4", "--port-out=1"]
        );
        assert_eq!(normal(&["-verbose"]), ["--verbose"]);
    }

    #[test]
    fn values_and_short_flags_stay() {
        let same = [
            "-h",
            "-V",
            "-v",
            "-v=true",
            "-",
            "-1",
            "-1,0",
            "\u{2013}1",
            "0,1",
            "a_b",
            "models/my_model",
            "",
            "---x_y",
            "=-a_b",
        ];
        assert_eq!(normal(&same), same);
        assert_eq!(
            normal(&["--preload=my_model=a_b", "-preload", "my_model"]),
            ["--preload=my_model=a_b", "--preload", "my_model"]
        );
        assert_eq!(normal(&["-a_b", "--", "-a_b"]), ["--a-b", "--", "-a_b"]);
    }

    #[test]
    fn the_program_is_not_a_flag() {
        assert_eq!(
            normalize_args([OsString::from("-my_program")]),
            ["-my_program"]
        );
        assert!(normalize_args([]).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_survives() {
        use std::os::unix::ffi::OsStringExt;
        let typed = OsString::from_vec(b"-run_script_dir=\xff_x".to_vec());
        let expected = OsString::from_vec(b"--run-script-dir=\xff_x".to_vec());
        assert_eq!(
            normalize_args(["p".into(), typed]),
            [OsString::from("p"), expected]
        );
        let value = OsString::from_vec(b"\xff_x".to_vec());
        assert_eq!(
            normalize_args(["p".into(), value.clone()]),
            [OsString::from("p"), value]
        );
    }
}
