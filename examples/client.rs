//! The client in all its ways: start a server with `mdm-server-start --run-script-dir examples/digits`, then
//! `cargo run --example client`. Another server's address can be given as an argument.

use std::time::Duration;

use mdm::client::{Call, Client, Response};
use mdm::ndarray::{Array2, s};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("tcp://localhost:5555");
    let client = Client::builder()
        .timeout(Duration::from_secs(30))
        .connect(address)?;
    println!("connected to mdm {}", client.hello()?.server_version);

    // Rows are any ndarray view: here 1,000 images of 8 x 8 pixels.
    let images = Array2::<f32>::from_shape_fn((1000, 64), |(i, j)| ((i * j) % 17) as f32);
    let response = client.infer(&images, "digits")?;
    let labels = response.array1::<i64>("label")?;
    println!("labels of the first rows: {}", labels.slice(s![..5]));

    // Several requests in flight, fetched in any order.
    let halves = [images.slice(s![..500, ..]), images.slice(s![500.., ..])];
    let tickets = halves.map(|half| client.submit(half, "digits"));
    for ticket in tickets {
        let response = client.fetch(ticket?)?;
        println!(
            "{} rows, {:?}",
            response.rows().unwrap_or(0),
            response.stats()
        );
    }

    // Parts as they finish; `Call` says more than the model's name.
    let call = Call::model("digits").timeout(Duration::from_secs(10));
    for part in client.infer_stream(&images, call)? {
        let part = part?;
        let rows = part.outputs.rows()?;
        println!("rows {}..{}", part.offset, part.offset + rows as u64);
    }

    // From several threads: no locks, no clones. What goes wrong in a thread is its answer.
    let infer = || client.infer(images.slice(s![..10, ..]), "digits");
    let answers: Vec<mdm::Result<Response>> = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(infer));
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|answer| answer.expect("no panic")).collect()
    });
    for answer in answers {
        println!("{} rows in a thread", answer?.rows().unwrap_or(0));
    }
    println!("{} rows so far", client.status()?.totals.rows);
    Ok(())
}
