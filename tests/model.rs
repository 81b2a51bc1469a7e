//! Models over the public interface: every kind of batch and datatype, equality with the bare engine, and what goes
//! wrong. It needs the ONNX Runtime library and nothing else.

#[path = "common/onnx.rs"]
mod onnx;
#[path = "common/place.rs"]
mod place;
#[path = "common/within.rs"]
mod within;

use std::path::Path;

use mdm::error::ErrorCode::*;
use mdm::message::WorkerId;
use mdm::model::{BatchKind, Device, Dim, ModelSource};
use mdm::tensor::Data;
use mdm::{Batch, DataType, Params, Tensor};
use place::{Place, engine, ramp};
use within::{LIMIT, within};

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
    within(LIMIT, || {
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
    })
}

#[test]
fn a_frame_at_an_odd_address_is_as_good() {
    within(LIMIT, || {
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
    })
}

#[test]
fn results_are_the_bare_engines_bit_for_bit() {
    within(LIMIT, || {
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
            let mut third = place.models.open(description.id, 0, WorkerId(7)).unwrap();
            for model in [&mut first, &mut second, &mut third] {
                let inputs = Batch {
                    tensors: vec![input.clone()],
                };
                let outputs = model.infer(&inputs, &Params::new()).unwrap();
                assert_eq!(bits(&outputs.tensors[0]), as_bits(&expected[0]), "{name}");
            }
        }
    })
}

/// Which of its sessions a worker uses for a run, by how long it is expected to take (`model/short_runs.rs`), is not seen in what
/// it gives.
#[test]
fn several_threads_give_what_one_gives_bit_for_bit_in_short_and_in_long_runs() {
    within(LIMIT, || {
        let table = [
            ("mlp", onnx::mlp(), "x", 64),
            ("bilstm", onnx::bilstm(), "ids", 64),
            ("weights", onnx::matmul_weights(8), "x", 1024),
        ];
        for (name, model, input, width) in table {
            let files = [("m.onnx", model)];
            let single = Place::new(&files);
            let several = Place::with(&files, |config| config.intra_op_threads = 3);
            let (_, mut single) = single.open("m");
            let (_, mut several) = several.open("m");
            for rows in [1, 2, 700, 1, 16, 1, 64, 3, 64, 5, 256, 1] {
                let input = match name {
                    "bilstm" => {
                        let ids = (0..rows * width).map(|i| i as i64 * 37 % 5000).collect();
                        Tensor::from_vec(input, vec![rows, width], ids).unwrap()
                    }
                    _ => ramp(input, &[rows, width]),
                };
                let inputs = Batch {
                    tensors: vec![input],
                };
                let [expected, given] = [&mut single, &mut several]
                    .map(|model| model.infer(&inputs, &Params::new()).unwrap().tensors);
                assert_eq!(bits(&given[0]), bits(&expected[0]), "{name}, {rows} rows");
            }
        }
    })
}

#[test]
fn outputs_outlive_the_session_and_later_runs() {
    within(LIMIT, || {
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
    })
}

#[test]
fn an_input_that_is_handed_through_is_copied() {
    within(LIMIT, || {
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
    })
}

/// A copy of a tensor whose bytes lie at an odd address, as small received frames may.
fn at_an_odd_address(tensor: &Tensor) -> Tensor {
    let Data::Fixed(bytes) = tensor.data() else {
        panic!("elements of one size")
    };
    // A Vec's own address suits any datatype: one byte on suits none but bytes.
    let mut moved = vec![0];
    moved.extend_from_slice(bytes);
    let moved = bytes::Bytes::from(moved).slice(1..);
    let (name, shape) = (tensor.name(), tensor.shape().to_vec());
    let tensor = Tensor::new(name, tensor.datatype(), shape, Data::Fixed(moved)).unwrap();
    assert!(tensor.as_slice::<f32>().is_none());
    tensor
}

#[test]
fn an_input_at_an_odd_address_that_is_handed_through_is_what_was_sent() {
    within(LIMIT, || {
        let place = Place::new(&[("m.onnx", onnx::pass_through())]);
        let (_, mut model) = place.open("m");
        let mut kept = Vec::new();
        for turn in 0..20 {
            let sent = ramp("x", &[1 + turn % 4, 512]);
            let outputs = model.infer(&at_an_odd_address(&sent).into(), &Params::new());
            kept.push((sent, outputs.unwrap().tensors.remove(0)));
        }
        for (sent, output) in kept {
            assert_eq!(
                output.to_vec::<f32>().unwrap(),
                sent.to_vec::<f32>().unwrap()
            );
        }
    })
}

#[test]
fn a_fixed_batch_is_padded_and_trimmed() {
    within(LIMIT, || {
        let model = onnx::fixed_batch(4);
        let proxy = onnx::rows_at_a_time("m.onnx", 4);
        let place = Place::new(&[("m.onnx", model.clone()), ("m.proxy", proxy)]);
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
    })
}

#[test]
fn a_model_without_rows_gets_the_request_whole() {
    within(LIMIT, || {
        let place = Place::new(&[("m.onnx", onnx::no_batch())]);
        assert_eq!(place.find("m").unwrap().kind, BatchKind::Whole);
        let outputs = place
            .infer("m", vec![ramp("a", &[3, 4]), ramp("b", &[4, 5])])
            .unwrap();
        assert_eq!(outputs[0].shape(), [3, 5]);
        assert_eq!(outputs[1].shape(), [0usize; 0]);
        assert_eq!(outputs[1].to_vec::<i64>().unwrap(), [15]);
    })
}

#[test]
fn several_inputs_and_outputs_keep_their_names() {
    within(LIMIT, || {
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
    })
}

#[test]
fn strings_go_through_and_what_cannot_is_named() {
    within(LIMIT, || {
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
        let json = Tensor::from_json_rows("x", &["a"]).unwrap();
        assert_eq!(
            place.infer("m", vec![json]).unwrap_err().code(),
            InvalidArgument
        );
    })
}

#[test]
fn dimensions_of_size_zero_go_through() {
    within(LIMIT, || {
        let place = Place::new(&[("m.onnx", onnx::two_symbols())]);
        let outputs = place
            .infer("m", vec![ramp("x", &[3, 0]), ramp("mask", &[3, 0])])
            .unwrap();
        assert_eq!(outputs[0].shape(), [3, 0]);
    })
}

#[test]
fn a_model_that_fails_says_so_and_goes_on() {
    within(LIMIT, || {
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
    })
}

#[test]
fn the_kind_of_batch_follows_dimension_0() {
    within(LIMIT, || {
        let table = [
            (onnx::mlp(), BatchKind::Batched),
            (onnx::dynamic_unnamed(), BatchKind::Batched),
            (onnx::two_inputs_two_outputs(), BatchKind::Batched),
            (onnx::fixed_batch(1), BatchKind::Fixed(1)),
            (onnx::fixed_batch(16), BatchKind::Whole),
            (onnx::square_times_vector(3), BatchKind::Whole),
            (onnx::square_times_vector(1), BatchKind::Fixed(1)),
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
    })
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_at_once() {
    within(LIMIT, || {
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
    })
}

#[test]
fn weights_outside_the_file_are_found_beside_it() {
    within(LIMIT, || {
        let (model, raw) = onnx::external_weights("weights.bin");
        let place = Place::new(&[("sub/m.onnx", model), ("sub/weights.bin", raw)]);
        let x = ramp("x", &[2, 256]);
        let (description, mut first) = place.open("sub/m");
        let mut second = place.models.open(description.id, 0, WorkerId(1)).unwrap();
        let inputs = Batch { tensors: vec![x] };
        let outputs = first.infer(&inputs, &Params::new()).unwrap();
        assert_eq!(outputs, second.infer(&inputs, &Params::new()).unwrap());
        assert_eq!(outputs.tensors[0].shape(), [2, 1024]);
    })
}

#[test]
fn weights_that_are_not_there_are_named_without_their_folder() {
    within(LIMIT, || {
        for given in [None, Some(8)] {
            let (model, raw) = onnx::external_weights("weights.bin");
            let mut files = vec![("m.onnx", model)];
            files.extend(given.map(|bytes| ("weights.bin", raw[..bytes].to_vec())));
            let place = Place::new(&files);
            let e = place.find("m").unwrap_err();
            assert_eq!(e.code(), FailedPrecondition, "{e}");
            let folder = place.folder.path().to_string_lossy().into_owned();
            assert!(!e.message().contains(&folder), "{e}");
            assert!(
                given.is_some() || e.message().contains("weights.bin"),
                "{e}"
            );
        }
    })
}

/// It has holes and no bytes on the disk, but would take its length in memory.
#[test]
fn a_file_longer_than_onnx_allows_is_refused_before_it_is_read() {
    within(LIMIT, || {
        let place = Place::new(&[]);
        let path = place.folder.path().join("sparse.onnx");
        std::fs::File::create(path)
            .unwrap()
            .set_len(5 << 30)
            .unwrap();
        let e = place.find("sparse").unwrap_err();
        assert_eq!(e.code(), FailedPrecondition, "{e}");
        let why = "\"sparse.onnx\" has 5368709120 bytes, and an ONNX file has at most 2147483647";
        assert!(e.message().contains(why), "{e}");
    })
}

#[test]
fn a_message_shows_a_name_and_does_not_repeat_its_control_characters() {
    within(LIMIT, || {
        let place = Place::new(&[]);
        let e = place.find("a\u{1b}[2Jb\nc").unwrap_err();
        assert_eq!(e.code(), NotFound, "{e}");
        assert!(!e.message().chars().any(char::is_control), "{e:?}");
        assert!(e.message().contains(r#""a\u{1b}[2Jb\nc.proxy""#), "{e}");
    })
}
