//! What the README and the guide tell people to type works, and prints what they say.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::common::{PATIENCE, command, models, wait, within};
use crate::curl;

/// Every page with commands. A page is run from its first to its last command, in a folder of its own.
const PAGES: [(&str, &str); 14] = [
    ("README.md", include_str!("../../README.md")),
    ("proxies.md", include_str!("../../src/guide/proxies.md")),
    ("life.md", include_str!("../../src/guide/life.md")),
    (
        "first_model.md",
        include_str!("../../src/guide/first_model.md"),
    ),
    ("plugins.md", include_str!("../../src/guide/plugins.md")),
    ("clients.md", include_str!("../../src/guide/clients.md")),
    ("python.md", include_str!("../../src/guide/python.md")),
    ("doors.md", include_str!("../../src/guide/doors.md")),
    (
        "deployment.md",
        include_str!("../../src/guide/deployment.md"),
    ),
    ("tuning.md", include_str!("../../src/guide/tuning.md")),
    ("metrics.md", include_str!("../../src/guide/metrics.md")),
    (
        "benchmarking.md",
        include_str!("../../src/guide/benchmarking.md"),
    ),
    ("errors.md", include_str!("../../src/guide/errors.md")),
    (
        "contributing.md",
        include_str!("../../src/guide/contributing.md"),
    ),
];

pub fn page(name: &str) -> &'static str {
    let found = PAGES.iter().find(|(own, _)| *own == name);
    found.expect("one of the pages").1
}

/// What is typed on a page, and the lines that it prints.
pub struct Typed {
    pub line: &'static str,
    pub printed: Vec<&'static str>,
}

/// The commands of the console blocks.
pub fn typed(page: &'static str) -> Vec<Typed> {
    let mut all: Vec<Typed> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a closed block");
        for line in block.lines() {
            if let Some(line) = line.strip_prefix("$ ") {
                all.push(Typed {
                    line,
                    printed: Vec::new(),
                });
            } else {
                let last = all.last_mut().expect("a command before what it prints");
                last.printed.push(line);
            }
        }
    }
    all
}

/// Numbers differ from run to run.
fn without_numbers(line: &str) -> String {
    let words = line.split(|c: char| c.is_ascii_digit());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("#")
}

/// The server of a page, ended with the test however that ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a page's commands over a folder with one model, `NAME`. The page says what a file holds by `cat`: that is what
/// gets written. True if the page has a server, which has to be stopped on it.
fn run(page: &'static str, dir: &Path) -> bool {
    let mut server: Option<Running> = None;
    let (mut port, mut http_port) = (String::new(), String::new());
    for Typed { line, printed } in typed(page) {
        let own = line.replace("NAME", "digits");
        let mut words = own.split_whitespace();
        let name = words.next().expect("a command");
        if name == "cat" {
            let text = printed.join("\n").replace("NAME", "digits");
            let file = dir.join(words.next().expect("a file"));
            std::fs::write(file, text + "\n").expect("a file");
            continue;
        }
        if name == "curl" {
            let got = curl::run(&own, &http_port, dir);
            let expected: Vec<String> = printed
                .iter()
                .map(|l| l.replace("NAME", "digits"))
                .collect();
            let same = expected.is_empty() || got.lines().eq(expected.iter().map(String::as_str));
            assert!(same, "{own} printed {got}");
            continue;
        }
        if !name.starts_with("mdm-") {
            continue; // a make that these tests are run by
        }
        let mut command = command(name);
        // A free port in place of the usual one, which somebody may be using.
        let words = words.map(|word| match word {
            "5555" => &*port,
            "8000" => "0",
            word => word,
        });
        command.current_dir(dir).args(words).stdin(Stdio::null());
        if name == "mdm-server-start" {
            command.args(["--port", "0", "--port-out", "0"]);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().expect("it runs");
            let stdout = child.stdout.take().expect("stdout");
            let mut ready = String::new();
            BufReader::new(stdout).read_line(&mut ready).expect("text");
            server = Some(Running(child));
            let ready = ready.trim_end();
            assert_eq!(
                without_numbers(ready),
                without_numbers(printed[0]),
                "{line}"
            );
            let word = |name: &str| ready.split(' ').find_map(|word| word.strip_prefix(name));
            word("port=").expect("a port").clone_into(&mut port);
            word("http_port=")
                .unwrap_or_default()
                .clone_into(&mut http_port);
        } else {
            let asks_no_server =
                own.starts_with("mdm-model check") || own.starts_with("mdm-model list");
            if !asks_no_server && !own.contains("--port") {
                command.args(["--port", &port]);
            }
            let output = command.output().expect("it runs");
            assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        }
    }
    let Some(mut server) = server else {
        return false;
    };
    assert_eq!(wait(&mut server.0).code(), Some(0), "terminated as it says");
    true
}

/// A folder with the model of the digits, and rows for it.
fn run_in_a_folder(name: &'static str) {
    within(PATIENCE, move || {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
        let model = std::fs::read(digits.join("digits.onnx")).unwrap();
        let dir = models(&[("digits.onnx", model)]);
        std::fs::copy(digits.join("images.npy"), dir.path().join("rows.npy")).unwrap();
        assert!(run(page(name), dir.path()), "no server on {name}");
    });
}

#[test]
fn the_commands_of_the_readme_run_and_print_what_it_says() {
    run_in_a_folder("README.md");
}

#[test]
fn the_commands_of_the_guide_about_proxies_run() {
    run_in_a_folder("proxies.md");
}

#[test]
fn the_commands_of_the_guide_about_the_life_of_a_model_run() {
    run_in_a_folder("life.md");
}

#[test]
fn the_commands_of_the_guide_about_calling_run() {
    run_in_a_folder("clients.md");
}

#[cfg(feature = "gateway")]
#[test]
fn the_commands_of_the_guide_about_doors_run() {
    run_in_a_folder("doors.md");
}

#[test]
fn the_commands_of_the_guide_about_deployment_run() {
    run_in_a_folder("deployment.md");
}

#[test]
fn the_commands_of_the_guide_about_benchmarking_run() {
    run_in_a_folder("benchmarking.md");
}

/// A page with commands that nobody runs would be wrong one day.
#[test]
fn every_page_with_commands_is_run_by_a_test() {
    let run = [
        "README.md",
        "proxies.md",
        "life.md",
        "first_model.md", // by `first_model.rs`
        "clients.md",
        "doors.md",
        "deployment.md",
        "benchmarking.md",
    ];
    for (name, page) in PAGES {
        let has = typed(page)
            .iter()
            .any(|typed| typed.line.starts_with("mdm-"));
        assert_eq!(has, run.contains(&name), "{name}");
    }
}

/// A flag that the README or the guide names is one of a command of ours.
#[test]
fn the_flags_of_the_readme_and_the_guide_are_flags() {
    within(PATIENCE, || {
        let commands = ["start", "terminate", "status"].map(|name| format!("mdm-server-{name}"));
        let mut help = String::new();
        for name in commands
            .iter()
            .map(String::as_str)
            .chain(["mdm-infer", "mdm-bench"])
        {
            let output = command(name).arg("--help").output().expect("it runs");
            help += &String::from_utf8(output.stdout).expect("text");
        }
        for order in ["new", "check", "list", "load", "unload"] {
            let output = command("mdm-model").args([order, "--help"]).output();
            help += &String::from_utf8(output.expect("it runs").stdout).expect("text");
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c == '-';
        let cargos = [
            "--path",
            "--open",
            "--release",
            "--locked",
            "--lib",
            "--test",
            "--no-default-features",
            "--features",
            "--find-links", // pip's
        ];
        let mut known = 0;
        for (name, page) in PAGES {
            for (start, _) in page.match_indices("--") {
                let rest = &page[start..];
                let flag = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
                let begins = page[..start].ends_with([' ', '`', '|', '(', '\n', '[']);
                if !begins || flag.trim_matches('-').is_empty() || cargos.contains(&flag) {
                    continue;
                }
                let is_there = help.split(|c| !is_word(c)).any(|word| word == flag);
                assert!(is_there, "{flag} on {name} is no flag of our commands");
                known += 1;
            }
        }
        assert!(known > 60, "the flags are not found: {known}");
    });
}

/// A page that moved, or was never written, leaves a link behind that leads nowhere.
#[test]
fn the_links_of_the_readme_and_the_guide_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut followed = 0;
    for (name, page) in PAGES {
        let folder = match name {
            "README.md" => root.to_owned(),
            _ => root.join("src/guide"),
        };
        let inline = page
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'));
        let below = page.lines().filter(|line| line.starts_with('['));
        let below = below.filter_map(|line| line.split_once("]: "));
        let targets = inline
            .map(|(target, _)| target)
            .chain(below.map(|(_, target)| target));
        for target in targets {
            assert!(folder.join(target).exists(), "{target} on {name}");
            followed += 1;
        }
    }
    assert!(followed > 20, "the links are not found: {followed}");
}

/// The bug: the first page of the documentation told of files that had long been merged or renamed.
#[test]
fn the_files_that_the_crates_page_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = include_str!("../../src/lib.rs");
    let page = page.lines().filter(|line| line.starts_with("//!"));
    // Two rows of the map name files of the directory that the row is about.
    let folders = ["src", "src/wire"].map(|folder| root.join(folder));
    let mut named = 0;
    for line in page {
        for word in line.split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                let is_there = folders.iter().any(|folder| folder.join(word).exists());
                assert!(is_there, "{word}, in: {line}");
                named += 1;
            }
        }
    }
    assert!(named > 20, "the files are not found: {named}");
}
