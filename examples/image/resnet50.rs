//! Writes a ResNet-50 with generated weights: for timing, as the time does not depend on what the weights are.
//!
//! The architecture is the true one, "version 1.5", in which a block that halves the picture does so in its 3x3
//! convolution (K. He et al., "Deep Residual Learning for Image Recognition", 2015, table 1; torchvision's `resnet50`):
//!
//! ```text
//! image [N,3,224,224] -> 7x7, 64, by 2 -> largest of 3x3, by 2 -> 3, 4, 6, 3 blocks -> mean -> 1000 scores [N,1000]
//! block: 1x1, width -> 3x3, width -> 1x1, 4 x width; added to what came in
//! ```
//!
//! Each convolution's batch normalisation is folded into its weights and bias, as engines do when they load a model.
//! 25,530,472 parameters, 102 MB.
#![allow(dead_code)] // each example and benchmark uses some of it

#[path = "../../tests/common/onnx_parts.rs"]
mod parts;

use parts::proto::{ElementType, NodeProto, TensorProto};
use parts::{D, floats, graph, int, ints, node, value};

/// Blocks of each of the four stages.
const BLOCKS: [usize; 4] = [3, 4, 6, 3];
/// A block's width in the first stage; the next have twice as much each.
const WIDTH: usize = 64;
/// How much wider a block is at its ends.
const EXPANSION: usize = 4;
const CLASSES: usize = 1000;

/// The model's file: "image" FP32 [N,3,224,224] to "scores" FP32 [N,1000]. The same seed gives the same bytes.
pub fn resnet50(seed: u64) -> Vec<u8> {
    let mut net = Net {
        nodes: Vec::new(),
        weights: Vec::new(),
        seed: seed << 16,
    };
    let stem = net.conv("stem", "image", Conv::new(3, WIDTH, 7).by(2));
    let stem = net.relu("stem", &stem);
    net.nodes.push(node(
        "MaxPool",
        &[&stem],
        &["pooled"],
        vec![
            ints("kernel_shape", &[3, 3]),
            ints("strides", &[2, 2]),
            ints("pads", &[1, 1, 1, 1]),
        ],
    ));
    let mut from = "pooled".to_owned();
    let mut channels = WIDTH;
    for (stage, blocks) in BLOCKS.into_iter().enumerate() {
        let width = WIDTH << stage;
        for block in 0..blocks {
            let name = format!("stage{}_block{}", stage + 1, block + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            from = net.block(&name, &from, channels, width, stride);
            channels = width * EXPANSION;
        }
    }
    net.finish(&from, channels)
}

/// A convolution's shape.
#[derive(Clone, Copy)]
struct Conv {
    before: usize,
    after: usize,
    kernel: usize,
    stride: usize,
    /// The square of how much larger the outputs are than the inputs: 2 makes up for what Relu takes away (He).
    gain: f32,
}

impl Conv {
    fn new(before: usize, after: usize, kernel: usize) -> Conv {
        Conv {
            before,
            after,
            kernel,
            stride: 1,
            gain: 2.0,
        }
    }

    fn by(self, stride: usize) -> Conv {
        Conv { stride, ..self }
    }

    fn gain(self, gain: f32) -> Conv {
        Conv { gain, ..self }
    }
}

struct Net {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    seed: u64,
}

impl Net {
    /// Weights between -limit and limit, other ones each time.
    fn floats(&mut self, name: &str, dims: &[usize], limit: f32) {
        self.seed += 1;
        self.weights.push(floats(name, dims, limit, self.seed));
    }

    /// The name of what comes out.
    fn conv(&mut self, name: &str, from: &str, conv: Conv) -> String {
        let (weight, bias, out) = (
            format!("{name}_weight"),
            format!("{name}_bias"),
            format!("{name}_conv"),
        );
        let inputs = conv.before * conv.kernel * conv.kernel;
        // Evenly spread between -limit and limit, the variance is limit² / 3.
        self.floats(
            &weight,
            &[conv.after, conv.before, conv.kernel, conv.kernel],
            (3.0 * conv.gain / inputs as f32).sqrt(),
        );
        self.floats(&bias, &[conv.after], 0.05);
        let (kernel, stride, pad) = (
            conv.kernel as i64,
            conv.stride as i64,
            (conv.kernel / 2) as i64,
        );
        self.nodes.push(node(
            "Conv",
            &[from, &weight, &bias],
            &[&out],
            vec![
                ints("kernel_shape", &[kernel, kernel]),
                ints("strides", &[stride, stride]),
                ints("pads", &[pad; 4]),
            ],
        ));
        out
    }

    fn relu(&mut self, name: &str, from: &str) -> String {
        let out = format!("{name}_relu");
        self.nodes.push(node("Relu", &[from], &[&out], vec![]));
        out
    }

    fn block(
        &mut self,
        name: &str,
        from: &str,
        channels: usize,
        width: usize,
        stride: usize,
    ) -> String {
        let wide = width * EXPANSION;
        let a = format!("{name}_a");
        let x = self.conv(&a, from, Conv::new(channels, width, 1));
        let x = self.relu(&a, &x);
        let b = format!("{name}_b");
        let x = self.conv(&b, &x, Conv::new(width, width, 3).by(stride));
        let x = self.relu(&b, &x);
        // What is added is small, so that 16 additions do not make the numbers large.
        let last = Conv::new(width, wide, 1).gain(0.2);
        let x = self.conv(&format!("{name}_c"), &x, last);
        let around = if channels == wide {
            from.to_owned()
        } else {
            let shortcut = Conv::new(channels, wide, 1).by(stride).gain(1.0);
            self.conv(&format!("{name}_shortcut"), from, shortcut)
        };
        let sum = format!("{name}_sum");
        self.nodes
            .push(node("Add", &[&x, &around], &[&sum], vec![]));
        self.relu(name, &sum)
    }

    fn finish(mut self, from: &str, channels: usize) -> Vec<u8> {
        self.nodes
            .push(node("GlobalAveragePool", &[from], &["mean"], vec![]));
        self.nodes
            .push(node("Flatten", &["mean"], &["flat"], vec![]));
        let limit = (3.0 / channels as f32).sqrt();
        self.floats("classes_weight", &[CLASSES, channels], limit);
        self.floats("classes_bias", &[CLASSES], 0.05);
        self.nodes.push(node(
            "Gemm",
            &["flat", "classes_weight", "classes_bias"],
            &["scores"],
            vec![int("transB", 1)],
        ));
        let shape = |dims: &[i64]| -> Vec<D> {
            let fixed = dims.iter().map(|&dim| D::Fix(dim));
            std::iter::once(D::Sym("N")).chain(fixed).collect()
        };
        let image = value("image", ElementType::Float, &shape(&[3, 224, 224]));
        let scores = value("scores", ElementType::Float, &shape(&[CLASSES as i64]));
        graph(self.nodes, vec![image], vec![scores], self.weights)
    }
}

#[cfg(test)]
mod tests {
    use super::parts::proto::ModelProto;
    use super::*;
    use prost::Message;

    /// torchvision's has 25,557,032, of which the 26,560 scales of its normalisations are folded into the weights here.
    #[test]
    fn it_has_the_true_number_of_parameters_and_layers() {
        let bytes = resnet50(1);
        let model = ModelProto::decode(bytes.as_slice()).expect("a model");
        let graph = model.graph.expect("a graph");
        let parameters: i64 = graph
            .initializer
            .iter()
            .map(|weights| weights.dims.iter().product::<i64>())
            .sum();
        assert_eq!(parameters, 25_557_032 - 26_560);
        let count = |op: &str| graph.node.iter().filter(|node| node.op_type == op).count();
        assert_eq!(count("Conv"), 1 + 16 * 3 + 4);
        assert_eq!(count("Relu"), 1 + 16 * 3);
        assert_eq!(count("Add"), 16);
        assert_eq!(count("Gemm"), 1);
    }
}
