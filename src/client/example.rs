use mdm::Client;
use mdm::ndarray::{Array1, Array2};

/// The digit that each image of 8 x 8 pixels shows, by the model of `examples/digits`.
fn labels(server: &str, images: &Array2<f32>) -> mdm::Result<Array1<i64>> {
    let client = Client::connect(server)?; // "tcp://localhost:5555"
    let response = client.infer(images, "digits")?;
    let rows = response.rows().unwrap_or(0);
    println!("{rows} rows in {} chunks", response.stats().chunks);
    response.array1("label")
}
