//! What the README tells people to type works, and prints what it says.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::common::{PATIENCE, command, models, wait, within};

const README: &str = include_str!("../../README.md");

/// The console blocks: the lines of each.
fn blocks() -> Vec<Vec<&'static str>> {
    let mut blocks = README.split("```console\n").skip(1);
    let mut all = Vec::new();
    for block in blocks.by_ref() {
        let (block, _) = block.split_once("```").expect("a closed block");
        all.push(block.lines().collect());
    }
    all
}

/// Numbers differ from run to run.
fn without_numbers(line: &str) -> String {
    let words = line.split(|c: char| c.is_ascii_digit());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("#")
}

/// The server of the README, ended with the test however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_commands_of_the_readme_run_and_print_what_it_says() {
    within(PATIENCE, || {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
        let model = std::fs::read(digits.join("digits.onnx")).unwrap();
        let dir = models(&[("digits.onnx", model)]);
        std::fs::copy(digits.join("images.npy"), dir.path().join("rows.npy")).unwrap();
        let mut server: Option<Running> = None;
        let mut port = String::new();
        let mut ran = 0;
        for block in blocks() {
            for (index, line) in block.iter().enumerate() {
                let Some(typed) = line.strip_prefix("$ mdm-") else {
                    continue; // output, or a make that these tests are run by
                };
                let typed = typed.replace("NAME", "digits");
                let mut words = typed.split_whitespace();
                let name = format!("mdm-{}", words.next().expect("a command"));
                let mut command = command(&name);
                // A free port in place of the usual one, which somebody may be using.
                let words = words.map(|word| if word == "5555" { &*port } else { word });
                command
                    .current_dir(dir.path())
                    .args(words)
                    .stdin(Stdio::null());
                if name == "mdm-server-start" {
                    command.args(["--port", "0", "--port-out", "0"]);
                    command.stdout(Stdio::piped()).stderr(Stdio::null());
                    let mut child = command.spawn().expect("it runs");
                    let stdout = child.stdout.take().expect("stdout");
                    let mut ready = String::new();
                    BufReader::new(stdout).read_line(&mut ready).expect("text");
                    server = Some(Running(child));
                    assert_eq!(
                        without_numbers(ready.trim_end()),
                        without_numbers(block[index + 1])
                    );
                    let word = ready.split(' ').find_map(|word| word.strip_prefix("port="));
                    word.expect("a port").clone_into(&mut port);
                } else {
                    if !typed.contains("--port") {
                        command.args(["--port", &port]);
                    }
                    let output = command.output().expect("it runs");
                    assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
                }
                ran += 1;
            }
        }
        assert!(ran >= 4, "the README's commands are not found: {ran}");
        assert!(dir.path().join("results.npz").exists());
        let mut server = server.expect("a server");
        assert_eq!(wait(&mut server.0).code(), Some(0), "terminated as it says");
    });
}

/// A flag that the README names is one of a command of ours.
#[test]
fn the_flags_of_the_readme_are_flags() {
    within(PATIENCE, || {
        let commands = ["start", "terminate", "status"].map(|name| format!("mdm-server-{name}"));
        let mut help = String::new();
        for name in commands.iter().map(String::as_str).chain(["mdm-infer"]) {
            let output = command(name).arg("--help").output().expect("it runs");
            help += &String::from_utf8(output.stdout).expect("text");
        }
        for order in ["check", "list", "load", "unload"] {
            let output = command("mdm-model").args([order, "--help"]).output();
            help += &String::from_utf8(output.expect("it runs").stdout).expect("text");
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c == '-';
        let cargos = ["--path", "--open", "--release", "--locked"];
        let mut known = 0;
        for (start, _) in README.match_indices("--") {
            let rest = &README[start..];
            let flag = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
            let begins = README[..start].ends_with([' ', '`', '|', '(', '\n']);
            if !begins || flag.trim_matches('-').is_empty() || cargos.contains(&flag) {
                continue;
            }
            assert!(help.contains(flag), "{flag} is no flag of our commands");
            known += 1;
        }
        assert!(known > 20, "the README's flags are not found: {known}");
    });
}
