//! How models are looked up: names, proxies, versions, permissions, and files that change or are no models.

mod changed;
mod constant;
mod namesakes;
#[path = "../common/onnx.rs"]
mod onnx;
#[path = "../common/place.rs"]
mod place;
#[path = "../common/within.rs"]
mod within;

use std::fs;

use mdm::error::ErrorCode::*;
use mdm::message::{ModelId, WorkerId};
use mdm::model::{BatchKind, Description, Dim, Lookup, ModelSource, StoreConfig};
use mdm::server::ModelFolder;
use mdm::{Batch, Error, Params};
use place::{Place, engine, params, ramp, write};
use serde_json::json;
use tempfile::TempDir;
use within::{LIMIT, within};

/// Dimension 0 of a model's first input, by which the models here differ.
fn first_of(model: &Description) -> Dim {
    model.inputs[0].shape[0].clone()
}

#[test]
fn files_that_are_no_models_are_refused_and_tried_again_next_time() {
    within(LIMIT, || {
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
            (
                "later.proxy",
                br#"{"mdm":1,"onnx":"x.onnx","later":true}"#.to_vec(),
            ),
            ("newer.proxy", br#"{"mdm":2,"onnx":"x.onnx"}"#.to_vec()),
        ]);
        for (name, why) in [
            ("empty", "is empty"),
            ("text", "cannot open"),
            ("short", "cannot open"),
            (
                "short",
                "it is cut short, or no ONNX file; copy or export it again",
            ),
            ("flipped", "cannot open"),
            ("sequence", "output \"y\""),
            ("pickle", "Python pickle"),
            ("pickle", "\"plugin\":\"libNAME.so\""),
            ("pickled", "pickle"),
            ("protocol0", "it is not JSON"),
            ("later", "\"later\" is unknown here, expected \"mdm\""),
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
    })
}

#[test]
fn names_lead_to_files_proxies_and_versions() {
    within(LIMIT, || {
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
        assert_eq!(first_of(&place.find("deep/er/m").unwrap()), Dim::Fixed(2));
        let newest = place.find("repository").unwrap();
        assert_eq!(
            (newest.version.as_str(), first_of(&newest)),
            ("10", Dim::Fixed(10))
        );
        let asked = place.find("repository/2").unwrap();
        assert_eq!(
            (asked.version.as_str(), first_of(&asked)),
            ("2", Dim::Fixed(2))
        );

        let find =
            |model: Option<&str>, value| place.models.resolve(&Lookup::of(model, &params(value)));
        let by_path = json!({"model_proxy_path": "p.proxy"});
        assert_eq!(find(None, by_path.clone()).unwrap().id, mlp.id);
        assert_eq!(find(Some("p"), by_path.clone()).unwrap().id, mlp.id);
        let e = find(Some("repository"), by_path).unwrap_err();
        assert_eq!(e.code(), InvalidArgument);
        assert!(e.message().contains("different models"), "{e}");
        let e = find(None, json!({})).unwrap_err();
        assert_eq!(e.code(), InvalidArgument);
        assert!(e.message().contains("no model is named"), "{e}");
    })
}

#[test]
fn a_version_can_be_asked_for() {
    within(LIMIT, || {
        let methods =
            br#"{"mdm":1,"methods":{"top":{"onnx":"../../m.onnx"},"all":{"onnx":"../../m.onnx"}}}"#;
        let same = br#"{"mdm":1,"onnx":"../../m.onnx"}"#;
        let place = Place::new(&[
            ("m.onnx", onnx::mlp()),
            ("v/1/model.onnx", onnx::fixed_batch(1)),
            ("v/2/model.onnx", onnx::fixed_batch(2)),
            ("v/10/model.proxy", same.to_vec()),
            ("v/10/model.onnx", onnx::fixed_batch(10)),
            ("v/11/readme.txt", vec![]),
            ("v/+12/model.onnx", onnx::mlp()),
            ("w/3/model.proxy", methods.to_vec()),
            ("w/4/model.proxy", same.to_vec()),
            ("w/5/model.proxy", same.to_vec()),
            ("p.proxy", br#"{"mdm":1,"onnx":"v"}"#.to_vec()),
            ("single/model.onnx", onnx::mlp()),
        ]);
        let find = |name: &str, version: serde_json::Value| {
            let params = match version {
                serde_json::Value::Null => Params::new(),
                version => params(json!({ "model_version": version })),
            };
            let found = place.models.resolve(&Lookup::of(Some(name), &params));
            found.map(|found| (found.id, found.version.clone(), first_of(&found)))
        };
        let symbol = || Dim::Symbol("N".to_owned());
        let table = [
            ("v", json!(null), "10", symbol()),
            ("v", json!(2), "2", Dim::Fixed(2)),
            ("v", json!("1"), "1", Dim::Fixed(1)),
            ("v/2", json!(null), "2", Dim::Fixed(2)),
            ("v/2", json!(2), "2", Dim::Fixed(2)),
            ("v/10/model.onnx", json!(null), "1", Dim::Fixed(10)),
            ("w/3.top", json!(null), "3", symbol()),
            ("w.all", json!(3), "3", symbol()),
            ("w", json!(null), "5", symbol()),
            ("m", json!(1), "1", symbol()),
            ("single", json!(1), "1", symbol()),
        ];
        for (name, asked, version, first) in table {
            let (_, found, its_first) = find(name, asked.clone()).unwrap();
            assert_eq!(
                (found.as_str(), its_first),
                (version, first),
                "{name} {asked}"
            );
        }
        // The same version by both ways is the same model, and two versions of one file are two.
        let id = |name, version| find(name, version).unwrap().0;
        assert_eq!(id("v/2", json!(null)), id("v", json!("2")));
        assert_ne!(id("w/4", json!(null)), id("w/5", json!(null)));

        let missing = "has no version 3; there are 1, 2, 10";
        for (name, asked, code, why) in [
            ("v", json!(3), NotFound, missing),
            ("v/3", json!(null), NotFound, missing),
            (
                "v/02",
                json!(null),
                NotFound,
                "ask for \"v/2\", or for \"v\" with model_version 2",
            ),
            ("v/3.top", json!(null), NotFound, missing),
            ("v/2.top", json!(null), NotFound, "no method \"top\""),
            ("w/3.other", json!(null), NotFound, "\"all\", \"top\""),
            (
                "v/2",
                json!(1),
                InvalidArgument,
                "is version 2, and model_version asks for version 1",
            ),
            ("m", json!(2), NotFound, "its only version is 1"),
            ("single", json!(2), NotFound, "its only version is 1"),
            (
                "v",
                json!("latest"),
                InvalidArgument,
                "\"latest\", expected a version's number",
            ),
            ("v", json!(-1), InvalidArgument, "-1, expected"),
            (
                "v",
                json!([1]),
                InvalidArgument,
                "expected a version's number",
            ),
            ("p", json!(null), FailedPrecondition, "leads to a proxy"),
        ] {
            let e = find(name, asked.clone()).unwrap_err();
            assert_eq!(e.code(), code, "{name} {asked}: {e}");
            assert!(e.message().contains(why), "{name} {asked}: {e}");
        }
        let names = place.models.store().names().unwrap();
        assert_eq!(names, ["m", "p", "single", "v", "w"]);
    })
}

#[test]
fn paths_stay_below_the_allowed_directories() {
    within(LIMIT, || {
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
        let at =
            |folder: &TempDir, name: &str| folder.path().join(name).to_str().unwrap().to_owned();
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
            place.models.resolve(&lookup).map(|_| ())
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
    })
}

#[test]
fn a_proxy_cannot_lead_out_either() {
    within(LIMIT, || {
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
            ("gone", FailedPrecondition),
        ] {
            let e = place.find(name).unwrap_err();
            assert_eq!(e.code(), code, "{name}: {e}");
        }
    })
}

#[test]
fn files_larger_than_the_bound_are_refused_before_they_are_read() {
    within(LIMIT, || {
        let files = [
            ("big.onnx", onnx::mlp()),
            ("small.onnx", onnx::fixed_batch(2)),
        ];
        let place = Place::with(&files, |config| config.max_model_bytes = Some(10_000));
        let e = place.find("big").unwrap_err();
        assert_eq!(e.code(), ResourceExhausted, "{e}");
        assert!(e.message().contains("--max-model-bytes"), "{e}");
        let small = place.find("small").unwrap();
        assert_eq!(
            place.models.size(small.id),
            onnx::fixed_batch(2).len() as u64
        );
    })
}

#[test]
fn a_model_goes_by_its_plain_name() {
    within(LIMIT, || {
        let place = Place::new(&[("sub/m.onnx", onnx::mlp())]);
        for spelling in ["./sub/.//m", "x/../sub/m"] {
            assert_eq!(place.find(spelling).unwrap().name, "sub/m");
        }
        // Whoever asks first, and however, it has one name.
        let place = Place::new(&[
            ("deep/v/2/model.onnx", onnx::mlp()),
            ("deep/v/10/model.onnx", onnx::mlp()),
            ("m.onnx", onnx::mlp()),
            (
                "w.proxy",
                br#"{"mdm":1,"onnx":"m.onnx","rows":"whole"}"#.to_vec(),
            ),
            ("w.onnx", onnx::mlp()),
        ]);
        for (asked, name, version) in [
            ("deep/v/2", "deep/v", "2"),
            ("deep/v", "deep/v", "10"),
            ("m.onnx", "m", "1"),
            ("w.onnx", "w.onnx", "1"),
            ("w.proxy", "w", "1"),
        ] {
            let found = place.find(asked).unwrap();
            let named = (found.name.as_str(), found.version.as_str());
            assert_eq!(named, (name, version), "{asked}");
        }
        let place = Place::new(&[("n.onnx", onnx::mlp())]);
        let absolute = place.folder.path().canonicalize().unwrap().join("./n");
        assert_eq!(place.find(&absolute.to_string_lossy()).unwrap().name, "n");
    })
}

#[test]
fn unloading_forgets() {
    within(LIMIT, || {
        let place = Place::new(&[("m.onnx", onnx::mlp()), ("n.onnx", onnx::mlp())]);
        let lookup = Lookup::of(Some("m"), &Params::new());
        assert_eq!(place.models.unload(&lookup).unwrap_err().code(), NotFound);
        let m = place.find("m").unwrap();
        let n = place.find("n").unwrap();
        assert_eq!(place.models.models().len(), 2);
        place.models.hold(m.id);
        assert_eq!(place.models.unload(&lookup).unwrap(), [m.id]);
        assert_eq!(place.models.models().len(), 1);
        assert_eq!(place.models.models()[0].name, "n");
        // Requests that had found it are still to be answered.
        assert!(place.models.open(m.id, 0, WorkerId(0)).is_ok());
        place.models.release(m.id);
        assert!(place.models.describe(m.id).is_none());
        assert_eq!(place.models.describe(n.id), Some(n));
        let Err(e) = place.models.open(m.id, 0, WorkerId(0)) else {
            panic!("it is forgotten")
        };
        assert_eq!(e.code(), NotFound);
        // A file that is gone can still be unloaded by its name.
        fs::remove_file(place.folder.path().join("n.onnx")).unwrap();
        let gone = Lookup::of(Some("n"), &Params::new());
        assert_eq!(place.models.unload(&gone).unwrap().len(), 1);
        assert!(
            place.find("m").unwrap().id > m.id,
            "numbers are not used again"
        );
        assert!(place.models.open(ModelId(999), 0, WorkerId(0)).is_err());
    })
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    within(LIMIT, || {
        let config = StoreConfig {
            run_script_dir: "no/such/folder".into(),
            allow_paths: vec![],
            devices: vec![],
            intra_op_threads: 1,
            gpu_memory_fraction: 0.0,
            extra_workers: false,
            express_workers: 0,
            max_model_bytes: None,
        };
        let Err(e) = ModelFolder::new(engine(), config) else {
            panic!("there is no such folder")
        };
        assert!(
            e.message().contains("--run-script-dir no/such/folder"),
            "{e}"
        );
    })
}
