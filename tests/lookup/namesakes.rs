//! Names that coincide: which model a name means, what the others go by, and that it is said.

use super::*;

#[test]
fn what_shares_a_name_is_listed_by_another_and_said() {
    within(LIMIT, || {
        let quick = br#"{"mdm":1,"onnx":"other.onnx","options":{"intra_op_threads":1}}"#;
        let methods = br#"{"mdm":1,"methods":{"top":{"onnx":"other.onnx"}}}"#;
        let place = Place::new(&[
            ("other.onnx", onnx::dynamic_unnamed()),
            ("words.proxy", quick.to_vec()),
            ("words.onnx", onnx::mlp()),
            ("words/3/model.onnx", onnx::fixed_batch(3)),
            ("words/4/model.onnx", onnx::fixed_batch(4)),
            ("alone.onnx", onnx::mlp()),
            ("notes", b"not a model".to_vec()),
            ("notes.onnx", onnx::mlp()),
            ("several.proxy", methods.to_vec()),
            ("several.top.onnx", onnx::mlp()),
            ("sub/words.onnx", onnx::mlp()),
        ]);
        let store = place.models.store();
        assert_eq!(
            store.names().unwrap(),
            [
                "alone",
                "notes.onnx",
                "other",
                "several.top",
                "sub/words",
                "words",
                "words.onnx",
                "words/4"
            ]
        );
        let notes = |name: &str| {
            let inspection = store
                .inspect(name)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let notes = inspection.notes.into_iter();
            let said: Vec<String> = notes.filter(|note| note.contains(" means ")).collect();
            said
        };
        for name in ["alone", "other", "sub/words"] {
            assert_eq!(notes(name), [""; 0], "{name}");
        }
        let words = "\"words\" means words.proxy, which comes first; words.onnx goes by \"words.onnx\", the folder \
                     words/ goes by \"words/VERSION\"";
        for name in ["words", "words.onnx", "words/4"] {
            assert_eq!(notes(name), [words], "{name}");
        }
        assert_eq!(
            notes("notes.onnx"),
            [
                "\"notes\" means the file notes, which comes first; notes.onnx goes by \"notes.onnx\""
            ]
        );
        assert_eq!(
            notes("several.top"),
            [
                "\"several.top\" means several.top.onnx, which comes first; the method \"top\" of several.proxy goes by \
              \"several.proxy.top\""
            ]
        );
        // What is said is so.
        let first = |name: &str| first_of(&place.find(name).unwrap());
        assert_eq!(first("words"), Dim::Dynamic);
        assert_eq!(first("words.onnx"), Dim::Symbol("N".to_owned()));
        assert_eq!(first("words/3"), Dim::Fixed(3));
        assert_eq!(first("several.top"), Dim::Symbol("N".to_owned()));
        assert_eq!(first("several.proxy.top"), Dim::Dynamic);
    })
}
