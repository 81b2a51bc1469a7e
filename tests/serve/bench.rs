//! `mdm-bench` against a real server: it sends as many requests as it says, and counts what comes of them. No time is
//! judged here; what is made of times is tested with a simulated clock, in the command's own tests.

use std::collections::HashMap;
use std::path::Path;

use mdm::DataType;

use crate::commands::run;
use crate::common::{PATIENCE, Server, models, onnx, within};
use crate::models::busy;
use crate::settled;

/// The lines of a table that `--csv` wrote, by name.
pub fn table(path: &Path) -> Vec<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).expect("the table");
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("names").split(',').collect();
    let line = |line: &str| {
        let fields = names.iter().zip(line.split(','));
        fields
            .map(|(name, field)| (name.to_string(), field.to_string()))
            .collect()
    };
    lines.map(line).collect()
}

#[test]
fn bench_sends_and_counts_exactly_the_requests_that_it_is_told_to() {
    within(PATIENCE, || {
        let dir = models(&[
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("slow.onnx", busy()),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let bench = |flags: &[&str]| {
            let usual = ["--warm-up", "0", "--csv", "table.csv"];
            let (code, out, said) = run("mdm-bench", &server, here, &[&usual, flags].concat());
            assert_eq!(code, Some(0), "{flags:?}: {said}");
            out
        };

        let out = bench(&[
            "--model",
            "two",
            "--requests",
            "40",
            "--concurrency",
            "1,8",
            "--rows-per-request",
            "1,30",
        ]);
        let cases = table(&here.join("table.csv"));
        let of = |name: &str| cases.iter().map(|case| case[name].parse::<u64>().unwrap());
        assert!(of("requests").all(|count| count == 40), "{cases:?}");
        assert!(of("errors").all(|count| count == 0), "{cases:?}");
        assert_eq!(of("rows_per_request").collect::<Vec<_>>(), [1, 1, 30, 30]);
        assert_eq!(of("concurrency").collect::<Vec<_>>(), [1, 8, 1, 8]);
        assert_eq!(out.lines().count(), 2 + 4, "{out}");
        // And one to try, for each size.
        let totals = settled(&server.client()).totals;
        assert_eq!((totals.requests, totals.rows), (4 * 40 + 2, 81 * (1 + 30)));

        // An open loop whose rate no worker can keep up with leaves out nothing.
        let slow = "[60000,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]\n";
        std::fs::write(here.join("slow.jsonl"), slow).unwrap();
        let flags = [
            "--input",
            "slow.jsonl",
            "--rate",
            "100000",
            "--concurrency",
            "4",
        ];
        bench(&[&["--model", "slow", "--requests", "30"], &flags[..]].concat());
        let cases = table(&here.join("table.csv"));
        let field = |name: &str| cases[0][name].as_str();
        assert_eq!(
            (field("requests"), field("unsent"), field("errors")),
            ("30", "0", "0")
        );
        let after = settled(&server.client()).totals;
        assert_eq!(after.requests - totals.requests, 31);
    });
}

#[test]
fn bench_counts_errors_by_their_code() {
    within(PATIENCE, || {
        let server = Server::start(
            models(&[("words.onnx", onnx::echo(DataType::Bytes, &[]))]),
            &[],
        );
        let here = server.dir.path();
        // Every fourth request has a text that is not UTF-8.
        std::fs::write(here.join("words.txt"), b"one\ntwo\nthree\nfo\xffr\n").unwrap();
        let flags = [
            "--model",
            "words",
            "--input",
            "words.txt",
            "--concurrency",
            "3",
        ];
        let counted = ["--requests", "100", "--warm-up", "0", "--csv", "table.csv"];
        let (code, out, said) = run("mdm-bench", &server, here, &[flags, counted].concat());
        assert_eq!(code, Some(0), "{said}");
        let case = &table(&here.join("table.csv"))[0];
        assert_eq!((&*case["requests"], &*case["errors"]), ("100", "25"));
        assert_eq!(case["error_codes"], "INVALID_ARGUMENT=25");
        assert!(out.contains("25 times INVALID_ARGUMENT, first: "), "{out}");
        let totals = settled(&server.client()).totals;
        assert_eq!(
            (totals.requests, totals.errors["INVALID_ARGUMENT"]),
            (101, 25)
        );
    });
}

#[test]
fn bench_says_in_one_line_what_is_wrong() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
            ("slow.onnx", busy()),
        ]);
        let server = Server::start(dir, &[]);
        let here = server.dir.path();
        std::fs::write(here.join("wrong.jsonl"), "[1,2,3]\n").unwrap();
        std::fs::write(here.join("texts.txt"), "a\n").unwrap();
        let wrong: [(&[&str], &str); 6] = [
            (&["--model", "no_such"], "\"no_such\""),
            (&["--model", "echo", "--input", "gone.npy"], "gone.npy"),
            (&["--model", "echo", "--input", "wrong.jsonl"], "line 1"),
            (
                &["--model", "echo", "--input", "texts.txt"],
                "a first request",
            ),
            (
                &["--model", "slow", "--rows-per-request", "2"],
                "leave --rows-per-request out",
            ),
            (
                &["--model", "echo", "--concurrency", "9999"],
                "--concurrency 9999",
            ),
        ];
        for (flags, words) in wrong {
            let (code, _, said) = run("mdm-bench", &server, here, flags);
            assert_eq!(
                (code, said.lines().count()),
                (Some(1), 1),
                "{flags:?}: {said}"
            );
            assert!(said.contains(words), "{words:?} is not in: {said}");
        }
        for flags in [
            &["--model", "echo", "--rate", "0"],
            &["--model", "echo", "--rows", "x"],
        ] {
            assert_eq!(
                run("mdm-bench", &server, here, &flags[..]).0,
                Some(2),
                "{flags:?}"
            );
        }
    });
}
