//! Models over the public interface: every kind of batch and datatype, equality with the bare engine, lookups and
//! their permissions, and what goes wrong. It needs the ONNX Runtime library and nothing else.

#[path = "common/onnx.rs"]
mod onnx;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mdm::error::ErrorCode::*;
use mdm::message::{ModelId, WorkerId};
use mdm::model::{
    BatchKind, Description, Device, Dim, Engine, Lookup, Model, ModelSource, Registry,
    RegistryConfig,
};
use mdm::{Batch, DataType, Error, Params, Tensor};
use serde_json::json;
use tempfile::TempDir;

/// A folder of models and a registry over it.
struct Place {
    folder: TempDir,
    registry: Registry,
}

fn engine() -> Engine {
    Engine::load(None, false).unwrap()
}

impl Place {
    fn new(files: &[(&str, Vec<u8>)]) -> Place {
        Place::with(files, |_| {})
    }

    fn with(files: &[(&str, Vec<u8>)], change: impl FnOnce(&mut RegistryConfig)) -> Place {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            write(&folder.path().join(name), bytes);
        }
        let mut config = RegistryConfig {
            run_script_dir: folder.path().to_owned(),
            allow_paths: vec![],
            devices: vec![Device::Cpu],
            intra_op_threads: 1,
            gpu_memory_fraction: 0.2,
        };
        change(&mut config);
        let registry = Registry::new(engine(), config).unwrap();
        Place { folder, registry }
    }

    fn find(&self, name: &str) -> Result<Arc<Description>, Error> {
        self.registry
            .resolve(&Lookup::of(Some(name), &Params::new()))
    }

    fn open(&self, name: &str) -> (Arc<Description>, Box<dyn Model>) {
        let description = self.find(name).unwrap();
        let model = self.registry.open(description.id, WorkerId(0)).unwrap();
        (description, model)
    }

    fn infer(&self, name: &str, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let (_, mut model) = self.open(name);
        Ok(model.infer(&Batch { tensors }, &Params::new())?.tensors)
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn params(value: serde_json::Value) -> Params {
    value.as_object().unwrap().clone()
}

fn ramp(name: &str, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let elements = (0..count).map(|i| (i % 23) as f32 / 7.0 - 1.5).collect();
    Tensor::from_vec::<f32>(name, shape.to_vec(), elements).unwrap()
}

/// The same rows through a session of the bare engine.
fn bare(model: &[u8], inputs: &[Tensor], outputs: usize) -> Vec<Vec<f32>> {
    let mut session = bare_session(model);
    let values: Vec<ort::session::SessionInputValue<'_>> = inputs
        .iter()
        .map(|tensor| match tensor.datatype() {
            DataType::Fp32 => bare_value::<f32>(tensor),
            DataType::Int64 => bare_value::<i64>(tensor),
            other => panic!("{other} is not compared"),
        })
        .collect();
    let results = session.run(values.as_slice()).unwrap();
    (0..outputs)
        .map(|i| results[i].try_extract_tensor::<f32>().unwrap().1.to_vec())
        .collect()
}

fn bare_session(model: &[u8]) -> ort::session::Session {
    ort::session::Session::builder(engine().environment())
        .unwrap()
        .with_intra_threads(1)
        .unwrap()
        .commit_from_memory(model)
        .unwrap()
}

fn bare_value<T>(tensor: &Tensor) -> ort::session::SessionInputValue<'static>
where
    T: mdm::Element + ort::value::PrimitiveTensorElementType + 'static,
{
    let elements = tensor.to_vec::<T>().unwrap();
    ort::value::Tensor::from_array((tensor.shape(), elements))
        .unwrap()
        .into()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor
        .to_vec::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

fn as_bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_datatype_there_and_back() {
    let rows = 3;
    for datatype in DataType::ALL {
        if datatype == DataType::Json {
            continue;
        }
        // 300 columns: outputs that are adopted; 2: outputs that are copied.
        for columns in [300, 2] {
            let place = Place::new(&[("echo.onnx", onnx::echo(datatype, &[columns]))]);
            let count = rows * columns;
            let x = match datatype.size() {
                None => {
                    let strings: Vec<String> =
                        (0..count).map(|i| "\u{e9}t\u{e9} ".repeat(i % 4)).collect();
                    Tensor::from_strings("x", Some(vec![rows, columns]), &strings).unwrap()
                }
                Some(size) => {
                    let bytes: Vec<u8> = (0..count * size)
                        .map(|i| if datatype == DataType::Bool { i % 2 } else { i % 251 } as u8)
                        .collect();
                    let data = mdm::tensor::Data::Fixed(bytes.into());
                    Tensor::new("x", datatype, vec![rows, columns], data).unwrap()
                }
            };
            let y = place.infer("echo", vec![x.clone()]).unwrap().remove(0);
            assert_eq!(y, x.renamed("y"), "{datatype}");
        }
    }
}

#[test]
fn a_frame_at_an_odd_address_is_as_good() {
    let place = Place::new(&[("echo.onnx", onnx::echo(DataType::Fp64, &[500]))]);
    let bytes: Vec<u8> = (0..8001u32).map(|i| (i % 200) as u8).collect();
    let odd = bytes::Bytes::from(bytes).slice(1..);
    let x = Tensor::new(
        "x",
        DataType::Fp64,
        vec![2, 500],
        mdm::tensor::Data::Fixed(odd),
    )
    .unwrap();
    let y = place.infer("echo", vec![x.clone()]).unwrap().remove(0);
    assert_eq!(y, x.renamed("y"));
}

#[test]
fn results_are_the_bare_engines_bit_for_bit() {
    let ids: Vec<i64> = (0..5 * 64).map(|i| i * 37 % 5000).collect();
    let ids = Tensor::from_vec("ids", vec![5, 64], ids).unwrap();
    let table = [
        ("mlp", onnx::mlp(), ramp("x", &[7, 64])),
        ("bilstm", onnx::bilstm(), ids),
        ("weights", onnx::matmul_weights(8), ramp("x", &[3, 1024])),
        ("one", onnx::one_matmul(4), ramp("x", &[3, 256])),
        ("awkward", onnx::awkward_weights(), ramp("x", &[6, 32])),
        ("turned", onnx::turned_constants(), ramp("x", &[6, 32, 16])),
    ];
    for (name, model, input) in table {
        let expected = bare(&model, std::slice::from_ref(&input), 1);
        let place = Place::new(&[("m.onnx", model)]);
        let (_, mut first) = place.open("m");
        let (description, mut second) = place.open("m");
        let mut third = place.registry.open(description.id, WorkerId(7)).unwrap();
        for model in [&mut first, &mut second, &mut third] {
            let inputs = Batch {
                tensors: vec![input.clone()],
            };
            let outputs = model.infer(&inputs, &Params::new()).unwrap();
            assert_eq!(bits(&outputs.tensors[0]), as_bits(&expected[0]), "{name}");
        }
    }
}

#[test]
fn outputs_outlive_the_session_and_later_runs() {
    let place = Place::new(&[("m.onnx", onnx::one_matmul(4))]);
    let (_, mut model) = place.open("m");
    let mut run = |shift: f32| {
        let x: Vec<f32> = (0..2 * 256).map(|i| i as f32 / 512.0 + shift).collect();
        let x = Tensor::from_vec("x", vec![2, 256], x).unwrap();
        model
            .infer(&Batch { tensors: vec![x] }, &Params::new())
            .unwrap()
            .tensors
            .remove(0)
    };
    let first = run(0.0);
    let before = bits(&first);
    let second = run(1.0);
    assert_ne!(bits(&second), before);
    drop(model);
    drop(place);
    assert_eq!(bits(&first), before);
}

#[test]
fn an_input_that_is_handed_through_is_copied() {
    let place = Place::new(&[("m.onnx", onnx::pass_through())]);
    let (_, mut model) = place.open("m");
    let x = ramp("x", &[4, 512]);
    let given = x.as_slice::<f32>().unwrap().as_ptr_range();
    let outputs = model
        .infer(
            &Batch {
                tensors: vec![x.clone()],
            },
            &Params::new(),
        )
        .unwrap()
        .tensors;
    assert_eq!(outputs[0], x);
    assert!(!given.contains(&outputs[0].as_slice::<f32>().unwrap().as_ptr()));
}

#[test]
fn a_fixed_batch_is_padded_and_trimmed() {
    let model = onnx::fixed_batch(4);
    let place = Place::new(&[("m.onnx", model.clone())]);
    let (description, mut opened) = place.open("m");
    assert_eq!(description.kind, BatchKind::Fixed(4));
    for rows in [1, 3, 4, 5, 8, 11] {
        let x = ramp("x", &[rows, 8]);
        let outputs = opened
            .infer(
                &Batch {
                    tensors: vec![x.clone()],
                },
                &Params::new(),
            )
            .unwrap()
            .tensors;
        assert_eq!(outputs[0].shape(), [rows, 4]);
        for row in 0..rows {
            // Row by row, each repeated to fill the batch.
            let four: Vec<Tensor> = vec![x.slice_rows(row, 1); 4];
            let expected = bare(&model, &[Tensor::concat(&four).unwrap()], 1);
            assert_eq!(
                bits(&outputs[0].slice_rows(row, 1)),
                as_bits(&expected[0][..4]),
                "row {row} of {rows}"
            );
        }
    }
}

#[test]
fn a_model_without_rows_gets_the_request_whole() {
    let place = Place::new(&[("m.onnx", onnx::no_batch())]);
    assert_eq!(place.find("m").unwrap().kind, BatchKind::Whole);
    let outputs = place
        .infer("m", vec![ramp("a", &[3, 4]), ramp("b", &[4, 5])])
        .unwrap();
    assert_eq!(outputs[0].shape(), [3, 5]);
    assert_eq!(outputs[1].shape(), [0usize; 0]);
    assert_eq!(outputs[1].to_vec::<i64>().unwrap(), [15]);
}

#[test]
fn several_inputs_and_outputs_keep_their_names() {
    let place = Place::new(&[("m.onnx", onnx::two_inputs_two_outputs())]);
    let a = Tensor::from_vec("a", vec![2, 3], vec![1f32, 2., 3., 4., 5., 6.]).unwrap();
    let b = Tensor::from_vec("b", vec![2, 3], vec![10i64, 20, 30, 40, 50, 60]).unwrap();
    let outputs = place.infer("m", vec![a, b]).unwrap();
    assert_eq!(
        (outputs[0].name(), outputs[1].name()),
        ("sum", "difference")
    );
    assert_eq!(
        outputs[0].to_vec::<f32>().unwrap(),
        [11., 22., 33., 44., 55., 66.]
    );
    assert_eq!(
        outputs[1].to_vec::<i64>().unwrap(),
        [-9, -18, -27, -36, -45, -54]
    );
}

#[test]
fn strings_go_through_and_what_cannot_is_named() {
    let place = Place::new(&[("m.onnx", onnx::upper_case())]);
    let strings = |elements: &[&[u8]]| Tensor::from_strings("x", None, elements).unwrap();
    let y = place.infer("m", vec![strings(&[b"abc", b"d"])]).unwrap();
    assert_eq!(y[0].strings().unwrap(), ["ABC", "D"]);
    for (bad, why) in [(&b"a\0b"[..], "NUL"), (&b"\xff"[..], "not UTF-8")] {
        let e = place.infer("m", vec![strings(&[b"ok", bad])]).unwrap_err();
        assert_eq!(e.code(), InvalidArgument);
        assert!(
            e.message().contains(why) && e.message().contains("element 1"),
            "{e}"
        );
    }
    let json = Tensor::from_rows("x", &["a"]).unwrap();
    assert_eq!(
        place.infer("m", vec![json]).unwrap_err().code(),
        InvalidArgument
    );
}

#[test]
fn dimensions_of_size_zero_go_through() {
    let place = Place::new(&[("m.onnx", onnx::two_symbols())]);
    let outputs = place
        .infer("m", vec![ramp("x", &[3, 0]), ramp("mask", &[3, 0])])
        .unwrap();
    assert_eq!(outputs[0].shape(), [3, 0]);
}

#[test]
fn a_model_that_fails_says_so_and_goes_on() {
    let place = Place::new(&[
        ("m.onnx", onnx::failing_at_run()),
        ("rows.onnx", onnx::wrong_rows()),
    ]);
    let (_, mut model) = place.open("m");
    let mut look_up = |number: i64| {
        let x = Tensor::from_vec("x", vec![1], vec![number]).unwrap();
        model.infer(&Batch { tensors: vec![x] }, &Params::new())
    };
    let e = look_up(10).unwrap_err();
    assert_eq!(e.code(), Internal);
    assert!(
        e.message().contains("model \"m\" failed") && e.message().contains("10"),
        "{e}"
    );
    look_up(9).unwrap();
    let e = place.infer("rows", vec![ramp("x", &[3, 2])]).unwrap_err();
    assert_eq!(e.code(), Internal);
    assert!(
        e.message()
            .contains("output \"y\" has shape [6, 2] for 3 rows"),
        "{e}"
    );
}

#[test]
fn the_kind_of_batch_follows_dimension_0() {
    let table = [
        (onnx::mlp(), BatchKind::Batched),
        (onnx::dynamic_unnamed(), BatchKind::Batched),
        (onnx::two_inputs_two_outputs(), BatchKind::Batched),
        (onnx::fixed_batch(1), BatchKind::Fixed(1)),
        (onnx::fixed_batch(16), BatchKind::Fixed(16)),
        (onnx::no_batch(), BatchKind::Whole),
        (onnx::any_rank(), BatchKind::Whole),
    ];
    for (index, (model, kind)) in table.into_iter().enumerate() {
        let place = Place::new(&[("m.onnx", model)]);
        assert_eq!(place.find("m").unwrap().kind, kind, "model {index}");
    }
    let place = Place::new(&[("m.onnx", onnx::any_rank()), ("b.onnx", onnx::bilstm())]);
    assert_eq!(place.find("m").unwrap().inputs[0].shape, [Dim::Rest]);
    let bilstm = place.find("b").unwrap();
    assert_eq!(bilstm.outputs[0].name, "logits");
    assert_eq!(
        bilstm.outputs[0].shape,
        [Dim::Symbol("N".to_owned()), Dim::Fixed(64), Dim::Fixed(3)]
    );
}

#[test]
fn files_that_are_no_models_are_refused_and_tried_again_next_time() {
    let whole = onnx::mlp();
    let mut flipped = whole.clone();
    flipped[..64].reverse();
    let place = Place::new(&[
        ("empty.onnx", vec![]),
        ("text.onnx", b"this is no model".to_vec()),
        ("short.onnx", whole[..whole.len() / 2].to_vec()),
        ("flipped.onnx", flipped),
        ("sequence.onnx", onnx::sequence_output()),
        ("pickle.proxy", b"\x80\x04\x95\x10\x00".to_vec()),
        ("pickled", b"\x80\x02}q\x00.".to_vec()),
        ("protocol0.proxy", b"(dp0\nS'a'\np1\n.".to_vec()),
        ("later.proxy", br#"{"mdm":1,"plugin":"x.so"}"#.to_vec()),
        ("newer.proxy", br#"{"mdm":2,"onnx":"x.onnx"}"#.to_vec()),
    ]);
    for (name, why) in [
        ("empty", "is empty"),
        ("text", "cannot open"),
        ("short", "cannot open"),
        ("flipped", "cannot open"),
        ("sequence", "output \"y\""),
        ("pickle", "pickle"),
        ("pickled", "pickle"),
        ("protocol0", "expected JSON"),
        ("later", "\"plugin\" is not supported by this version"),
        ("newer", "expected \"mdm\":1"),
    ] {
        let e = place.find(name).unwrap_err();
        assert_eq!(e.code(), FailedPrecondition, "{name}: {e}");
        assert!(e.message().contains(why), "{name}: {e}");
        let folder = place.folder.path().to_string_lossy().into_owned();
        // Only the run-script directory as the operator gave it may be named, and here it need not be.
        assert!(!e.message().contains(&folder), "{name}: {e}");
    }
    write(&place.folder.path().join("text.onnx"), &whole);
    place.find("text").unwrap();
}

#[test]
fn names_lead_to_files_proxies_and_versions() {
    let place = Place::new(&[
        ("m.onnx", onnx::mlp()),
        ("deep/er/m.onnx", onnx::fixed_batch(2)),
        ("p.proxy", br#"{"mdm":1,"onnx":"m.onnx"}"#.to_vec()),
        (
            "w.proxy",
            br#"{"mdm":1,"onnx":"m.onnx","rows":"whole"}"#.to_vec(),
        ),
        ("both.proxy", br#"{"mdm":1,"onnx":"m.onnx"}"#.to_vec()),
        ("both.onnx", onnx::no_batch()),
        ("repository/2/model.onnx", onnx::fixed_batch(2)),
        ("repository/10/model.onnx", onnx::fixed_batch(10)),
        ("repository/11/readme.txt", vec![]),
    ]);
    let mlp = place.find("m").unwrap();
    assert_eq!((mlp.name.as_str(), mlp.version.as_str()), ("m", "1"));
    for same in ["m.onnx", "p", "p.proxy", "both", "./m", "deep/../m"] {
        assert_eq!(place.find(same).unwrap().id, mlp.id, "{same}");
    }
    let whole = place.find("w").unwrap();
    assert_ne!(whole.id, mlp.id);
    assert_eq!(whole.kind, BatchKind::Whole);
    assert_eq!(place.find("deep/er/m").unwrap().kind, BatchKind::Fixed(2));
    let newest = place.find("repository").unwrap();
    assert_eq!(
        (newest.version.as_str(), newest.kind),
        ("10", BatchKind::Fixed(10))
    );
    let asked = place.find("repository/2").unwrap();
    assert_eq!(
        (asked.version.as_str(), asked.kind),
        ("2", BatchKind::Fixed(2))
    );

    let find =
        |model: Option<&str>, value| place.registry.resolve(&Lookup::of(model, &params(value)));
    let by_path = json!({"model_proxy_path": "p.proxy"});
    assert_eq!(find(None, by_path.clone()).unwrap().id, mlp.id);
    assert_eq!(find(Some("p"), by_path.clone()).unwrap().id, mlp.id);
    let e = find(Some("repository"), by_path).unwrap_err();
    assert_eq!(e.code(), InvalidArgument);
    assert!(e.message().contains("different models"), "{e}");
    let e = find(None, json!({})).unwrap_err();
    assert_eq!(e.code(), InvalidArgument);
    assert!(e.message().contains("no model is named"), "{e}");
}

#[test]
fn paths_stay_below_the_allowed_directories() {
    let outside = tempfile::tempdir().unwrap();
    let allowed = tempfile::tempdir().unwrap();
    for folder in [&outside, &allowed] {
        write(&folder.path().join("m.onnx"), &onnx::mlp());
        write(&folder.path().join("words.txt"), b"a b c");
    }
    let place = Place::with(
        &[("m.onnx", onnx::mlp()), ("sub/words.txt", b"a".to_vec())],
        |config| config.allow_paths = vec![allowed.path().to_owned()],
    );
    let at = |folder: &TempDir, name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let link = |from: &str, to: &str| {
        std::os::unix::fs::symlink(to, place.folder.path().join(from)).unwrap();
    };
    link("out.onnx", &at(&outside, "m.onnx"));
    link("in.onnx", "m.onnx");
    link("allowed.onnx", &at(&allowed, "m.onnx"));
    link("folder", outside.path().to_str().unwrap());
    link("round.onnx", "round.onnx");
    let made = std::process::Command::new("mkfifo")
        .arg(place.folder.path().join("pipe.onnx"))
        .status()
        .unwrap();
    assert!(made.success());

    let up = format!(
        "../{}/m",
        outside.path().file_name().unwrap().to_string_lossy()
    );
    let table = [
        ("in", None),
        ("allowed", None),
        ("sub/../m", None),
        ("..", Some(PermissionDenied)),
        ("../", Some(PermissionDenied)),
        ("../nothing", Some(PermissionDenied)),
        (&up, Some(PermissionDenied)),
        ("sub/../../m", Some(PermissionDenied)),
        (
            "../../../../../../../../../../etc/passwd",
            Some(PermissionDenied),
        ),
        ("/etc/passwd", Some(PermissionDenied)),
        ("/etc/nothing-of-that-name", Some(PermissionDenied)),
        ("out", Some(PermissionDenied)),
        ("folder/m", Some(PermissionDenied)),
        ("nothing", Some(NotFound)),
        ("sub/nothing", Some(NotFound)),
        ("m.onnx/below", Some(NotFound)),
        ("sub", Some(NotFound)),
        ("", Some(InvalidArgument)),
        (".", Some(InvalidArgument)),
        ("m\0", Some(InvalidArgument)),
        ("round", Some(FailedPrecondition)),
        ("pipe", Some(FailedPrecondition)),
        (&"n".repeat(5000), Some(NotFound)),
    ];
    for (name, code) in table {
        let result = place.find(name);
        assert_eq!(
            result.as_ref().err().map(Error::code),
            code,
            "{name:?}: {result:?}"
        );
    }
    let absolute = at(&allowed, "m");
    place.find(&absolute).unwrap();

    let check = |value| {
        let lookup = Lookup::of(Some("m"), &params(value));
        place.registry.resolve(&lookup).map(|_| ())
    };
    check(json!({"vocabulary_path": "sub/words.txt", "folder_path": "sub", "other": "../.."}))
        .unwrap();
    check(json!({"vocabulary_path": at(&allowed, "words.txt")})).unwrap();
    let table = [
        (json!({"vocabulary_path": "../words.txt"}), PermissionDenied),
        (
            json!({"vocabulary_path": at(&outside, "words.txt")}),
            PermissionDenied,
        ),
        (
            json!({"vocabulary_path": "folder/words.txt"}),
            PermissionDenied,
        ),
        (json!({"vocabulary_path": "words.txt"}), NotFound),
        (json!({"vocabulary_path": "pipe.onnx"}), FailedPrecondition),
        (json!({"vocabulary_path": 7}), InvalidArgument),
        (json!({"vocabulary_path": null}), InvalidArgument),
        (json!({"vocabulary_path": ""}), InvalidArgument),
    ];
    for (value, code) in table {
        let e = check(value.clone()).unwrap_err();
        assert_eq!(e.code(), code, "{value}: {e}");
        assert!(e.message().contains("vocabulary_path"), "{value}: {e}");
    }
}

#[test]
fn a_proxy_cannot_lead_out_either() {
    let outside = tempfile::tempdir().unwrap();
    write(&outside.path().join("m.onnx"), &onnx::mlp());
    let proxy = json!({"mdm": 1, "onnx": outside.path().join("m.onnx")}).to_string();
    let place = Place::new(&[
        ("absolute.proxy", proxy.into_bytes()),
        ("up.proxy", br#"{"mdm":1,"onnx":"../m.onnx"}"#.to_vec()),
        ("gone.proxy", br#"{"mdm":1,"onnx":"m.onnx"}"#.to_vec()),
    ]);
    for (name, code) in [
        ("absolute", PermissionDenied),
        ("up", PermissionDenied),
        ("gone", NotFound),
    ] {
        let e = place.find(name).unwrap_err();
        assert_eq!(e.code(), code, "{name}: {e}");
    }
}

#[test]
fn a_changed_file_is_another_model() {
    let place = Place::new(&[("m.onnx", onnx::fixed_batch(2))]);
    let path = place.folder.path().join("m.onnx");
    let first = place.find("m").unwrap();
    let (_, mut session) = place.open("m");
    write(&path, &onnx::fixed_batch(3));
    let second = place.find("m").unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(second.kind, BatchKind::Fixed(3));
    // What is open goes on; what is not yet open must not get the new graph under the old number.
    let inputs = Batch {
        tensors: vec![ramp("x", &[2, 8])],
    };
    session.infer(&inputs, &Params::new()).unwrap();
    let Err(e) = place.registry.open(first.id, WorkerId(1)) else {
        panic!("the file is another one")
    };
    assert_eq!(e.code(), FailedPrecondition, "{e}");
    assert!(e.message().contains("was changed"), "{e}");
    place.registry.open(second.id, WorkerId(1)).unwrap();
    // The state before the last is forgotten.
    assert_eq!(place.registry.take_retired(), []);
    write(&path, &onnx::fixed_batch(44));
    place.find("m").unwrap();
    assert_eq!(place.registry.take_retired(), [first.id]);
}

#[test]
fn unloading_forgets() {
    let place = Place::new(&[("m.onnx", onnx::mlp()), ("n.onnx", onnx::mlp())]);
    let lookup = Lookup::of(Some("m"), &Params::new());
    assert_eq!(place.registry.unload(&lookup).unwrap_err().code(), NotFound);
    let m = place.find("m").unwrap();
    let n = place.find("n").unwrap();
    assert_eq!(place.registry.models().len(), 2);
    assert_eq!(place.registry.unload(&lookup).unwrap(), [m.id]);
    assert_eq!(place.registry.models()[0].name, "n");
    assert!(place.registry.describe(m.id).is_none());
    assert_eq!(place.registry.describe(n.id), Some(n));
    let Err(e) = place.registry.open(m.id, WorkerId(0)) else {
        panic!("it is forgotten")
    };
    assert_eq!(e.code(), NotFound);
    // A file that is gone can still be unloaded by its name.
    fs::remove_file(place.folder.path().join("n.onnx")).unwrap();
    let gone = Lookup::of(Some("n"), &Params::new());
    assert_eq!(place.registry.unload(&gone).unwrap().len(), 1);
    assert!(
        place.find("m").unwrap().id > m.id,
        "numbers are not used again"
    );
    assert!(place.registry.open(ModelId(999), WorkerId(0)).is_err());
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let config = RegistryConfig {
        run_script_dir: "no/such/folder".into(),
        allow_paths: vec![],
        devices: vec![],
        intra_op_threads: 1,
        gpu_memory_fraction: 0.0,
    };
    let Err(e) = Registry::new(engine(), config) else {
        panic!("there is no such folder")
    };
    assert!(
        e.message().contains("--run-script-dir no/such/folder"),
        "{e}"
    );
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_at_once() {
    let engine = engine();
    engine.check_device(Device::Cpu).unwrap();
    if Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    let started = std::time::Instant::now();
    let e = engine.check_device(Device::Cuda(0)).unwrap_err();
    assert_eq!(e.code(), FailedPrecondition);
    assert!(e.message().contains("device 0"), "{e}");
    assert!(started.elapsed().as_secs() < 5);
}
