//! `examples/ner` as a user has it: the proxy that `ner-dump` writes, the real server, sentences, entities.

#[path = "../common/built.rs"]
mod built;
#[path = "../common/mod.rs"]
mod common;
mod parts;

#[path = "../../examples/ner/model.rs"]
#[allow(dead_code)] // the plugin uses the rest, here and below
mod model;
#[path = "../../examples/ner/text.rs"]
#[allow(dead_code)] // as above
mod text;
#[path = "../../examples/ner/viterbi.rs"]
#[allow(dead_code)] // as above
mod viterbi;

use std::path::PathBuf;
use std::process::Command;

use mdm::client::{Call, Client, IntoInputs};
use mdm::{ErrorCode, Result, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{PATIENCE, Server, refused, within};

/// A sentence of `heldout.jsonl` and what is in it.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    text: String,
    entities: Vec<(usize, usize, String)>,
}

/// What the server answers.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Entity {
    text: String,
    start: usize,
    end: usize,
    tag: String,
}

fn held_out() -> Vec<Line> {
    let text = std::fs::read_to_string(built::sources("ner").join("heldout.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

/// A folder as `ner-dump` writes it.
fn folder() -> TempDir {
    built::plugin("ner");
    let dir = common::models(&[]);
    let output = Command::new(built::program("ner-dump"))
        .arg(dir.path().join("models"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    dir
}

fn serve(flags: &[&str]) -> Server {
    let flags = [flags, &["--intra-op-threads", "1"]].concat();
    Server::start(folder(), &flags)
}

/// The parameters of the ancestor's manual, changed.
fn call(change: Value) -> Call {
    let mut params = json!({
        "model_proxy_path": "ner_model.proxy",
        "c_tag": "BD",
        "is_independent": false,
        "word2id_path": "word2id.json",
    });
    let own = params.as_object_mut().unwrap();
    own.extend(change.as_object().unwrap().clone());
    own.retain(|_, value| !value.is_null());
    Call::default().params(own.clone())
}

fn entities(client: &Client, data: impl IntoInputs, change: Value) -> Result<Vec<Vec<Entity>>> {
    client.infer(data, call(change))?.json_rows("entities")
}

#[test]
fn the_birth_dates_of_the_held_out_sentences_are_found_with_any_number_of_workers() {
    within(PATIENCE, || {
        let lines = held_out();
        let mut answers = Vec::new();
        for workers in ["1", "2", "4"] {
            let server = serve(&["--num-worker", workers]);
            let response = server
                .client()
                .infer(texts(&lines), call(json!({})))
                .unwrap();
            assert!(response.stats().chunks > 1);
            answers.push(response.json_rows::<Vec<Entity>>("entities").unwrap());
        }
        let (mut found, mut right, mut there) = (0, 0, 0);
        assert_eq!(answers[0].len(), lines.len());
        for (line, own) in lines.iter().zip(&answers[0]) {
            there += line.entities.len();
            found += own.len();
            for entity in own {
                let place = (entity.start, entity.end, entity.tag.clone());
                right += usize::from(line.entities.contains(&place));
                let skipped = line.text.chars().skip(entity.start);
                let text: String = skipped.take(entity.end - entity.start).collect();
                assert_eq!(entity.text, text);
            }
        }
        // Span F1 = 2 * 765 / (765 + 790) = 0.9839.
        assert_eq!((right, found, there), (765, 765, 790));
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    });
}

#[test]
fn a_sentence_has_the_same_entities_alone_and_among_others_in_any_order() {
    within(PATIENCE, || {
        let server = serve(&["--num-worker", "2"]);
        let client = server.client();
        let lines = &held_out()[..200];
        let sentences = texts(lines);
        let together = entities(&client, &sentences, json!({})).unwrap();
        let alone = entities(&client, &sentences, json!({"is_independent": true})).unwrap();
        assert_eq!(alone, together);
        let turned: Vec<&str> = sentences.iter().rev().copied().collect();
        let mut answer = entities(&client, &turned, json!({})).unwrap();
        answer.reverse();
        assert_eq!(answer, together);
        // The table of characters that the proxy names.
        let answer = entities(&client, &sentences, json!({"word2id_path": null})).unwrap();
        assert_eq!(answer, together);
    });
}

#[test]
fn only_entities_of_the_tag_that_is_asked_for_come_back() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let client = server.client();
        let text = ["被告人张三，男，1985年3月12日出生，汉族，2019年5月1日被逮捕。"];
        let date = Entity {
            text: "1985年3月12日".to_owned(),
            start: 8,
            end: 18,
            tag: "BD".to_owned(),
        };
        let found = |change| entities(&client, &text, change).unwrap();
        assert_eq!(found(json!({})), [[date.clone()]]);
        assert_eq!(found(json!({"c_tag": null})), [[date]]);
        assert_eq!(found(json!({"c_tag": "ORG"})), [[]]);
        let wrong = entities(&client, &text, json!({"c_tag": 1}));
        refused(wrong, ErrorCode::InvalidArgument, &["\"c_tag\" is 1"]);
        let wrong = entities(&client, &text, json!({"is_independent": "no"}));
        refused(wrong, ErrorCode::InvalidArgument, &["true or false"]);
        let wrong = entities(&client, &[1f32], json!({}));
        refused(
            wrong,
            ErrorCode::InvalidArgument,
            &["expected BYTES", "FP32"],
        );
    });
}

#[test]
fn a_row_that_is_not_text_is_named_by_its_number_in_the_request() {
    within(PATIENCE, || {
        let server = serve(&[
            "--num-worker",
            "2",
            "--max-chunk-ms",
            "0",
            "--max-batch-size",
            "64",
        ]);
        let client = server.client();
        let lines = held_out();
        for row in [0, 3, 777] {
            let mut bytes: Vec<&[u8]> = lines.iter().map(|line| line.text.as_bytes()).collect();
            bytes[row] = b"\xe5\xb9";
            let tensor = Tensor::from_strings("text", None, &bytes).unwrap();
            let named = format!("row {row}: ");
            let refusal = entities(&client, tensor, json!({}));
            refused(refusal, ErrorCode::InvalidArgument, &[&named, "not UTF-8"]);
            assert_eq!(entities(&client, &["好"], json!({})).unwrap(), [[]]);
        }
        // What does not fit the declared input is refused by the server, which names it.
        let rows = Tensor::from_json_rows("text", &["好", "好"]).unwrap();
        let table = Tensor::from_strings("text", Some(vec![1, 2]), &["一", "二"]).unwrap();
        for (tensor, got) in [(rows, "expected BYTES, got JSON"), (table, "[1, 2]")] {
            let refusal = entities(&client, tensor, json!({}));
            refused(
                refusal,
                ErrorCode::InvalidArgument,
                &["input \"text\"", got],
            );
        }
    });
}

#[test]
fn small_requests_that_run_together_do_not_spoil_each_other() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let client = server.client();
        let lines = &held_out()[..100];
        let right = entities(&client, texts(lines), json!({})).unwrap();
        let tickets = lines.iter().enumerate().map(|(row, line)| {
            let bytes: &[u8] = if row == 50 {
                b"\xff"
            } else {
                line.text.as_bytes()
            };
            let tensor = Tensor::from_strings("text", None, &[bytes]).unwrap();
            client.submit(tensor, call(json!({}))).unwrap()
        });
        let tickets: Vec<_> = tickets.collect();
        let answers = client.fetch_all(tickets).into_iter().zip(&right);
        for (row, (answer, right)) in answers.enumerate() {
            if row == 50 {
                refused(
                    answer,
                    ErrorCode::InvalidArgument,
                    &["row 0: ", "not UTF-8"],
                );
            } else {
                let own: Vec<Vec<Entity>> = answer.unwrap().json_rows("entities").unwrap();
                assert_eq!(own, std::slice::from_ref(right), "sentence {row}");
            }
        }
    });
}

#[test]
fn sentences_of_any_length_have_answers_and_those_that_are_too_long_are_named() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let client = server.client();
        assert_eq!(entities(&client, &[""], json!({})).unwrap(), [[]]);
        assert_eq!(
            entities(&client, &["", "", ""], json!({})).unwrap(),
            [[], [], []]
        );
        let sentence = "被告人张三，男，1985年3月12日出生，汉族，2019年5月1日被逮捕。";
        let long: String = sentence.chars().cycle().take(5000).collect();
        let found = entities(&client, &["", sentence, long.as_str(), ""], json!({})).unwrap();
        let counts: Vec<usize> = found.iter().map(Vec::len).collect();
        assert_eq!((counts[0], counts[1], counts[3]), (0, 1, 0));
        let length = sentence.chars().count();
        assert!(counts[2] * 2 > 5000 / length, "{} found", counts[2]);
        let last = found[2].last().unwrap();
        let text: String = long
            .chars()
            .skip(last.start)
            .take(last.end - last.start)
            .collect();
        assert_eq!(last.text, text);
        // What one run of the engine takes is bounded, and so is a sentence.
        let too_long = "好".repeat(20_001);
        let refusal = entities(&client, &["好", too_long.as_str()], json!({}));
        refused(
            refusal,
            ErrorCode::InvalidArgument,
            &["row 1: ", "20001 characters, and 20000"],
        );
        assert_eq!(entities(&client, &["好"], json!({})).unwrap(), [[]]);
    });
}

#[test]
fn the_table_of_characters_is_the_one_that_the_request_names() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let client = server.client();
        let text = ["被告人张三，男，1985年3月12日出生。"];
        let found = |path: &str| entities(&client, &text, json!({"word2id_path": path}));
        let count = |path: &str| found(path).unwrap()[0].len();
        refused(
            found("gone.json"),
            ErrorCode::NotFound,
            &["word2id_path", "gone.json"],
        );
        refused(
            found("/etc/passwd"),
            ErrorCode::PermissionDenied,
            &["word2id_path"],
        );
        refused(
            found("../log.txt"),
            ErrorCode::PermissionDenied,
            &["word2id_path"],
        );
        let write = |text: &[u8]| {
            std::fs::write(server.models().join("own.json"), text).unwrap();
        };
        write(b"[]");
        let refusal = found("own.json");
        refused(
            refusal,
            ErrorCode::FailedPrecondition,
            &["own.json", "\"character\": id"],
        );
        write(br#"{"<PAD>": 0}"#);
        refused(found("own.json"), ErrorCode::FailedPrecondition, &["<UNK>"]);
        // A table that knows no character finds nothing; one that is mended is read again.
        write(br#"{"<PAD>": 0, "<UNK>": 1}"#);
        assert_eq!(count("own.json"), 0);
        write(&std::fs::read(server.models().join("word2id.json")).unwrap());
        assert_eq!(count("own.json"), 1);
        // An id that the model has no embedding for is the engine's error, and nobody else's.
        write(br#"{"<PAD>": 0, "<UNK>": 99999}"#);
        assert!(found("own.json").is_err());
        assert_eq!(count("word2id.json"), 1);
    });
}

#[test]
fn the_demo_runs_the_five_steps() {
    within(PATIENCE, || {
        let dir = common::models(&[]);
        let output = Command::new(built::sources("ner").join("demo.sh"))
            .arg(built::profile())
            .arg(dir.path().join("models"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{output:?}");
        for line in ["span F1 0.9839", "ner_model", "stopped"] {
            assert!(said.contains(line), "{line:?} is not in: {said}");
        }
    });
}

/// The commands are run as they are written, on a free port, with `target/release` and `target/ner` where they are here.
#[test]
fn the_five_steps_of_the_readme_do_what_it_says() {
    const README: &str = include_str!("../../examples/ner/README.md");
    within(PATIENCE, || {
        let (_, section) = README.split_once("## The five steps").unwrap();
        let (_, block) = section.split_once("```console\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let mut commands = block.split("$ ").skip(1).map(|command| {
            let (typed, answer) = command.split_once('\n').unwrap();
            (typed, answer)
        });
        assert_eq!(commands.next().unwrap().0, "make ner");
        let dir = folder();
        std::fs::create_dir(dir.path().join("target")).unwrap();
        let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
        link(built::profile(), dir.path().join("target/release")).unwrap();
        link(dir.path().join("models"), dir.path().join("target/ner")).unwrap();
        let mut server = None;
        for (typed, answer) in commands {
            if let Some(flags) = typed.strip_prefix("target/release/mdm-server-start ") {
                let flags = flags.strip_suffix("--run-script-dir target/ner").unwrap();
                let flags: Vec<&str> = flags.split_whitespace().collect();
                server = Some(Server::start(folder(), &flags));
                continue;
            }
            let port = server.as_ref().map_or(0, |server| server.port).to_string();
            let mut words = typed.split_whitespace();
            let mut command = Command::new(dir.path().join(words.next().unwrap()));
            command.current_dir(dir.path());
            command.args(words.map(|word| if word == "5555" { &*port } else { word }));
            if typed.contains("ner-client") {
                command.args(["--server", &format!("tcp://localhost:{port}")]);
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{typed}: {said}{output:?}");
            let without_time = |text: &str| -> Vec<String> {
                let lines = text.lines().map(|line| match line.rsplit_once(", ") {
                    Some((line, time)) if time.ends_with(" s") => line.to_owned(),
                    _ => line.to_owned(),
                });
                lines.collect()
            };
            if !answer.is_empty() {
                assert_eq!(without_time(&said), without_time(answer));
            }
        }
        assert!(server.unwrap().wait().success());
    });
}

/// Who has the folder alone learns what to send: the inputs are declared.
#[test]
fn check_says_what_the_model_takes_and_gives() {
    within(PATIENCE, || {
        let dir = folder();
        let output = common::command("mdm-model")
            .arg("check")
            .arg(dir.path().join("models/ner_model.proxy"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("  inputs: text BYTES [N]\n"), "{output:?}");
        assert!(said.contains("  outputs: entities JSON [N]\n"), "{said}");
    });
}
