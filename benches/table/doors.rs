//! The door for HTTP beside what it is made of: our ZeroMQ client, and a bare server of hyper's with bodies of the same
//! sizes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mdm::{Client, DataType};
use ndarray::Array2;

use super::Plan;
use super::bulk::floats;
use super::children::{Models, Server};
use super::http::{Asked, Bare, Http};
use super::loops::{CLIENTS, Costs, run};
use super::onnx;
use super::report::{Bar, Pairs, Table, micros, quantile};

/// Numbers of a row of the large echo, and its rows: 64 MiB.
const WIDTH: usize = 256;
const LARGE_ROWS: usize = 65_536;
/// Rows of the bulk request.
const BULK_ROWS: usize = 8_000;

/// A request of rows for a model, as binary tensors.
fn binary(model: &str, rows: &[f32], width: usize) -> Asked {
    let tensors: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
    let json = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{},{width}],"parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        rows.len() / width,
        tensors.len()
    );
    Asked::post(&format!("/v2/models/{model}/infer"), &json, &tensors)
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[
        ("mlp", onnx::mlp()),
        ("echo", onnx::echo(DataType::Fp32, &[WIDTH])),
    ])?;
    let flags = ["--num-worker", "2", "--http-port", "0"];
    let server = Server::start(&models, &flags)?;
    let client = server.client()?;
    one_client(plan, table, &server, &client)?;
    many_connections(plan, table, &server)?;
    bulk(plan, table, &server, &client)?;
    large(plan, table, &server, &client)
}

fn one_client(plan: &Plan, table: &mut Table, server: &Server, client: &Client) -> Result<()> {
    let count = plan.times(3_000);
    let rows = floats(1).elements;
    let array = Array2::from_shape_vec((1, 64), rows.clone())?;
    let asked = binary("mlp", &rows, 64);
    let mut http = Http::connect(server.http_port()?)?;
    let bare = Bare::start(http.round_trip(&asked)?.len())?;
    let mut bare_http = Http::connect(bare.port)?;
    let mut ours = || half_of(count, || http.round_trip(&asked).map(drop));
    let mut path = || half_of(count, || bare_http.round_trip(&asked).map(drop));
    let zmq = || half_of(count, || Ok(client.infer(&array, "mlp").map(drop)?));
    ours()?;
    path()?;
    zmq()?;
    let mut pairs = Pairs::default();
    while plan.goes_on(pairs.count()) {
        let (ours, zmq, path) = (ours()?, zmq()?, path()?);
        pairs.push(micros(ours), micros(zmq + path));
    }
    let what = "doors: REST binary, mlp, 1 row, 1 client, p50, to ZeroMQ's plus bare hyper's";
    table.add(what, &pairs, "µs", Bar::AtMost(1.0));
    Ok(())
}

fn many_connections(plan: &Plan, table: &mut Table, server: &Server) -> Result<()> {
    let port = server.http_port()?;
    let rows = floats(1).elements;
    let asked = binary("mlp", &rows, 64);
    let input =
        serde_json::json!({"name": "x", "datatype": "FP32", "shape": [1, 64], "data": rows});
    let json = serde_json::json!({"inputs": [input]}).to_string();
    let in_json = Asked::post_json("/v2/models/mlp/infer", &json);
    let bare = Bare::start(Http::connect(port)?.round_trip(&asked)?.len())?;
    let long = plan.long(Duration::from_millis(1200));
    let measure = |process, port, asked: &Asked| {
        run(long, process, || {
            let mut http = Http::connect(port)?;
            Ok(move || http.round_trip(asked).map(drop))
        })
    };
    measure(&server.process, port, &asked)?;
    let [mut to_bare, mut to_binary] = [(); 2].map(|()| Pairs::default());
    let mut server_us = Vec::new();
    let [mut costs, mut bare_costs, mut json_costs] = [(); 3].map(|()| Costs::default());
    while plan.goes_on(to_bare.count()) {
        let ours = measure(&server.process, port, &asked)?;
        let path = bare_costs.push(measure(&bare.process, bare.port, &asked)?);
        let json = json_costs.push(measure(&server.process, port, &in_json)?);
        to_bare.push(costs.push(ours), path);
        to_binary.push(json, ours.rate);
        server_us.push(ours.server_us);
    }
    let what = format!("  {CLIENTS} connections, to bare hyper on one thread");
    table.add(&what, &to_bare, "req/s", Bar::AtLeast(0.4));
    let what = "  the server's processor time a request";
    table.add_figure(what, &server_us, "µs", Bar::AtMost(30.0));
    let what = "  REST JSON, 64 numbers, to REST binary";
    table.add(what, &to_binary, "req/s", Bar::AtLeast(0.7));
    table.note(format!(
        "doors: processor time per request: {costs}; JSON: {json_costs}; bare hyper: {bare_costs}"
    ));
    Ok(())
}

fn bulk(plan: &Plan, table: &mut Table, server: &Server, client: &Client) -> Result<()> {
    let count = plan.times(20);
    let rows = floats(BULK_ROWS).elements;
    let array = Array2::from_shape_vec((BULK_ROWS, 64), rows.clone())?;
    let asked = binary("mlp", &rows, 64);
    let mut http = Http::connect(server.http_port()?)?;
    let all = (BULK_ROWS * count) as f64;
    let mut ours = || rate(all, count, || http.round_trip(&asked).map(drop));
    let zmq = || rate(all, count, || Ok(client.infer(&array, "mlp").map(drop)?));
    ours()?;
    zmq()?;
    let pairs = Pairs::measure(plan, ours, zmq)?;
    let what = format!("  {BULK_ROWS} rows of mlp in one request, to our ZeroMQ client");
    table.add(&what, &pairs, "rows/s", Bar::AtLeast(0.9));
    Ok(())
}

fn large(plan: &Plan, table: &mut Table, server: &Server, client: &Client) -> Result<()> {
    let count = plan.times(5);
    let array = Array2::from_elem((LARGE_ROWS, WIDTH), 1.5f32);
    let values: Vec<f32> = array.iter().copied().collect();
    let asked = binary("echo", &values, WIDTH);
    let bytes = values.len() * 4;
    let mut http = Http::connect(server.http_port()?)?;
    let all = (2 * bytes * count) as f64;
    let mut ours = || {
        rate(all, count, || {
            ensure!(http.round_trip(&asked)?.len() > bytes, "bytes are missing");
            Ok(())
        })
    };
    let zmq = || rate(all, count, || Ok(client.infer(&array, "echo").map(drop)?));
    ours()?;
    zmq()?;
    let pairs = Pairs::measure(plan, ours, zmq)?;
    let what = "  64 MiB echo, REST binary, both directions, to our ZeroMQ client";
    table.add(what, &pairs, "B/s", Bar::AtLeast(0.7));
    Ok(())
}

/// So much in the time of so many repetitions.
fn rate(all: f64, count: usize, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        once()?;
    }
    Ok(all / start.elapsed().as_secs_f64())
}

/// Does it so often, and gives the time that half of them took at most.
fn half_of(count: usize, mut once: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        once()?;
        times.push(start.elapsed());
    }
    Ok(quantile(&mut times, 0.5))
}
