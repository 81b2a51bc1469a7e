//! The pure parts of the example, which has no tests of its own because an example's are not run.

use crate::common::within::{LIMIT, within};
use crate::model::Entity;
use crate::text::{MOST_CHARACTERS, Plan};
use crate::viterbi::{Crf, Decoder};

#[test]
fn a_plan_runs_every_sentence_once_and_pads_little() {
    within(LIMIT, || {
        let lengths: Vec<usize> = (0..300).map(|row| (row * 7919) % 151).collect();
        let mut plan = Plan::default();
        for most in [1, 16] {
            plan.make(&lengths, most);
            let mut seen: Vec<usize> = plan.runs().flatten().copied().collect();
            seen.sort_unstable();
            let filled: Vec<usize> = (0..300).filter(|&row| lengths[row] > 0).collect();
            assert_eq!(seen, filled);
            assert!(plan.runs().all(|run| (1..=most).contains(&run.len())));
        }
        let cells: usize = plan
            .runs()
            .map(|run| run.len() * run.iter().map(|&row| lengths[row]).max().unwrap())
            .sum();
        let characters: usize = lengths.iter().sum();
        assert!(cells * 20 < characters * 21, "{cells} for {characters}");
    })
}

#[test]
fn long_sentences_run_apart() {
    within(LIMIT, || {
        let mut plan = Plan::default();
        plan.make(&[MOST_CHARACTERS, MOST_CHARACTERS, 5000, 5000, 0], 16);
        for run in plan.runs() {
            assert!(run.len() == 1 || run.len() * 5000 <= MOST_CHARACTERS);
        }
        plan.make(&[0, 0], 16);
        assert_eq!(plan.runs().count(), 0);
    })
}

fn crf(json: &str) -> mdm::Result<Crf> {
    Crf::new(&serde_json::from_str(json).expect("parameters"))
}

#[test]
fn spans_begin_with_b_and_go_on_with_i_of_their_label() {
    within(LIMIT, || {
        let crf = crf(
            r#"{"tags":["O","B-X","I-X","B-Y","I-Y"],"orientation":"transitions[from][to]",
            "transitions":[[0,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0],[0,0,0,0,0]],
            "start":[0,0,0,0,0],"end":[0,0,0,0,0]}"#,
        )
        .unwrap();
        let mut emissions = Vec::new();
        for tag in [1, 2, 3, 4, 4, 2, 0, 2, 3] {
            emissions.extend((0..5).map(|other| if other == tag { 1f32 } else { 0.0 }));
        }
        let spans = Decoder::default().decode(&crf, &emissions).to_vec();
        let shown: Vec<_> = spans
            .iter()
            .map(|span| (span.start, span.end, crf.label(*span)))
            .collect();
        assert_eq!(shown, [(0, 2, "X"), (2, 5, "Y"), (8, 9, "Y")]);
        assert!(Decoder::default().decode(&crf, &[]).is_empty());
    })
}

#[test]
fn transitions_are_of_the_tag_before_and_the_tag_after() {
    within(LIMIT, || {
        // From O to B costs much, from B to O nothing: the best is to begin at once.
        let text = r#"{"tags":["O","B-X"],"orientation":"transitions[from][to]",
            "transitions":[[0,-9],[0,0]],"start":[0,0],"end":[0,0]}"#;
        let crf = crf(text).unwrap();
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(&crf, &[0.0, 1.0, 0.0, 1.0]).len(), 2);
        assert_eq!(decoder.decode(&crf, &[2.0, 0.0, 0.0, 1.0]).len(), 0);
    })
}

#[test]
fn what_does_not_fit_is_refused() {
    within(LIMIT, || {
        for (text, why) in [
            (r#"["O"]"#, "as many rows"),
            (r#"["O","X"]"#, "the tag \"X\""),
        ] {
            let text = format!(
                r#"{{"tags":{text},"orientation":"transitions[from][to]",
                "transitions":[[0,0],[0,0]],"start":[0,0],"end":[0,0]}}"#
            );
            let e = crf(&text).unwrap_err();
            assert!(e.message().contains(why), "{e}");
        }
    })
}

#[test]
fn entities_are_cut_by_characters() {
    within(LIMIT, || {
        let parameters = serde_json::json!({
            "tags": ["O", "B-BD", "I-BD"], "orientation": "transitions[from][to]",
            "transitions": [[0, 0, -10000], [0, 0, 0], [0, 0, 0]],
            "start": [0, 0, -10000], "end": [0, 0, 0],
        });
        let crf = Crf::new(&serde_json::from_value(parameters).unwrap()).unwrap();
        let text = "女，七月一日a生；八日";
        let mut emissions = vec![0f32; text.chars().count() * 3];
        for (at, tag) in [(2, 1), (3, 2), (4, 2), (5, 2), (6, 1), (9, 1), (10, 2)] {
            emissions[at * 3 + tag] = 1.0;
        }
        let mut decoder = Decoder::default();
        let spans = decoder.decode(&crf, &emissions);
        let found: Vec<_> = Entity::all(&crf, text, spans)
            .map(|entity| (entity.text, entity.start, entity.end, entity.tag))
            .collect();
        let expected = [
            ("七月一日", 2, 6, "BD"),
            ("a", 6, 7, "BD"),
            ("八日", 9, 11, "BD"),
        ];
        assert_eq!(found, expected);
    })
}
