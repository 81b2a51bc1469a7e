//! Switches off the engine's telemetry, before its library is opened.
//!
//! From 1.29 on the released libraries of ONNX Runtime tell their makers of each process, session and error, and keep a
//! number for the machine in the home folder. The interface's own switch works only once an environment exists, which
//! has told of the process by then; what counts is a variable that is set before the library is opened
//! (<https://github.com/microsoft/onnxruntime/pull/29843>). A process cannot safely change its variables while other
//! threads may read them, so it starts itself anew, before it has done anything else.

use std::ffi::OsStr;

/// Set to 1 it switches the engine's reports off. Whoever sets it to something else decides so.
const SWITCH: &str = "ORT_DISABLE_TELEMETRY";

/// Starts this program anew with the engine's reports switched off, unless the variable is set. To be called first in
/// `main`: it returns only if there was nothing to do, or no way to do it.
pub fn without_telemetry() {
    if std::env::var_os(SWITCH).is_none() {
        start_anew(SWITCH, OsStr::new("1"));
    }
}

#[cfg(unix)]
fn start_anew(name: &str, value: &OsStr) {
    use std::os::unix::process::CommandExt;

    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(own_name) = args.next() {
        command.arg0(own_name);
    }
    // exec keeps the process's id and open files. It returns only if it fails; then serving goes on, and Engine::load
    // still switches telemetry off by the engine's own setting.
    let _ = command.args(args).env(name, value).exec();
}

#[cfg(not(unix))]
fn start_anew(_name: &str, _value: &OsStr) {}
