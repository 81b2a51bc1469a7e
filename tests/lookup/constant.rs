//! A model whose inputs and outputs all begin with one constant: rows only where somebody says so.

use super::*;

fn tensors(rows: usize) -> Vec<mdm::Tensor> {
    vec![ramp("m", &[rows, 3]), ramp("v", &[rows])]
}

/// Two rows of a matrix and of a vector were padded to three of each and multiplied.
#[test]
fn a_square_matrix_is_not_taken_for_rows() {
    within(LIMIT, || {
        let place = Place::new(&[("square.onnx", onnx::square_times_vector(3))]);
        let (description, mut model) = place.open("square");
        assert_eq!(description.kind, BatchKind::Whole);
        assert_eq!(description.unproven_rows, Some(3));
        let m = mdm::Tensor::from_vec("m", vec![3, 3], (1..10).map(|i| i as f32).collect());
        let v = mdm::Tensor::from_vec("v", vec![3], vec![1f32, 1.0, 1.0]);
        let inputs = Batch {
            tensors: vec![m.unwrap(), v.unwrap()],
        };
        let outputs = model.infer(&inputs, &Params::new()).unwrap();
        assert_eq!(
            outputs.tensors[0].to_vec::<f32>().unwrap(),
            [6.0, 15.0, 24.0]
        );
    })
}

#[test]
fn a_batch_is_taken_where_dimension_0_is_that_number_everywhere() {
    within(LIMIT, || {
        let proxy = |rest: &str| format!(r#"{{"mdm":1,{rest}}}"#).into_bytes();
        let place = Place::new(&[
            ("four.onnx", onnx::fixed_batch(4)),
            ("none.onnx", onnx::no_batch()),
            ("quick.proxy", onnx::rows_at_a_time("four.onnx", 4)),
            (
                "stage.proxy",
                proxy(r#""stages":[{"name":"net","onnx":"four.onnx","options":{"batch":4}}]"#),
            ),
            (
                "chain.proxy",
                proxy(
                    r#""stages":[{"onnx":"four.onnx","options":{"batch":4}},{"onnx":"id.onnx"}]"#,
                ),
            ),
            ("id.onnx", onnx::dynamic_unnamed()),
            (
                "said.proxy",
                proxy(r#""onnx":"four.onnx","rows":"independent""#),
            ),
            ("five.proxy", onnx::rows_at_a_time("four.onnx", 5)),
            ("three.proxy", onnx::rows_at_a_time("none.onnx", 3)),
            (
                "both.proxy",
                proxy(r#""onnx":"four.onnx","rows":"whole","options":{"batch":4}"#),
            ),
            ("whole.proxy", proxy(r#""onnx":"four.onnx","rows":"whole""#)),
        ]);
        for name in ["quick", "stage", "chain", "said"] {
            let (description, mut model) = place.open(name);
            assert_eq!(description.kind, BatchKind::Fixed(4), "{name}");
            assert_eq!(description.unproven_rows, None, "{name}");
            let outputs = model.infer(&ramp("x", &[7, 8]).into(), &Params::new());
            assert_eq!(outputs.unwrap().rows().unwrap(), 7, "{name}");
        }
        let plain = place.find("four").unwrap();
        assert_eq!(
            (plain.kind, plain.unproven_rows),
            (BatchKind::Whole, Some(4))
        );
        let whole = place.find("whole").unwrap();
        assert_eq!((whole.kind, whole.unproven_rows), (BatchKind::Whole, None));
        for (name, why) in [
            ("five", "\"batch\" is 5, but the model takes exactly 4 rows"),
            ("three", "the same everywhere: \"b\" is [4, 5]"),
            ("both", "its \"rows\" are \"whole\""),
        ] {
            let e = place.find(name).unwrap_err();
            assert_eq!(e.code(), FailedPrecondition, "{name}: {e}");
            assert!(e.message().contains(why), "{name}: {e}");
        }
    })
}

#[test]
fn who_sends_other_rows_is_told_how_to_have_it_batched() {
    within(LIMIT, || {
        let place = Place::new(&[("square.onnx", onnx::square_times_vector(3))]);
        let inspection = place.models.store().inspect("square").unwrap();
        let [note] = &inspection.notes[..] else {
            panic!("{:?}", inspection.notes)
        };
        for words in [
            "\"square.onnx\" is 3",
            r#"{"mdm":1,"onnx":"square.onnx","options":{"batch":3}}"#,
        ] {
            assert!(note.contains(words), "{note}");
        }
        // The engine's own word, where nobody checked: it does not take them.
        place.infer("square", tensors(2)).unwrap_err();
        place.infer("square", tensors(3)).unwrap();
    })
}
