//! What a server's settings mean for its parts.

use crate::catalog::MostModels;
use crate::config::Config;
use crate::model::StoreConfig;
use crate::pipeline::ventilator::ServerInfo;
use crate::schedule::Limits;
use crate::wire::server::Welcome;

pub(super) fn store_config(config: &Config) -> StoreConfig {
    StoreConfig {
        run_script_dir: config.run_script_dir.clone(),
        allow_paths: config.allow_paths.clone(),
        devices: (0..config.all_workers())
            .map(|worker| config.device(worker))
            .collect(),
        intra_op_threads: config.intra_op_threads,
        gpu_memory_fraction: config.gpu_memory_fraction,
        extra_workers: config.num_parallel_workers > 0,
        express_workers: config.express_workers,
        max_model_bytes: config.max_model_bytes,
    }
}

pub(super) fn info(config: &Config, port: u16, port_out: u16) -> ServerInfo {
    let mut settings = config.settings();
    settings.insert("port".to_owned(), port.to_string());
    settings.insert("port_out".to_owned(), port_out.to_string());
    ServerInfo {
        welcome: Welcome {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            port_out,
            max_batch_size: config.max_batch_size as u64,
            max_request_bytes: config.max_request_bytes,
            max_client_bytes: config.max_client_bytes,
        },
        settings,
        devices: (0..config.all_workers())
            .map(|worker| config.device(worker).to_string())
            .collect(),
        default_timeout: config.default_timeout,
        limits: Limits {
            workers: config.num_worker,
            extra_workers: config.num_parallel_workers,
            express_workers: config.express_workers,
            max_batch_rows: config.max_batch_size,
            priority_rows: config.priority_batch_size,
            prefetch: config.prefetch_size,
            max_chunk_us: config.max_chunk.map(|t| t.as_micros() as u64),
            batch_delay_us: config.max_batch_delay.as_micros() as u64,
            max_requests: config.max_queue_requests,
            max_bytes: config.max_queue_bytes,
        },
        preload: config.preload.clone(),
        most_models: MostModels {
            count: config.max_models,
            bytes: config.max_model_bytes,
        },
    }
}
