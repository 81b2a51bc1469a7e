//! `mdm-model`: check, list, load and unload.

use std::process::Output;

use crate::common::{PATIENCE, Server, command, onnx, within};
use crate::folder;

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let row = vec![0; 64];
    let chain = format!(
        r#"{{"mdm":1,"warm_up":{{"x":[{row:?}]}},"stages":[
        {{"name":"first","plugin":"libecho.so","entry":"echo"}},{{"onnx":"mlp.onnx"}}]}}"#
    );
    let several = r#"{"mdm":1,"methods":{"predict":{"onnx":"mlp.onnx"},
        "shout":{"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}}}"#;
    vec![
        ("chain.proxy", chain.replace("[0, ", "[0.0, ").into_bytes()),
        ("several.proxy", several.as_bytes().to_vec()),
        ("broken.proxy", br#"{"mdm":1,"onx":"mlp.onnx"}"#.to_vec()),
        ("pickle.proxy", b"\x80\x04\x95".to_vec()),
        ("mlp.onnx", onnx::mlp()),
        ("deep/versions/2/model.onnx", onnx::fixed_batch(2)),
        ("deep/versions/1/model.onnx", onnx::fixed_batch(1)),
        ("deep/versions/10/model.onnx", onnx::fixed_batch(10)),
        ("words.txt", b"no model".to_vec()),
    ]
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_file_is_checked_and_shown() {
    within(PATIENCE, || {
        let dir = folder(&[files(), vec![("chain.onnx", onnx::mlp())]].concat());
        let check = |file: &str| {
            let path = dir.path().join("models").join(file);
            said(
                &command("mdm-model")
                    .arg("check")
                    .arg(path)
                    .output()
                    .unwrap(),
            )
        };
        let (code, out, err) = check("chain.proxy");
        assert_eq!(code, Some(0), "{err}");
        for line in [
            "chain.proxy: batched",
            "  inputs: anything",
            "  stage 1: plugin \"echo\" libecho.so: batched",
            "  stage 2: onnx mlp.onnx: batched",
            "    outputs: ",
            "  warm-up: x",
        ] {
            assert!(out.contains(line), "{line:?} is not in {out}");
        }
        let (code, out, _) = check("several.proxy");
        assert_eq!(code, Some(0));
        assert!(out.contains("several.proxy.predict: batched"), "{out}");
        assert!(
            out.contains("several.proxy.shout: batched\n  inputs: text BYTES [N]"),
            "{out}"
        );
        let (code, out, _) = check("mlp.onnx");
        assert_eq!(code, Some(0));
        assert!(out.contains("FP32 ["), "{out}");
        // It is not what requests for "chain" get.
        let (code, out, err) = check("chain.onnx");
        assert_eq!(code, Some(0), "{err}");
        let shares = "note: \"chain\" means chain.proxy, which comes first; chain.onnx goes by \"chain.onnx\"";
        assert!(out.contains(shares), "{out}");
        let (_, out, _) = check("deep/versions");
        for line in [
            "  ver: 1, 2, 10; serves 10",
            r#"{"mdm":1,"onnx":"model.onnx","options":{"batch":10}}"#,
        ] {
            assert!(out.contains(line), "{line:?} is not in {out}");
        }
        // A folder of models is none.
        let (code, _, err) = check("");
        assert_eq!(code, Some(1));
        let list = format!("mdm-model list {}", dir.path().join("models").display());
        assert!(err.contains(&list), "{list:?} is not in {err}");
        for (file, why) in [
            ("broken.proxy", "\"onx\" is unknown here, expected \"mdm\""),
            ("pickle.proxy", "Python pickle"),
            ("words.txt", "cannot open"),
            ("gone.proxy", "gone.proxy"),
        ] {
            let (code, _, err) = check(file);
            assert_eq!(code, Some(1), "{file}");
            assert!(err.contains(why), "{file}: {err}");
        }
        let (code, ..) = said(&command("mdm-model").arg("check").output().unwrap());
        assert_eq!(code, Some(2));
    });
}

#[test]
fn a_folder_is_listed_with_what_is_broken_in_it() {
    within(PATIENCE, || {
        let dir = folder(&files());
        let models = dir.path().join("models");
        for empty in ["emptyv/3", "deep/versions/11", "2024/empty"] {
            std::fs::create_dir_all(models.join(empty)).unwrap();
        }
        let output = command("mdm-model").arg("list").arg(models).output();
        let (code, out, err) = said(&output.unwrap());
        assert_eq!(code, Some(1), "{err}");
        let lines: Vec<&str> = out.lines().collect();
        let (notes, lines): (Vec<&str>, Vec<&str>) =
            lines.into_iter().partition(|l| l.starts_with("  note: "));
        let names: Vec<&str> = lines.iter().filter_map(|l| l.split(": ").next()).collect();
        assert_eq!(
            names,
            [
                "broken",
                "chain",
                "deep/versions",
                "mlp",
                "pickle",
                "several.predict",
                "several.shout",
                "deep/versions/11",
                "emptyv/3"
            ]
        );
        assert!(
            lines[8].contains("broken: this version's folder has no model"),
            "{out}"
        );
        assert!(lines[0].contains("broken: broken: "), "{out}");
        assert_eq!(lines[1], "chain: batched (plugin \"echo\" -> onnx)");
        assert_eq!(
            lines[2],
            "deep/versions: whole (onnx), ver: 1, 2, 10; serves 10"
        );
        let batched = r#"{"mdm":1,"onnx":"model.onnx","options":{"batch":10}}"#;
        assert!(notes.len() == 1 && notes[0].contains(batched), "{out}");
    });
}

#[test]
fn a_server_loads_and_unloads_by_name() {
    within(PATIENCE, || {
        let server = Server::start(folder(&files()), &[]);
        let port = server.port.to_string();
        let order = |order: &str, name: &str| {
            let output = command("mdm-model")
                .args([order, name, "-port", &port, "-ip=127.0.0.1"])
                .output();
            said(&output.unwrap())
        };
        let (code, out, err) = order("load", "several.shout");
        assert_eq!(
            (code, out.as_str()),
            (Some(0), "loaded several.shout, version 1 (batched)\n"),
            "{err}"
        );
        assert_eq!(server.client().models().unwrap()[0].name, "several.shout");
        let unloaded = order("unload", "several.shout").1;
        assert_eq!(unloaded, "unloaded several.shout, version 1\n");
        assert!(server.client().models().unwrap().is_empty());
        for name in ["deep/versions/1", "deep/versions"] {
            assert_eq!(order("load", name).0, Some(0));
        }
        // The name is that of the highest version, and of no other.
        let unloaded = order("unload", "deep/versions").1;
        assert_eq!(unloaded, "unloaded deep/versions, version 10\n");
        assert_eq!(server.client().models().unwrap()[0].version, "1");
        let (code, _, err) = order("load", "broken");
        assert_eq!(code, Some(1));
        assert!(err.contains("\"onx\" is unknown"), "{err}");
        assert_eq!(order("unload", "chain").0, Some(1));
    });
}

/// A model that declares no inputs, or takes JSON, gets lines as they are; one that takes strings gets strings.
#[test]
fn infer_gives_plugins_the_rows_that_they_take() {
    within(PATIENCE, || {
        let echo = br#"{"mdm":1,"plugin":"libecho.so","entry":"echo"}"#;
        let files = [files(), vec![("echo.proxy", echo.to_vec())]].concat();
        let server = Server::start(folder(&files), &[]);
        let path = |name: &str| server.dir.path().join(name).display().to_string();
        let infer = |model: &str, lines: &str| {
            std::fs::write(path("in.jsonl"), lines).unwrap();
            let output = command("mdm-infer")
                .args(["-model", model, "-port", &server.port.to_string()])
                .args(["-input", &path("in.jsonl"), "-output", &path("out.jsonl")])
                .output();
            let (code, _, err) = said(&output.unwrap());
            assert_eq!(code, Some(0), "{err}");
            std::fs::read_to_string(path("out.jsonl")).unwrap()
        };
        let out = infer("echo", "{\"a\":[1,null]}\n\"b\"\n");
        assert_eq!(out, "{\"\":{\"a\":[1,null]}}\n{\"\":\"b\"}\n");
        let out = infer("several.shout", "\"ja\"\n{\"text\":\"nein\"}\n");
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines[0].contains("\"JA!\"") && lines[1].contains("\"NEIN!\""),
            "{out}"
        );
    });
}
