//! Files that change, move or go, and what a load then finds.

use super::*;

#[test]
fn a_changed_file_is_another_model_from_the_next_load_on() {
    within(LIMIT, || {
        let place = Place::new(&[("m.onnx", onnx::fixed_batch(2))]);
        let path = place.folder.path().join("m.onnx");
        let lookup = Lookup::of(Some("m"), &Params::new());
        let first = place.find("m").unwrap();
        assert_eq!(
            place.models.load(&lookup).unwrap().id,
            first.id,
            "nothing has changed"
        );
        let (_, mut session) = place.open("m");
        write(&path, &onnx::fixed_batch(3));
        // Whoever asks has what was loaded, by names that it was never asked by too.
        for name in ["m", "./m", "m.onnx"] {
            assert_eq!(place.find(name).unwrap().id, first.id, "{name}");
        }
        let second = place.models.load(&lookup).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(first_of(&second), Dim::Fixed(3));
        assert_eq!(
            place.find("m").unwrap().id,
            first.id,
            "it is not served yet"
        );
        place.models.hold(first.id);
        assert!(place.models.serve(second.id));
        assert!(!place.models.is_served(first.id));
        for name in ["m", "./m", "m.onnx"] {
            assert_eq!(place.find(name).unwrap().id, second.id, "{name}");
        }
        assert_eq!(place.models.models().len(), 1);
        // What is open goes on; what is not yet open must not get the new graph under the old number.
        let inputs = Batch {
            tensors: vec![ramp("x", &[2, 8])],
        };
        session.infer(&inputs, &Params::new()).unwrap();
        let Err(e) = place.models.open(first.id, 0, WorkerId(1)) else {
            panic!("the file is another one")
        };
        assert_eq!(e.code(), FailedPrecondition, "{e}");
        assert!(e.message().contains("was changed"), "{e}");
        place.models.open(second.id, 0, WorkerId(1)).unwrap();
        place.models.release(first.id);
        assert!(place.models.describe(first.id).is_none());
        // One that cannot be loaded changes nothing.
        write(&path, b"noise");
        place.models.load(&lookup).unwrap_err();
        assert_eq!(place.find("m").unwrap().id, second.id);
    })
}

#[test]
fn a_file_that_was_moved_away_or_replaced_can_still_be_opened_as_it_was() {
    within(LIMIT, || {
        let place = Place::new(&[
            ("m.onnx", onnx::fixed_batch(2)),
            ("new", onnx::fixed_batch(3)),
        ]);
        let folder = place.folder.path();
        let first = place.find("m").unwrap();
        place.models.hold(first.id);
        fs::rename(folder.join("new"), folder.join("m.onnx")).unwrap();
        let second = place.load("m");
        assert_eq!(first_of(&second), Dim::Fixed(3));
        fs::remove_file(folder.join("m.onnx")).unwrap();
        for (model, rows) in [(&first, 2), (&second, 3)] {
            for worker in 0..3 {
                let mut opened = place.models.open(model.id, 0, WorkerId(worker)).unwrap();
                let inputs = ramp("x", &[rows, 8]).into();
                let outputs = opened.infer(&inputs, &Params::new()).unwrap();
                assert_eq!(outputs.rows().unwrap(), rows);
            }
        }
    })
}

#[test]
fn a_new_version_is_found_by_the_next_load() {
    within(LIMIT, || {
        let place = Place::new(&[
            ("v/1/model.onnx", onnx::fixed_batch(1)),
            ("v/2/model.onnx", onnx::fixed_batch(2)),
        ]);
        let two = place.find("v").unwrap();
        assert_eq!(place.find("v/2").unwrap().id, two.id);
        write(
            &place.folder.path().join("v/3/model.onnx"),
            &onnx::fixed_batch(3),
        );
        assert_eq!(place.find("v").unwrap().id, two.id);
        assert_eq!(place.find("v/3").unwrap().version, "3");
        assert_eq!(place.find("v").unwrap().id, two.id);
        let lookup = Lookup::of(Some("v"), &Params::new());
        let three = place.models.load(&lookup).unwrap();
        // The one that has a name of its own stays.
        assert!(place.models.serve(three.id));
        assert!(place.models.is_served(two.id));
        assert_eq!(place.find("v").unwrap().version, "3");
        assert_eq!(place.find("v/2").unwrap().id, two.id);
        // One that has no other name leaves.
        write(
            &place.folder.path().join("v/4/model.onnx"),
            &onnx::fixed_batch(4),
        );
        place
            .models
            .unload(&Lookup::of(Some("v/3"), &Params::new()))
            .unwrap();
        let four = place.load("v");
        assert_eq!(four.version, "4");
        write(
            &place.folder.path().join("v/5/model.onnx"),
            &onnx::fixed_batch(5),
        );
        place.load("v");
        assert!(!place.models.is_served(four.id));
        let unloaded = place.models.unload(&lookup).unwrap();
        assert_eq!(unloaded.len(), 1);
        assert_eq!(place.models.models().len(), 1, "v/2 is left");
    })
}

#[test]
fn a_load_looks_at_every_file_of_a_model() {
    within(LIMIT, || {
        let place = Place::new(&[
            ("a.onnx", onnx::echo(mdm::DataType::Fp32, &[2])),
            ("b.onnx", onnx::echo(mdm::DataType::Fp32, &[2])),
            (
                "c.proxy",
                br#"{"mdm":1,"stages":[{"onnx":"a.onnx"},{"onnx":"b.onnx"}]}"#.to_vec(),
            ),
            (
                "p.proxy",
                br#"{"mdm":1,"onnx":"a.onnx","rows":"whole","warm_up":{"x":[[1,2]]}}"#.to_vec(),
            ),
        ]);
        let at = |name: &str| place.folder.path().join(name);
        let chain = place.load("c");
        assert_eq!(place.load("c").id, chain.id);
        // The same graph, another file.
        fs::copy(at("b.onnx"), at("copy")).unwrap();
        fs::rename(at("copy"), at("b.onnx")).unwrap();
        assert_eq!(place.find("c").unwrap().id, chain.id);
        let second = place.load("c");
        assert_ne!(second.id, chain.id);
        write(
            &at("c.proxy"),
            br#"{"mdm":1,"stages":[{"onnx":"b.onnx"},{"onnx":"b.onnx"}]}"#,
        );
        let third = place.load("c");
        assert_ne!(third.id, second.id);
        // Only what the proxy says beside its stages.
        let proxy = place.load("p");
        write(
            &at("p.proxy"),
            br#"{"mdm":1,"onnx":"a.onnx","rows":"whole","warm_up":{"x":[[3,4]]}}"#,
        );
        assert_ne!(place.load("p").id, proxy.id);
        assert_eq!(place.models.models().len(), 2);
    })
}

#[test]
fn weights_outside_of_a_file_are_part_of_the_model() {
    within(LIMIT, || {
        let (model, raw) = onnx::external_weights("weights.bin");
        let mut other = raw.clone();
        other.rotate_left(64);
        let place = Place::new(&[("m.onnx", model.clone()), ("weights.bin", raw.clone())]);
        let run = |model: &Description, worker| {
            let mut opened = place.models.open(model.id, 0, WorkerId(worker))?;
            opened.infer(&ramp("x", &[2, 256]).into(), &Params::new())
        };
        let first = place.load("m");
        assert_eq!(
            place.models.size(first.id),
            (model.len() + raw.len()) as u64
        );
        let before = run(&first, 0).unwrap();
        write(&place.folder.path().join("new"), &other);
        fs::rename(
            place.folder.path().join("new"),
            place.folder.path().join("weights.bin"),
        )
        .unwrap();
        assert_eq!(place.find("m").unwrap().id, first.id);
        let e = run(&first, 1).unwrap_err();
        assert!(e.message().contains("weights.bin\" was changed"), "{e}");
        let second = place.load("m");
        assert_ne!(second.id, first.id);
        assert_ne!(run(&second, 1).unwrap(), before);
    })
}
