//! Values that nobody looked at before the worker: what is wrong with them ends that request alone.

use super::*;

/// A chunk of one request for each tensor, as the ventilator gives it out: nobody has looked at the values.
fn unchecked(bench: &mut Bench, model: ModelId, tensors: Vec<Tensor>) -> Chunk<Bytes> {
    let mut chunk = bench.chunk(model, &vec![0.0; tensors.len()]);
    for (place, tensor) in tensors.into_iter().enumerate() {
        let member = &mut chunk.members[place];
        member.rows = tensor.rows().unwrap() as u64;
        member.total = member.offset + member.rows;
        each(&mut chunk)[place] = tensor.into();
    }
    chunk
}

fn flags(bytes: &[u8]) -> Tensor {
    let data = Data::Fixed(Bytes::copy_from_slice(bytes));
    Tensor::unchecked("x", DataType::Bool, vec![bytes.len()], data).unwrap()
}

fn texts(offsets: &[u64]) -> Tensor {
    let le: Vec<u8> = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
    let data = Data::Variable {
        offsets: le.into(),
        values: Bytes::from_static(b"abcdef"),
    };
    Tensor::unchecked("x", DataType::Bytes, vec![offsets.len() - 1], data).unwrap()
}

/// What each request that got through has, and what the others are told.
fn ends(bench: &mut Bench, chunk: &Chunk<Bytes>, lane: Lane) -> (Vec<Batch>, Vec<(Serial, Error)>) {
    bench.give(lane, chunk);
    let mut good = Vec::new();
    let mut failed = Vec::new();
    while good.len() + failed.len() < chunk.members.len() {
        let part = bench.part();
        match part.outcome {
            Outcome::Done(done) => good.extend(given(&part.members, done)),
            Outcome::Failed => failed.extend(part.members.iter().map(|m| m.serial)),
            Outcome::Skipped => panic!("{part:?}"),
        }
    }
    let credit = bench.credit();
    assert_eq!(credit.chunk, chunk.id);
    let told: Vec<Serial> = credit.failed.iter().map(|(serial, _)| *serial).collect();
    assert_eq!(told, failed);
    (good, credit.failed)
}

#[test]
fn a_bool_byte_of_2_and_descending_offsets_end_that_request_alone() {
    let source = Arc::new(MockSource::default());
    let model = source.add("echo", Behaviour::Echo).id;
    let mut bench = bench(source);
    let cases = [
        (
            vec![flags(&[0, 1]), flags(&[1, 2, 0]), flags(&[1])],
            vec![flags(&[0, 1]), flags(&[1])],
            "tensor \"x\": a BOOL byte is 0 or 1, element 1 is 2",
        ),
        (
            vec![texts(&[0, 6]), texts(&[0, 2, 2, 6]), texts(&[0, 5, 3, 6])],
            vec![texts(&[0, 6]), texts(&[0, 2, 2, 6])],
            "tensor \"x\": offsets must ascend from 0, offset 2 is 3 after 5",
        ),
        (
            vec![texts(&[0, u64::MAX, 6]), texts(&[0, 1, 6])],
            vec![texts(&[0, 1, 6])],
            "tensor \"x\": offsets must ascend from 0, offset 2 is 6 after 18446744073709551615",
        ),
        (
            vec![flags(&[7])],
            vec![],
            "tensor \"x\": a BOOL byte is 0 or 1, element 0 is 7",
        ),
    ];
    for (tensors, expected, words) in cases {
        let bad = |t: &Tensor| t.clone().check_values(0).is_err();
        let guilty = tensors.iter().position(bad).unwrap();
        let is_fixed = tensors[0].datatype() == DataType::Bool && tensors.len() > 1;
        let expected = expected.into_iter().map(|t| t.check_values(0).unwrap());
        let expected: Vec<Batch> = expected.map(Batch::from).collect();
        let chunk = unchecked(&mut bench, model, tensors);
        let others = is_fixed.then(|| joined(&chunk));
        for chunk in [chunk].into_iter().chain(others) {
            let (good, failed) = ends(&mut bench, &chunk, Lane::Small);
            assert_eq!(good, expected);
            let serial = chunk.members[guilty].serial;
            assert_eq!(failed, [(serial, Error::invalid(words))]);
        }
    }
    bench.stop();
}

#[test]
fn a_bad_element_of_a_chunk_has_its_number_in_the_whole_request() {
    let source = Arc::new(MockSource::default());
    let model = source.add("echo", Behaviour::Echo).id;
    let mut bench = bench(source);
    let whole = texts(&[0, 1, 2, 3, 9, 4, 6]);
    for (rows, words) in [
        (0..3, None),
        (3..6, Some("offset 5 is 4 after 9")),
        (5..6, None),
    ] {
        let piece = whole.slice_rows(rows.start, rows.len());
        let mut chunk = unchecked(&mut bench, model, vec![piece]);
        (chunk.members[0].offset, chunk.members[0].total) = (rows.start as u64, 6);
        chunk.run = Some(2);
        let (good, failed) = ends_of_runs(&mut bench, &chunk);
        match words {
            None => assert_eq!((good, failed), (rows.len(), vec![])),
            Some(words) => {
                assert_eq!((good, failed.len()), (0, 1));
                assert!(failed[0].1.message().ends_with(words), "{failed:?}");
            }
        }
    }
    bench.stop();
}

/// How many strings came back of a chunk of one request.
fn ends_of_runs(bench: &mut Bench, chunk: &Chunk<Bytes>) -> (usize, Vec<(Serial, Error)>) {
    bench.give(Lane::Bulk, chunk);
    let strings = match bench.part().outcome {
        Outcome::Done(done) => {
            let runs = done.iter().flat_map(|ran| &ran.runs);
            let tensors = runs.map(|batch| &batch.tensors[0]);
            tensors.map(|t| t.strings().unwrap().len()).sum()
        }
        _ => 0,
    };
    (strings, bench.credit().failed)
}

#[test]
fn parameters_come_to_the_model_as_they_were_sent() {
    let params = serde_json::json!({"k": [1, {"a": null}], "t": "x"});
    let mut bench = bench(Arc::new(MockSource::default()));
    let mut chunk = bench.chunk(ModelId(1), &[1.0]);
    chunk.params = crate::tensor::to_document(&params).unwrap().into();
    let frames = inner::write_chunk(&chunk);
    assert_eq!(frames[1], chunk.params);
    let read = |frames| match inner::read_to_worker(frames).unwrap() {
        ToWorker::Chunk(chunk) => chunk.check(),
        other => panic!("{other:?}"),
    };
    let (checked, refused) = read(frames);
    assert_eq!(serde_json::Value::Object(checked.params), params);
    assert_eq!((checked.rows, refused), (chunk.rows.clone(), vec![]));
    // Not what the front let pass: a bug of ours, which ends the request and not the worker.
    chunk.params = Bytes::from_static(b"\xc1");
    let (checked, refused) = read(inner::write_chunk(&chunk));
    assert!(checked.members.is_empty());
    assert_eq!(refused[0].1.code(), crate::ErrorCode::Internal);
    bench.stop();
}
