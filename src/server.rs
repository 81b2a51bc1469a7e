//! Placeholder until the pipeline is wired: the shape that the command needs.

use crate::config::Config;
use crate::error::Result;
use crate::wire::client::StopMode;

/// A running server.
pub struct Server {
    config: Config,
    stop: crossbeam_channel::Receiver<StopMode>,
    stopper: Stopper,
}

/// Asks a server to stop.
#[derive(Clone)]
pub struct Stopper(crossbeam_channel::Sender<StopMode>);

impl Stopper {
    /// Asks for it; does not wait.
    pub fn stop(&self, mode: StopMode) {
        let _ = self.0.try_send(mode);
    }

    /// Removes the files of the server.
    pub fn remove_files(&self) {}
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot serve.
    pub fn start(config: Config) -> Result<Server> {
        let (sender, stop) = crossbeam_channel::bounded(4);
        if config.port != 0
            && std::net::TcpListener::bind((config.host.as_str(), config.port)).is_err()
        {
            return Err(crate::error::Error::unavailable(format!(
                "port {} is in use",
                config.port
            )));
        }
        Ok(Server {
            config,
            stop,
            stopper: Stopper(sender),
        })
    }

    /// Where requests arrive.
    pub fn port(&self) -> u16 {
        self.config.port
    }

    /// Where results leave.
    pub fn port_out(&self) -> u16 {
        self.config.port_out
    }

    /// Asks this server to stop.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// It failed.
    pub fn wait(self) -> Result<()> {
        let _ = self.stop.recv();
        Ok(())
    }
}
