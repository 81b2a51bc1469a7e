//! What the commands that run rows through a model have in common: the flags that say which model, how, and on which
//! server.

use anyhow::Context;
use clap::Args;
use mdm::Params;
use mdm::client::Call;
use mdm::wire::client::check_params;

use super::shared::ServerFlags;

/// The flags that say what is asked of a server.
#[derive(Args, Debug)]
pub struct CallFlags {
    /// The model's name; not needed if the parameters say model_proxy_path
    #[arg(long)]
    pub model: Option<String>,

    /// Parameters for the model, a JSON object
    #[arg(long, value_name = "JSON")]
    params: Option<String>,

    /// The server's address instead of --ip and --port: tcp://localhost:5555 or ipc://sock_tmp/mdm-5555.in
    #[arg(long, value_name = "ADDRESS")]
    pub server: Option<String>,

    #[command(flatten)]
    pub at: ServerFlags,
}

impl CallFlags {
    /// Where the server takes requests.
    pub fn address(&self) -> String {
        match &self.server {
            Some(address) => address.clone(),
            None => self.at.address(),
        }
    }

    /// The parameters, checked.
    pub fn params(&self) -> anyhow::Result<Params> {
        let Some(text) = &self.params else {
            return Ok(Params::default());
        };
        let params: serde_json::Value =
            serde_json::from_str(text).context("--params is not JSON")?;
        let serde_json::Value::Object(params) = params else {
            anyhow::bail!(
                "--params is {params}, expected a JSON object such as {{\"c_tag\": \"BD\"}}"
            );
        };
        check_params(&params).context("--params")?;
        Ok(params)
    }

    /// The call that each request is.
    pub fn call(&self) -> anyhow::Result<Call> {
        // A model's name among the parameters is its name too.
        let call = Call::from(self.params()?);
        Ok(match &self.model {
            Some(model) => call.for_model(model),
            None => call,
        })
    }
}

/// For the test of a command's flags: a value for each of these, and one that is wrong, if there is one.
///
/// # Panics
/// At a flag that is none of these, which its command has to know.
#[cfg(test)]
pub fn sample(flag: &str) -> (&'static str, Option<&'static str>) {
    match flag {
        "model" => ("digits", None),
        "params" => ("{\"a_b\": 1}", None),
        "server" => ("tcp://a_b:1", None),
        "ip" => ("10.0.0.1", None),
        "port" => ("7001", Some("0")),
        other => panic!("no value for --{other}: add one"),
    }
}
