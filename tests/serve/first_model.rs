//! A newcomer's first ten minutes, as the guide's page and the README tell them: from an empty folder to an answer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mdm::DataType;
use serde_json::json;
use tempfile::TempDir;

use crate::built;
use crate::common::within::LIMIT;
use crate::common::{PATIENCE, command, onnx, wait, within};
use crate::readme::{Running, Typed, page, typed};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The commands below one of the page's headings.
fn section(heading: &str) -> Vec<Typed> {
    let mut sections = page("first_model.md").split("\n## ");
    let section = sections.find(|section| section.starts_with(heading));
    typed(section.expect("a section of that name"))
}

/// Cargo for a crate of the newcomer's: it has what the tests have, so that nothing is fetched and little is built. A build
/// for speed takes time that a test does not have.
fn cargo(folder: &Path, words: &[&str]) -> Command {
    let lock = folder.join("Cargo.lock");
    if !lock.exists() {
        fs::copy(Path::new(ROOT).join("Cargo.lock"), lock).expect("a lock file");
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let program = std::env::current_exe().expect("a program");
    let target = program
        .ancestors()
        .find(|folder| folder.join("debug/deps").is_dir());
    cargo
        .current_dir(folder)
        .args(words.iter().filter(|word| **word != "--release"))
        .arg("--offline")
        // Made for another target or profile, the tests lie elsewhere: then so does this.
        .env("CARGO_TARGET_DIR", target.unwrap_or(folder))
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .stdin(Stdio::null());
    cargo
}

/// A server on free ports, and the one that takes requests.
fn serve(mut command: Command) -> (Running, String) {
    command.args(["--port", "0", "--port-out", "0", "--logger", "log.txt"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it runs");
    let stdout = child.stdout.take().expect("stdout");
    let running = Running(child);
    let mut ready = String::new();
    BufReader::new(stdout).read_line(&mut ready).expect("text");
    let mut words = ready
        .split(' ')
        .filter_map(|word| word.strip_prefix("port="));
    (running, words.next().expect("a port").to_owned())
}

/// Runs commands as the page prints them, from an empty folder to an answer. `change` is made to each line.
fn follow(dir: &Path, commands: &[Typed], change: impl Fn(&str) -> String) {
    assert!(commands.len() <= 6, "more than six commands");
    let mut folder = dir.to_owned();
    let mut server: Option<Running> = None;
    let mut port = String::new();
    let mut answered = false;
    for Typed { line, printed } in commands {
        let line = change(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = match words[0] {
            "cd" => {
                folder.push(words[1]);
                continue;
            }
            "cargo" => cargo(&folder, &words[1..]),
            "cc" => {
                let mut command = Command::new("cc");
                // What is written has no warnings either.
                command
                    .args(&words[1..])
                    .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
                command
            }
            name => {
                let mut command = command(name);
                let words = words[1..]
                    .iter()
                    .map(|word| if *word == "5555" { &*port } else { *word });
                command.args(words).stdin(Stdio::null());
                command
            }
        };
        command.current_dir(&folder);
        if words[0] == "mdm-server-start" {
            let (child, its_port) = serve(command);
            (server, port) = (Some(child), its_port);
            continue;
        }
        if words[0] == "mdm-infer" {
            command.args(["--port", &port]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        if words[0] == "mdm-infer" {
            let said = String::from_utf8_lossy(&output.stdout);
            let mut rows = printed.iter();
            assert!(
                rows.all(|row| said.lines().any(|own| own == *row)),
                "{said}"
            );
            assert!(said.contains("\n  1: "), "two rows came back: {said}");
            answered = true;
        }
    }
    assert!(answered, "nothing was asked");
    let mut server = server.expect("a server");
    assert!(wait(&mut server.0).success(), "terminated as the page says");
}

/// An empty folder, but for an ONNX file where one is needed.
fn empty() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn with_onnx() -> TempDir {
    let dir = empty();
    let digits = Path::new(ROOT).join("examples/digits/digits.onnx");
    fs::copy(digits, dir.path().join("digits.onnx")).expect("a copy");
    dir
}

/// What a page says of the place of the checkout, and of the ONNX file.
fn here(line: &str) -> String {
    line.replace("../mdm", ROOT).replace("NAME", "digits")
}

/// All that is in Rust one after the other: cargo does one thing at a time in a folder.
#[test]
fn a_first_model_in_rust_serves_after_six_commands_with_and_without_an_onnx_file() {
    within(LIMIT, || {
        let dir = empty();
        follow(dir.path(), &section("In Rust"), here);
        let model = dir.path().join("shout");
        let tested = cargo(&model, &["test"]).output().unwrap();
        let said = String::from_utf8_lossy(&tested.stdout);
        assert!(
            tested.status.success() && said.contains("2 passed"),
            "{tested:?}"
        );
        assert!(
            !String::from_utf8_lossy(&tested.stderr).contains("warning"),
            "{tested:?}"
        );

        what_is_changed_is_served(&model);

        let dir = with_onnx();
        follow(dir.path(), &section("Around an ONNX file"), here);
        let tested = cargo(&dir.path().join("shapes"), &["test"])
            .output()
            .unwrap();
        assert!(tested.status.success(), "{tested:?}");

        the_readmes_plugin_builds();
        the_pages_session_knows_the_digits();
    });
}

/// The page's line for a model that was changed while a server goes on.
fn what_is_changed_is_served(model: &Path) {
    let mut start = command("mdm-server-start");
    start
        .args(["--run-script-dir", "models"])
        .current_dir(model);
    let (_server, port) = serve(start);
    let infer = || {
        let mut infer = command("mdm-infer");
        infer.args(["--model", "shout", "--input", "texts.txt", "--port", &port]);
        let output = infer.current_dir(model).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(infer().contains("  0: \"HELLO!\""));
    let source = fs::read_to_string(model.join("src/lib.rs")).unwrap();
    let changed = source.replace("text.to_uppercase()", "text.repeat(2)");
    fs::write(model.join("src/lib.rs"), changed).unwrap();
    let mut lines = page("first_model.md").lines();
    let line = lines.find(|line| line.contains("&& mdm-model reload"));
    for part in line.expect("the page's line").split(" && ") {
        let words: Vec<&str> = part.split_whitespace().collect();
        let mut command = match words[0] {
            "cargo" => cargo(model, &words[1..]),
            name => {
                let mut command = command(name);
                command.args(&words[1..]).args(["--port", &port]);
                command
            }
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{part}: {output:?}");
    }
    assert!(
        infer().contains("  0: \"hellohello!\""),
        "the old one goes on"
    );
}

/// The page's plugin around the net of `examples/digits`, with pictures of that example as it wants them: bytes.
fn the_pages_session_knows_the_digits() {
    let dir = empty();
    let (_, section) = page("first_model.md")
        .split_once("## A session, and errors about rows")
        .expect("the section");
    let (_, block) = section.split_once("```rust\n").expect("a block");
    let (code, _) = block.split_once("\n# fn main").expect("a test behind it");
    let manifest = format!(
        "[package]\nname = \"pages_digits\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nserde_json = \"1\"\n\
         mdm = {{ path = {ROOT:?}, default-features = false, features = [\"plugin\"] }}\n"
    );
    fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    let code = format!("{code}\nmdm::export_model!(Digits);\n");
    fs::write(dir.path().join("src/lib.rs"), code).unwrap();
    let output = cargo(dir.path(), &["build"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let examples = Path::new(ROOT).join("examples/digits");
    let models = dir.path().join("models");
    fs::create_dir(&models).unwrap();
    let library = "libpages_digits.so";
    fs::copy(built::profile().join(library), models.join(library)).unwrap();
    fs::copy(examples.join("digits.onnx"), models.join("digits.onnx")).unwrap();
    let proxy = json!({"mdm": 1, "plugin": library, "state": {"least": 0.5}});
    fs::write(models.join("reader.proxy"), proxy.to_string()).unwrap();
    let mut start = command("mdm-server-start");
    start
        .args(["--run-script-dir", "models"])
        .current_dir(dir.path());
    let (_server, port) = serve(start);

    let read = |name| npyz::NpyFile::new(fs::File::open(examples.join(name)).unwrap()).unwrap();
    let images: Vec<f32> = read("images.npy").into_vec().unwrap();
    let labels: Vec<i64> = read("labels.npy").into_vec().unwrap();
    let pixels: Vec<u8> = images
        .iter()
        .map(|&x| (x * 255.0 / 16.0).round() as u8)
        .collect();
    let pixels = mdm::ndarray::Array2::from_shape_vec((labels.len(), 64), pixels).unwrap();
    let client = mdm::Client::connect(&format!("tcp://localhost:{port}")).unwrap();
    let response = client.infer(&pixels, "reader").unwrap();
    let read = response.array1::<i64>("label").unwrap();
    let right = read.iter().zip(&labels).filter(|(a, b)| a == b).count();
    assert!(right * 10 > labels.len() * 9, "{right} of {}", labels.len());
}

/// The crate that the README has in its blocks, as somebody who types it has it.
fn the_readmes_plugin_builds() {
    let dir = empty();
    let (_, section) = page("README.md")
        .split_once("## Write a model")
        .expect("the section");
    let block = |language: &str| {
        let (_, rest) = section
            .split_once(&format!("```{language}\n"))
            .expect("a block");
        rest.split_once("```").expect("a closed block").0
    };
    let package = "[package]\nname = \"by_hand\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    fs::write(
        dir.path().join("Cargo.toml"),
        package.to_owned() + &here(block("toml")),
    )
    .unwrap();
    fs::create_dir_all(dir.path().join("src/bin")).unwrap();
    fs::write(dir.path().join("src/lib.rs"), block("rust")).unwrap();
    // A program of its own makes the model that is in the library, and dumps it.
    let program = r#"fn main() -> mdm::Result<()> {
        let shout = by_hand::Shout { mark: "?".to_owned() };
        mdm::plugin::dump(&shout, "libby_hand.so", "by_hand.proxy").map(|_| ())
    }"#;
    fs::write(dir.path().join("src/bin/by_hand_dump.rs"), program).unwrap();
    let output = cargo(dir.path(), &["run"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let proxy = fs::read_to_string(dir.path().join("by_hand.proxy")).unwrap();
    assert!(
        proxy.contains(r#""mark": "?""#) && proxy.contains("libby_hand.so"),
        "{proxy}"
    );
}

fn tests_itself(folder: &Path) {
    let compiled = Command::new("cc")
        .args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fsanitize=undefined",
        ])
        .args(["-o", "test", "test.c"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    let tested = Command::new(folder.join("test")).output().unwrap();
    assert!(
        tested.status.success() && tested.stdout == b"ok\n",
        "{tested:?}"
    );
}

#[test]
fn a_first_model_in_c_serves_after_six_commands() {
    within(PATIENCE, || {
        let dir = empty();
        follow(dir.path(), &section("In C"), here);
        tests_itself(&dir.path().join("shout"));
    });
}

/// The page says of it: as in Rust, with the third line of C.
#[test]
fn a_first_model_in_c_around_an_onnx_file_serves_after_six_commands() {
    within(PATIENCE, || {
        let dir = with_onnx();
        let build = section("In C")[2].line.replace("shout", "shapes");
        follow(
            dir.path(),
            &section("Around an ONNX file"),
            |line| match line {
                line if line.starts_with("cargo") => build.clone(),
                line => here(&line.replace("--plugin rust --mdm ../mdm", "--plugin c")),
            },
        );
        tests_itself(&dir.path().join("shapes"));
    });
}

/// The guide's line for the sample in C, from the checkout that it names files of.
#[test]
fn the_line_in_c_of_the_page_on_plugins_builds_a_plugin() {
    within(PATIENCE, || {
        let dir = empty();
        let library = dir.path().join("libsample.so");
        let mut lines = page("plugins.md").lines();
        let line = lines
            .find(|line| line.starts_with("cc "))
            .expect("a line in C");
        let line = line.replace("libsample.so", &library.display().to_string());
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(ROOT)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(library.is_file());
    });
}

#[test]
fn new_says_what_is_wrong_and_leaves_nothing_behind() {
    within(PATIENCE, || {
        let dir = empty();
        fs::create_dir(dir.path().join("there")).unwrap();
        fs::write(dir.path().join("no.onnx"), "no model").unwrap();
        let refused = |words: &[&str], code: i32, said: &str| {
            let output = command("mdm-model")
                .arg("new")
                .args(words)
                .current_dir(dir.path())
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
            assert!(
                error.contains(said) && error.lines().count() == 1,
                "{words:?}: {error}"
            );
        };
        refused(&["there", "--plugin", "c"], 1, "there is there already");
        refused(&["fn", "--plugin", "rust"], 2, "does not use itself");
        refused(&["a/b", "--plugin", "c"], 2, "a-z");
        refused(&["m", "--plugin", "python"], 2, "rust");
        refused(&["m"], 2, "--plugin");
        refused(
            &["m", "--plugin", "rust", "--mdm", "there"],
            1,
            "Cargo.toml of the crate mdm",
        );
        refused(
            &["m", "--plugin", "c", "--mdm", ROOT],
            1,
            "mdm_model.h alone",
        );
        refused(
            &["m", "--plugin", "c", "--onnx", "gone.onnx"],
            1,
            "gone.onnx",
        );
        refused(&["m", "--plugin", "c", "--onnx", "no.onnx"], 1, "no.onnx");
        let mut left: Vec<PathBuf> = dir
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        left.sort();
        assert_eq!(left, [dir.path().join("no.onnx"), dir.path().join("there")]);
    });
}

/// Where no checkout is above the command, as after `pip install`, it asks for one; an address is taken as it is.
#[test]
fn new_from_an_installed_command_asks_where_the_crate_lies() {
    within(PATIENCE, || {
        let dir = empty();
        let installed = dir.path().join("mdm-model");
        fs::copy(command("mdm-model").get_program(), &installed).unwrap();
        let new = |words: &[&str]| {
            let mut command = Command::new(&installed);
            command.args(["new", "m", "--plugin", "rust"]).args(words);
            command.current_dir(dir.path()).output().unwrap()
        };
        let output = new(&[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains("on no registry") && error.contains("--mdm"),
            "{output:?}"
        );
        let output = new(&["--mdm", "https://example.org/mdm.git"]);
        assert!(output.status.success(), "{output:?}");
        let manifest = fs::read_to_string(dir.path().join("m/Cargo.toml")).unwrap();
        let line = "mdm = { git = \"https://example.org/mdm.git\", default-features = false, features = [\"plugin\"] }";
        assert!(manifest.contains(line), "{manifest}");
    });
}

/// What cannot be written, or was perhaps not meant, is said with the next steps; no step names a file that is not there.
#[test]
fn new_says_what_it_could_not_write_and_how_a_constant_dimension_is_served() {
    within(PATIENCE, || {
        let dir = empty();
        let onnx = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
        onnx("large.onnx", onnx::echo(DataType::Fp32, &[3, 1024, 1024]));
        onnx("four.onnx", onnx::fixed_batch(4));
        let new = |name: &str, words: &[&str]| {
            let mut command = command("mdm-model");
            command.args(["new", name]).args(words);
            let output = command.current_dir(dir.path()).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(&output.stdout), text(&output.stderr))
        };
        let (said, error) = new("large", &["--plugin", "c", "--onnx", "large.onnx"]);
        assert!(
            said.contains("--input FILE ") && !said.contains("rows."),
            "{said}{error}"
        );
        let (said, error) = new("four", &["--plugin", "c", "--onnx", "four.onnx"]);
        let note = said
            .lines()
            .find(|line| line.starts_with("note: "))
            .unwrap_or(&error);
        assert!(
            note.contains("where no row depends on another") && note.contains("\"batch\":4"),
            "{note}"
        );
        let (_, error) = new(
            "m",
            &["--plugin", "rust", "--mdm", "git@example.org:x/mdm.git"],
        );
        assert!(error.contains("ssh://git@example.org/x/mdm.git"), "{error}");
        assert!(!dir.path().join("m").exists());
    });
}
