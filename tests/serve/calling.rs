//! What a program's author meets first: the example on `Client`, the one in `examples/`, and the compiler's words for
//! data that is none.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::built;
use crate::common::{PATIENCE, Server, models, within};

// The example on `mdm::Client`, as it stands there.
include!("../../src/client/example.rs");

fn digits() -> Server {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits/digits.onnx");
    let model = std::fs::read(model).expect("the model of the example");
    Server::start(models(&[("digits.onnx", model)]), &["--num-worker", "2"])
}

#[test]
fn the_example_on_client_runs_against_a_server() {
    within(PATIENCE, || {
        let server = digits();
        let labels = labels(&server.address(), &Array2::zeros((1797, 64))).unwrap();
        assert_eq!(labels.len(), 1797);
        assert!(labels.iter().all(|label| *label == labels[0]), "{labels}");
    });
}

#[test]
fn the_client_in_all_its_ways_runs_and_tells_what_goes_wrong_in_its_threads() {
    within(PATIENCE, || {
        let server = digits();
        let run = |address: &str| {
            let output = Command::new(built::program("client")).arg(address).output();
            let output = output.expect("the example runs");
            let text = |bytes| String::from_utf8(bytes).expect("text");
            (
                output.status.success(),
                text(output.stdout),
                text(output.stderr),
            )
        };
        let (ended_well, told, said) = run(&server.address());
        assert!(ended_well, "{said}");
        let of_threads = told.matches("10 rows in a thread").count();
        assert_eq!(of_threads, 4, "{told}");
        let empty = Server::start(models(&[]), &[]);
        let (ended_well, _, said) = run(&empty.address());
        assert!(!ended_well && said.contains("NOT_FOUND: "), "{said}");
    });
}

/// The builds of this crate that lie beside the tests, the newest first. Some have fewer features.
fn libraries() -> Vec<PathBuf> {
    let deps = built::profile().join("deps");
    let libraries = std::fs::read_dir(&deps).expect("a folder").flatten();
    let libraries = libraries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libmdm-") && name.ends_with(".rlib")
    });
    let built_at = |path: &PathBuf| {
        let modified = path.metadata().and_then(|data| data.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let mut libraries: Vec<PathBuf> = libraries.collect();
    libraries.sort_by_key(|library| Reverse(built_at(library)));
    libraries
}

/// An array of another version of ndarray is a type that looks right and is refused: the compiler says what to take.
#[test]
fn data_that_is_no_input_is_told_which_version_of_ndarray_to_take() {
    within(PATIENCE, || {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("caller.rs");
        let source = "struct ArrayOfAnotherVersion;\n\
            fn main() { let _ = mdm::Client::connect(\"h:1\").unwrap().infer(ArrayOfAnotherVersion, \"m\"); }\n";
        std::fs::write(&program, source).unwrap();
        let compile = |library: &PathBuf| {
            let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            Command::new(compiler)
                .args(["--edition", "2024", "--emit", "metadata", "--out-dir"])
                .arg(dir.path())
                .arg("-L")
                .arg(format!(
                    "dependency={}",
                    built::profile().join("deps").display()
                ))
                .arg("--extern")
                .arg(format!("mdm={}", library.display()))
                .arg(&program)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output()
                .expect("the compiler runs")
        };
        let libraries = libraries();
        let output = libraries
            .iter()
            .map(compile)
            .find(|output| {
                !String::from_utf8_lossy(&output.stderr).contains("cannot find `Client`")
            })
            .expect("a build with the client");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        for words in [
            "`ArrayOfAnotherVersion` cannot become a request's inputs",
            "ndarray = \"0.17\"",
            "use mdm::ndarray;",
            "JsonRows",
        ] {
            assert!(said.contains(words), "{words:?} is not in: {said}");
        }
    });
}
