//! The C interface against a plugin in C, `tests/plugins/sample.c`: each right way, and each wrong one. They need a C
//! compiler; `make test-valgrind` runs them under valgrind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::call::InferFailure;
use super::{EngineSession, InferCall, Instance, Library, Plugin, Services};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Member, OnBadRow, Params, Run};
use crate::signature::Signature;
use crate::tensor::{Batch, Data, DataType, Tensor};

/// Builds the sample plugin.
fn build(to: &Path, flags: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(compiler)
        .args([
            "-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-shared", "-fPIC",
        ])
        .args(["-fvisibility=hidden", "-DMDM_PLUGIN_BUILD", "-I"])
        .arg(root.join("src/model"))
        .args(flags)
        .arg("-o")
        .arg(to)
        .arg(root.join("tests/plugins/sample.c"))
        .output()
        .expect("the tests need a C compiler, as libzmq does");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// A plugin that is built with these flags.
fn library(flags: &[&str]) -> Result<Arc<Library>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libsample.so");
    build(&file, flags);
    // The file may go once it is open.
    Library::open(&file)
}

fn sample() -> Arc<Library> {
    static SAMPLE: OnceLock<(TempDir, Arc<Library>)> = OnceLock::new();
    let (_, library) = SAMPLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libsample.so");
        build(&file, &[]);
        let library = Library::open(&file).unwrap();
        (folder, library)
    });
    library.clone()
}

/// A server without files or an engine: sessions double the numbers.
struct Fake;

impl Services for Fake {
    fn state_path(&self, path: &str) -> Result<PathBuf> {
        Ok(Path::new("/models").join(path))
    }
    fn param_path(&self, key: &str, path: &str) -> Result<PathBuf> {
        match path {
            "out" => Err(Error::denied(format!("{key} {path:?} leads out"))),
            path => Ok(Path::new("/models").join(path)),
        }
    }
    fn session(&self, path: &str, _options: &str) -> Result<Box<dyn EngineSession>> {
        if path == "gone.onnx" {
            return Err(Error::not_found(
                "session \"gone.onnx\": there is no such file",
            ));
        }
        Ok(Box::new(Doubles(Signature::new())))
    }
    fn device(&self) -> String {
        "cpu".to_owned()
    }
}

struct Doubles(Signature);

impl EngineSession for Doubles {
    fn signature(&self) -> &Signature {
        &self.0
    }
    fn run(&mut self, inputs: Batch) -> Result<Batch> {
        let numbers = inputs.tensor("x")?.to_vec::<i32>()?;
        let doubled: Vec<i32> = numbers.into_iter().map(|n| 2 * n).collect();
        Ok(Tensor::from_vec("x", vec![doubled.len()], doubled)?.into())
    }
}

/// A loaded sample, and how much of what it lent was given back.
struct Loaded {
    instance: Instance,
    signature: Signature,
    released: &'static AtomicU64,
    params: Params,
}

fn load_state(state: &Value) -> Result<Loaded> {
    // The plugin may give memory back after the test is over: a counter of its own for each instance, for ever.
    static COUNTERS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
    static USED: AtomicU64 = AtomicU64::new(0);
    let released = &COUNTERS[USED.fetch_add(1, Ordering::SeqCst) as usize];
    let plugin = Plugin::of(sample(), None)?;
    let mut state = state.clone();
    state["released"] = json!((released.as_ptr() as usize).to_string());
    let state = state.to_string();
    let signature = plugin.describe(&state, &Fake)?;
    Ok(Loaded {
        instance: plugin.load(&state, &Fake)?,
        signature,
        released,
        params: Params::new(),
    })
}

fn load(what: &str) -> Loaded {
    load_state(&json!({"do": what})).unwrap()
}

impl Loaded {
    fn infer(&mut self, batch: &Batch) -> Result<Batch, InferFailure> {
        let run = Run::alone(&self.params);
        let rows = match self.signature.rows {
            crate::signature::Rows::Independent => Some(batch.rows().unwrap()),
            crate::signature::Rows::Whole => None,
        };
        self.instance.infer(&InferCall {
            inputs: batch,
            signature: &self.signature,
            rows,
            run: &run,
            services: &Fake,
        })
    }

    fn numbers(&mut self, numbers: &[i32]) -> Result<Vec<i32>> {
        let outputs = self.infer(&batch(numbers)).map_err(|broken| broken.error)?;
        outputs.tensors[0].to_vec::<i32>()
    }

    fn released(&self) -> u64 {
        self.released.load(Ordering::SeqCst)
    }
}

fn batch(numbers: &[i32]) -> Batch {
    Tensor::from_slice("x", vec![numbers.len()], numbers)
        .unwrap()
        .into()
}

fn address(batch: &Batch) -> *const u8 {
    match batch.tensors[0].data() {
        Data::Fixed(bytes) => bytes.as_ptr(),
        Data::Variable { values, .. } => values.as_ptr(),
    }
}

#[test]
fn an_input_is_passed_through_without_a_copy() {
    for what in ["pass", "lent_input"] {
        let given = batch(&[1, 2, 3, 4]);
        let outputs = load(what).infer(&given).unwrap();
        assert_eq!(outputs, given);
        assert_eq!(address(&outputs), address(&given), "{what}");
    }
    let text: Batch = Tensor::from_strings("x", None, &["a", "", "bcd"])
        .unwrap()
        .into();
    let outputs = load("pass").infer(&text).unwrap();
    assert_eq!(outputs, text);
    assert_eq!(address(&outputs), address(&text));
}

#[test]
fn outputs_are_copied_adopted_or_allocated() {
    assert_eq!(load("copy").numbers(&[1, 2, 3, 4]).unwrap(), [1, 2, 3, 4]);
    assert_eq!(load("alloc").numbers(&[1, 2, 3, 4]).unwrap(), [2, 4, 6, 8]);
    let mut adopting = load("adopt");
    let outputs = adopting.infer(&batch(&[5, 6])).unwrap();
    let second = outputs.tensors[0].slice_rows(1, 1);
    let released = adopting.released;
    // The instance may go before what it lent.
    drop(adopting);
    drop(outputs);
    assert_eq!(released.load(Ordering::SeqCst), 0, "a row is still in use");
    let elsewhere = std::thread::spawn(move || second.to_vec::<i32>().unwrap());
    assert_eq!(elsewhere.join().unwrap(), [6]);
    assert_eq!(released.load(Ordering::SeqCst), 1);
}

#[test]
fn what_was_lent_is_given_back_once_whatever_comes() {
    for (what, times) in [
        ("adopt_and_fail", 1),
        ("owner_twice", 1),
        ("overlap", 1),
        ("lent_wrong", 1),
    ] {
        let mut model = load(what);
        // In "overlap" only one of the two loans reaches the host as it is made.
        let error = model.infer(&batch(&[1, 2, 3, 4]));
        if what == "overlap" {
            drop(error);
            assert_eq!(model.released(), 2);
            continue;
        }
        assert!(error.is_err(), "{what}");
        drop(error);
        assert_eq!(model.released(), times, "{what}");
    }
}

#[test]
fn an_input_can_be_kept_for_a_later_call() {
    let mut model = load("keep");
    assert_eq!(model.numbers(&[1, 2]).unwrap(), [1, 2]);
    assert_eq!(model.numbers(&[3, 4]).unwrap(), [1, 2]);
    assert_eq!(model.numbers(&[5, 6]).unwrap(), [1, 2]);
}

#[test]
fn inputs_at_odd_addresses_are_aligned_for_plugins() {
    let bytes = bytes::Bytes::from(vec![0u8; 17]).slice(1..);
    let odd = Tensor::new("x", DataType::Int32, vec![4], Data::Fixed(bytes)).unwrap();
    let shown = super::memory::Shown::of(&odd.into()).unwrap();
    assert_eq!(shown.views()[0].data.addr() % 4, 0);
    assert_eq!(load("copy").numbers(&[0; 4]).unwrap(), [0; 4]);
}

/// The bug: without memory for a copy, plugins were shown the odd address.
#[test]
fn what_cannot_be_aligned_for_want_of_memory_is_an_error() {
    let buffer = bytes::Bytes::from(vec![0u8; 32]);
    let odd = 1 + (8 - buffer.as_ptr().addr() % 8) % 8;
    let bytes = buffer.slice(odd..odd + 16);
    let fixed = Tensor::new("x", DataType::Int32, vec![4], Data::Fixed(bytes.clone())).unwrap();
    let data = Data::Variable {
        offsets: bytes,
        values: bytes::Bytes::new(),
    };
    let variable = Tensor::new("x", DataType::Bytes, vec![1], data).unwrap();
    for tensor in [fixed, variable] {
        let shown = super::memory::Shown::with(&tensor.into(), |_| None);
        let error = shown.err().expect("no memory, no tensor");
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        let words = "tensor \"x\": no memory to align its 16 bytes";
        assert!(error.message().starts_with(words), "{error}");
    }
}

#[test]
fn a_failure_has_the_plugins_message_and_the_rows_that_it_blames() {
    let error = |what: &str, numbers: &[i32]| load(what).infer(&batch(numbers)).unwrap_err();
    let broken = error("fail_row", &[1, 2, -3, 4]);
    assert_eq!(broken.error.code(), ErrorCode::InvalidArgument);
    assert_eq!(
        broken.error.message(),
        "plugin \"libsample.so\": a number is below 0"
    );
    assert_eq!(broken.error.rows(), Some(2..3));
    assert!(!broken.instance_lost);
    let broken = error("fail", &[1]);
    assert_eq!(
        (broken.error.code(), broken.error.rows()),
        (ErrorCode::Internal, None)
    );
    let broken = error("silent", &[1]);
    assert!(
        broken.error.message().contains("status 77"),
        "{}",
        broken.error
    );
    let mut lost = load("broken");
    assert!(lost.infer(&batch(&[1])).unwrap_err().instance_lost);
    let released = lost.released;
    drop(lost);
    assert_eq!(released.load(Ordering::SeqCst), 1000, "it was unloaded");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_read_out_of_bounds() {
    for (what, why) in [
        ("nothing", "gave no output"),
        ("null_tensor", "tensor is NULL"),
        ("ignored", "tensor is NULL"),
        (
            "null_shape",
            "output \"x\": its shape is NULL, expected 1 dimensions",
        ),
        (
            "null_data",
            "output \"x\": its data is NULL, expected 16 bytes",
        ),
        ("rank", "1000000 dimensions, and 64 is the most"),
        ("overflow", "more elements than memory can hold"),
        ("huge", "more elements than memory can hold"),
        ("wrap", "more than memory can hold"),
        ("length", "INT32 [4] takes 16 bytes, got 20"),
        ("short", "INT32 [4] takes 16 bytes, got 15"),
        ("datatype", "datatype 99, expected 1 to 15"),
        ("datatype_0", "datatype 0, expected 1 to 15"),
        ("name", "an output's name is not UTF-8"),
        ("null_name", "an output's name is NULL, expected"),
        ("long_name", "4096 is the most"),
        ("bool", "BOOL byte is 0 or 1, element 2 is 2"),
        ("rows", "shape [3] for 4 rows: expected a row for each"),
        ("scalar", "shape [] for 4 rows"),
        ("offsets_null", "its offsets is NULL, expected 40 bytes"),
        ("offset_count", "BYTES [4] takes 5 offsets, got 4"),
        (
            "offset_order",
            "offsets must ascend from 0, offset 2 is 4 after 7",
        ),
        ("offset_start", "offset 0 is 1"),
        (
            "offset_end",
            "the last offset is 9, the values have 8 bytes",
        ),
        ("offset_far", "the last offset is 18446744073709551615"),
        ("offset_overlap", "its offsets and its values overlap"),
        ("outside", "not all inside the buffer that it names"),
        ("beyond", "not all inside the buffer that it names"),
        ("twice", "output \"x\": it is given twice"),
        ("owner_twice", "same owner as an earlier one"),
        ("lent_wrong", "datatype 99"),
        (
            "declared_name",
            "output \"q\": it was not declared, expected [\"y\", \"z\"]",
        ),
        (
            "declared_datatype",
            "output \"z\": expected FP32, got INT32",
        ),
        (
            "declared_shape",
            "output \"z\": expected shape [N, 2], got [4, 1]",
        ),
        ("declared_missing", "output \"z\" is missing"),
    ] {
        let broken = load(what).infer(&batch(&[1, 2, 3, 4])).unwrap_err();
        let message = broken.error.message();
        assert_eq!(
            broken.error.code(),
            ErrorCode::Internal,
            "{what}: {message}"
        );
        assert!(
            message.starts_with("plugin \"libsample.so\": "),
            "{what}: {message}"
        );
        assert!(message.contains(why), "{what}: {message}");
        assert!(!broken.instance_lost);
    }
    let outputs = load("declared").infer(&batch(&[1, 2, 3, 4])).unwrap();
    let names: Vec<&str> = outputs.tensors.iter().map(Tensor::name).collect();
    assert_eq!(names, ["y", "z"]);
}

#[test]
fn a_call_can_ask_for_rows_parameters_paths_and_cancels() {
    let member = |offset: u64, rows: u64| Member {
        serial: crate::message::Serial(offset),
        reply: crate::message::ReplyTo::default(),
        request: crate::message::RequestId(1),
        offset,
        rows,
        total: 50,
        stream: false,
        on_bad_row: OnBadRow::Fail,
        whole: false,
        arrived_us: 0,
        queue_us: 0,
    };
    let members = [member(7, 2), member(0, 1)];
    let params = json!({"words_path": "words.txt"})
        .as_object()
        .unwrap()
        .clone();
    let run = Run {
        params: &params,
        members: &members,
        cancelled: &|| true,
    };
    let call = |what: &str| {
        let mut loaded = load(what);
        let whole = Signature::new().whole();
        loaded.instance.infer(&InferCall {
            inputs: &batch(&[0; 3]),
            signature: &whole,
            rows: None,
            run: &run,
            services: &Fake,
        })
    };
    let numbers = |batch: Batch| batch.tensors[0].to_vec::<i32>().unwrap();
    assert_eq!(numbers(call("members").unwrap()), [7, 8, 100]);
    assert_eq!(numbers(call("cancelled").unwrap()), [0x0101_0101; 3]);
    let path = call("path").unwrap();
    assert_eq!(path.tensors[0].strings().unwrap(), ["/models/words.txt"]);
    let mut loaded = load("path");
    for (params, code) in [
        (json!({}), ErrorCode::InvalidArgument),
        (json!({"words_path": "out"}), ErrorCode::PermissionDenied),
    ] {
        loaded.params = params.as_object().unwrap().clone();
        let broken = loaded.infer(&batch(&[1])).unwrap_err();
        assert_eq!(broken.error.code(), code, "{}", broken.error);
        assert!(
            broken.error.message().contains("words_path"),
            "{}",
            broken.error
        );
    }
}

#[test]
fn a_session_runs_in_place_and_its_outputs_are_given_on() {
    let mut model = load_state(&json!({"do": "session", "onnx": "m.onnx"})).unwrap();
    assert_eq!(model.numbers(&[1, 2]).unwrap(), [2, 4]);
    let first = model.infer(&batch(&[3])).unwrap();
    assert_eq!(model.numbers(&[4]).unwrap(), [8]);
    assert_eq!(
        first.tensors[0].to_vec::<i32>().unwrap(),
        [6],
        "it outlives the next run"
    );
    let text: Batch = Tensor::from_strings("x", None, &["a"]).unwrap().into();
    let e = model.infer(&text).unwrap_err().error;
    assert!(e.message().contains("asked for as INT32"), "{e}");
    let e = load_state(&json!({"do": "session", "onnx": "gone.onnx"}))
        .err()
        .unwrap();
    assert_eq!(e.code(), ErrorCode::NotFound, "{e}");
}

#[test]
fn what_goes_wrong_before_a_run_is_told() {
    for (what, code, why) in [
        (
            "bad_signature",
            ErrorCode::FailedPrecondition,
            "empty list of inputs",
        ),
        (
            "bad_state",
            ErrorCode::FailedPrecondition,
            "the state has no tags",
        ),
        (
            "early",
            ErrorCode::Internal,
            "`output` was called outside of infer",
        ),
        (
            "unloadable",
            ErrorCode::FailedPrecondition,
            "did not say why",
        ),
    ] {
        let e = load_state(&json!({"do": what})).err().unwrap();
        assert!(
            e.message().starts_with("plugin \"libsample.so\": "),
            "{what}: {e}"
        );
        assert_eq!(e.code(), code, "{what}: {e}");
        assert!(e.message().contains(why), "{what}: {e}");
    }
}

#[test]
fn a_library_that_is_no_plugin_is_told_apart() {
    for (flags, why) in [
        (
            &["-DSAMPLE_VERSION=2"][..],
            "version 2 of the interface, expected 1",
        ),
        (
            &["-DSAMPLE_OTHER_SYMBOL"],
            "does not export mdm_plugin_entry",
        ),
        (
            &["-DSAMPLE_TRUNCATED"],
            "its table is truncated: it has 12 bytes, expected at least 24",
        ),
        (
            &["-DSAMPLE_SMALL_ENTRIES"],
            "they have 16 bytes each, expected at least 48",
        ),
        (&["-DSAMPLE_NO_ENTRIES"], "has 0 entries"),
        (&["-DSAMPLE_NULL_ENTRIES"], "entries are NULL"),
        (&["-DSAMPLE_ANSWER=0"], "returned NULL"),
    ] {
        let Err(e) = library(flags) else {
            panic!("{flags:?} opens")
        };
        assert_eq!(e.code(), ErrorCode::FailedPrecondition);
        assert!(e.message().contains(why), "{flags:?}: {e}");
    }
    let two = library(&["-DSAMPLE_TWO"]).unwrap();
    assert!(Plugin::of(two.clone(), Some("other")).is_ok());
    assert_eq!(
        Plugin::of(two.clone(), None).unwrap().label(),
        "plugin \"libsample.so\""
    );
    let e = Plugin::of(two, Some("third")).err().unwrap();
    assert!(
        e.message().contains("expected one of \"model\", \"other\""),
        "{e}"
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libshort.so");
    build(&file, &[]);
    let whole = std::fs::read(&file).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"no library at all", b""] {
        std::fs::write(&file, bytes).unwrap();
        let e = Library::open(&file).err().unwrap();
        assert_eq!(e.code(), ErrorCode::FailedPrecondition, "{e}");
        let shown = folder.path().to_str().unwrap();
        assert!(!e.message().contains(shown), "{e}");
    }
}

#[test]
fn a_file_that_changes_is_another_library_and_whoever_uses_the_old_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (file, new) = (folder.path().join("libm.so"), folder.path().join("new.so"));
    build(&file, &[]);
    let first = Library::open(&file).unwrap();
    assert!(Arc::ptr_eq(&first, &Library::open(&file).unwrap()));
    let plugin = Plugin::of(first.clone(), None).unwrap();
    let state = r#"{"do":"alloc"}"#;
    let mut instance = plugin.load(state, &Fake).unwrap();
    let (signature, params) = (Signature::new(), Params::new());
    let mut doubled = || {
        let run = Run::alone(&params);
        let outputs = instance.infer(&InferCall {
            inputs: &batch(&[4]),
            signature: &signature,
            rows: Some(1),
            run: &run,
            services: &Fake,
        });
        outputs.unwrap().tensors[0].to_vec::<i32>().unwrap()
    };
    // Moved into place: another inode under the same path.
    build(&new, &["-DSAMPLE_TWO"]);
    std::fs::rename(&new, &file).unwrap();
    let second = Library::open(&file).unwrap();
    assert!(second.entry(Some("other")).is_ok());
    assert!(first.entry(Some("other")).is_err());
    assert_eq!(doubled(), [8]);
    // Written over, as by `cp`: the same inode; and half of it, as if that was not yet done.
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(Library::open(&file).is_err());
    let mut longer = whole;
    longer.extend([0; 64]);
    std::fs::write(&file, &longer).unwrap();
    let third = Library::open(&file).unwrap();
    assert!(!Arc::ptr_eq(&second, &third));
    assert_eq!(doubled(), [8]);
}

/// The bug: each load of such a file took the memory of one more copy.
#[test]
#[cfg(target_os = "linux")]
fn a_library_that_cannot_be_unloaded_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libresident.so");
    build(&file, &["-Wl,-z,nodelete"]);
    let copies = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let code = maps.lines().filter(|line| line.contains(" r-xp "));
        code.filter(|line| line.contains("libresident.so")).count()
    };
    for _ in 0..3 {
        let library = Library::open(&file).unwrap();
        assert!(library.entry(None).is_ok());
        assert_eq!(copies(), 1);
        drop(library);
        assert_eq!(copies(), 1, "the system keeps it");
    }
    // Another state of the file is another library.
    build(&file, &["-Wl,-z,nodelete", "-DSAMPLE_TWO"]);
    let library = Library::open(&file).unwrap();
    assert!(library.entry(Some("other")).is_ok());
    assert_eq!(copies(), 2);
}
