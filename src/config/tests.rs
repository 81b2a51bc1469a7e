//! Every spelling of every flag, where settings come from, and which source wins.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::{ArgAction, CommandFactory};

use super::*;

/// A value for each flag that is not its default. A flag without one fails the test that goes through the flags.
fn sample(id: &str, dir: &str) -> String {
    match id {
        "port" => "7001",
        "port_out" => "7002",
        "host" => "::1",
        "insecure" | "verbose" | "door_model_control" => "true",
        "http_port" => "7003",
        "grpc_port" => "7004",
        "metrics_port" => "7005",
        "door_threads" => "2",
        "num_worker" => "4",
        "num_parallel_workers" => "3",
        "express_workers" => "0",
        "device_map" => "-1,1,0",
        "gpu_memory_fraction" => "0.5",
        "intra_op_threads" => "3",
        "prefetch_size" => "2",
        "onnxruntime" => "my_lib/libonnxruntime.so",
        "run_script_dir" | "allow_path" => dir,
        "zeromq_sock_tmp_dir" => return format!("{dir}/s_t"),
        "preload" => "my_model",
        "max_models" => "5",
        "max_model_bytes" => "7GiB",
        "max_batch_size" => "512",
        "priority_batch_size" => "8",
        "max_batch_delay_us" => "250",
        "busy_poll_us" => "50",
        "worker_nice" => "3",
        "max_chunk_ms" => "30",
        "max_queue_bytes" => "3GiB",
        "max_queue_requests" => "77",
        "max_request_bytes" => "64MiB",
        "max_client_bytes" => "32MiB",
        "max_unfinished_bytes" => "48MiB",
        "max_sessions" => "99",
        "default_timeout_ms" => "1500",
        "logger" => return format!("{dir}/my_log.txt"),
        "logger_rotation" => "daily",
        "config" => return format!("{dir}/my_settings.toml"),
        other => panic!("no sample value for the flag {other:?}: add one"),
    }
    .to_owned()
}

/// Every flag that has a value: its id, and all its names.
fn flags() -> Vec<(String, Vec<String>)> {
    Args::command()
        .get_arguments()
        .filter(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
        .map(|arg| {
            let names = arg.get_long_and_visible_aliases().unwrap();
            let names = names.into_iter().map(str::to_owned).collect();
            (arg.get_id().to_string(), names)
        })
        .collect()
}

fn from(args: &[String], variables: &[(&str, String)]) -> Result<Config> {
    let args = std::iter::once("mdm-server-start".into()).chain(args.iter().map(OsString::from));
    let asked = Config::from_command_line(args, |name| {
        let found = variables.iter().find(|(own, _)| *own == name)?;
        Some(found.1.clone().into())
    })?;
    match asked {
        Asked::Run(config) => Ok(config),
        Asked::Print(text) => panic!("printed {text}"),
    }
}

fn text(dir: &Path) -> String {
    dir.to_str().unwrap().to_owned()
}

#[test]
fn every_flag_takes_both_spellings_under_each_of_its_names() {
    let dir = text(tempfile::tempdir().unwrap().path());
    let mut seen = 0;
    for (id, names) in flags() {
        let value = sample(&id, &dir);
        let is_switch = ["insecure", "verbose", "door_model_control"].contains(&id.as_str());
        for name in names {
            let under = name.replace('-', "_");
            let mut typed = Vec::new();
            for dash in ["--", "-", "\u{2013}", "\u{2014}"] {
                for name in [&name, &under] {
                    typed.push(vec![format!("{dash}{name}={value}")]);
                    typed.push(match is_switch {
                        true => vec![format!("{dash}{name}")],
                        false => vec![format!("{dash}{name}"), value.clone()],
                    });
                }
            }
            for words in typed {
                let args = std::iter::once("p".to_owned()).chain(words.clone());
                let args = normalize_args(args.map(OsString::from));
                let matches = Args::command()
                    .try_get_matches_from(args)
                    .unwrap_or_else(|e| panic!("{words:?}: {e}"));
                let raw: Vec<&OsStr> = matches.get_raw(&id).unwrap().collect();
                assert_eq!(raw, [OsStr::new(&value)], "{words:?}");
                seen += 1;
            }
        }
    }
    assert!(
        seen > 400,
        "only {seen} spellings: are the flags still found?"
    );
}

#[test]
fn every_flag_of_the_manual_is_there() {
    let known: Vec<String> = flags().into_iter().flat_map(|(_, names)| names).collect();
    for name in [
        "zeromq_sock_tmp_dir",
        "run_script_dir",
        "logger",
        "port",
        "port_in",
        "port_data",
        "port_out",
        "port_result",
        "num_worker",
        "max_batch_size",
        "priority_batch_size",
        "gpu_memory_fraction",
        "device_map",
        "verbose",
    ] {
        assert!(known.contains(&name.replace('_', "-")), "{name} is missing");
    }
}

/// Each flag from the command line, from the environment and from a file makes the same settings.
#[test]
fn every_flag_reads_from_the_environment_and_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = text(dir.path());
    let flags: Vec<String> = flags()
        .into_iter()
        .map(|(id, _)| id)
        .filter(|id| id != "config")
        .collect();

    let typed: Vec<String> = flags
        .iter()
        .map(|id| format!("--{id}={}", sample(id, &path)))
        .collect();
    let expected = from(&typed, &[]).unwrap();
    assert_eq!(
        expected.devices,
        [Device::Cpu, Device::Cuda(1), Device::Cuda(0)]
    );
    assert_eq!(expected.logger_rotation, Rotation::Daily);
    assert_eq!(expected.max_queue_bytes, 3 << 30);
    assert_eq!(expected.preload, ["my_model"]);
    assert_eq!(expected.default_timeout, Some(Duration::from_millis(1500)));

    let names: Vec<String> = flags
        .iter()
        .map(|id| format!("MDM_{}", id.to_uppercase()))
        .collect();
    let variables: Vec<(&str, String)> = names
        .iter()
        .zip(&flags)
        .map(|(name, id)| (name.as_str(), sample(id, &path)))
        .collect();
    assert_eq!(from(&[], &variables).unwrap(), expected);

    for separator in ["_", "-"] {
        let file = flags
            .iter()
            .map(|id| format!("{} = {:?}\n", id.replace('_', separator), sample(id, &path)))
            .collect::<String>();
        let settings = format!("{path}/settings.toml");
        std::fs::write(&settings, file).unwrap();
        assert_eq!(
            from(&[format!("--config={settings}")], &[]).unwrap(),
            expected
        );
        assert_eq!(from(&[], &[("MDM_CONFIG", settings)]).unwrap(), expected);
    }
}

#[test]
fn a_file_may_use_the_types_of_toml() {
    let dir = tempfile::tempdir().unwrap();
    let path = text(dir.path());
    let settings = format!("{path}/s.toml");
    let file = format!(
        "num_worker = 3\ndevice_map = [1, 0]\ngpu_memory_fraction = 0.25\nverbose = true\n\
         allow_path = [{path:?}, {path:?}]\npreload = ['a', 'b']\nmax_client_bytes = 1000000\nhost = 'localhost'\n"
    );
    std::fs::write(&settings, file).unwrap();
    let config = from(&[format!("--config={settings}")], &[]).unwrap();
    assert_eq!(config.num_worker, 3);
    assert_eq!(config.devices, [Device::Cuda(1), Device::Cuda(0)]);
    assert_eq!(config.gpu_memory_fraction, 0.25);
    assert!(config.verbose);
    assert_eq!(config.allow_paths.len(), 2);
    assert_eq!(config.preload, ["a", "b"]);
    assert_eq!(config.max_client_bytes, 1_000_000);
    assert_eq!(config.host, "127.0.0.1");
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let settings = format!("{}/s.toml", text(dir.path()));
    std::fs::write(
        &settings,
        "port = 1\nport_out = 2\nnum_worker = 3\nverbose = true\npreload = ['f']\n",
    )
    .unwrap();
    let file = format!("--config={settings}");
    let variables = [
        ("MDM_PORT", "11".to_owned()),
        ("MDM_NUM_WORKER", "13".to_owned()),
        ("MDM_PRELOAD", "e:g".to_owned()),
        ("MDM_VERBOSE", String::new()), // empty is not set
    ];
    let config = from(&[file.clone(), "-port=21".to_owned()], &variables).unwrap();
    assert_eq!(
        (config.port, config.num_worker, config.port_out),
        (21, 13, 2)
    );
    assert!(config.verbose);
    // The winner's list is the list: nothing is added up.
    assert_eq!(config.preload, ["e", "g"]);
    // An alias is the same flag, and a switch can be taken back.
    let config = from(
        &[
            file,
            "--port-in=21".into(),
            "--verbose=false".into(),
            "--preload=c".into(),
        ],
        &variables,
    )
    .unwrap();
    assert_eq!((config.port, config.verbose), (21, false));
    assert_eq!(config.preload, ["c"]);
}

#[test]
fn defaults_are_those_of_the_manual() {
    let config = from(&[], &[]).unwrap();
    assert_eq!(
        (config.host.as_str(), config.port, config.port_out),
        ("127.0.0.1", 5555, 5556)
    );
    assert_eq!(
        (
            config.num_worker,
            config.max_batch_size,
            config.priority_batch_size
        ),
        (1, 1024, 16)
    );
    assert_eq!(config.devices, [Device::Cpu]);
    assert_eq!(config.gpu_memory_fraction, 0.2);
    assert_eq!(config.run_script_dir, Path::new("./"));
    assert_eq!(config.sock_tmp_dir, Path::new("./sock_tmp"));
    assert_eq!(config.logger, None);
    assert_eq!(config.max_chunk, Some(Duration::from_millis(20)));
    assert_eq!(config.max_batch_delay, Duration::ZERO);
    // A chunk smaller than the usual priority batch is no contradiction of the user's.
    let config = from(&["--max-batch-size=4".to_owned()], &[]).unwrap();
    assert_eq!(config.priority_batch_size, 4);
    // 0 takes a bound away.
    let config = from(
        &[
            "--max-chunk-ms=0".to_owned(),
            "--default-timeout-ms=0".to_owned(),
        ],
        &[],
    )
    .unwrap();
    assert_eq!((config.max_chunk, config.default_timeout), (None, None));
}

#[test]
fn engine_threads_share_the_cores() {
    let cores = thread::available_parallelism().unwrap().get();
    for workers in [1, 2, 160] {
        let config = from(&[format!("--num-worker={workers}")], &[]).unwrap();
        assert_eq!(config.intra_op_threads, (cores / workers).max(1));
    }
    let config = from(
        &[
            "--num-worker=160".to_owned(),
            "--intra-op-threads=7".to_owned(),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.intra_op_threads, 7);
}

#[test]
fn workers_get_devices_in_turn() {
    let flags = "-device_map 3,1 -num_worker=3 -num_parallel_workers=1";
    let flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
    let config = from(&flags, &[]).unwrap();
    let devices: Vec<Device> = (0..config.all_workers())
        .map(|worker| config.device(worker))
        .collect();
    let cuda = Device::Cuda;
    assert_eq!(devices, [cuda(3), cuda(1), cuda(3), Device::Cpu]);
    let many = ["--num-worker=150", "--num-parallel-workers=11"].map(str::to_owned);
    let e = from(&many, &[]).unwrap_err();
    assert!(e.message().contains("161 together"), "{e}");
}

#[test]
fn express_workers_come_last_and_go_with_processors_alone() {
    let config_of = |flags: &str| {
        let flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        from(&flags, &[])
    };
    let roles = |flags: &str| -> Vec<Role> {
        let config = config_of(flags).unwrap();
        (0..config.all_workers())
            .map(|worker| config.role(worker))
            .collect()
    };
    let (main, extra, express) = (Role::Main, Role::Extra, Role::Express);
    assert_eq!(roles("--num-worker=2"), [main, main, express]);
    let flags = "--num-worker=1 --num-parallel-workers=1 --express-workers=2";
    assert_eq!(roles(flags), [main, extra, express, express]);
    assert_eq!(roles("--num-worker=2 --express-workers=0"), [main, main]);
    assert_eq!(roles("--num-worker=1"), [main]);
    assert_eq!(roles("--num-worker=1 --express-workers=1"), [main, express]);
    // Where there is room for one more.
    assert_eq!(roles("--num-worker=159").last(), Some(&express));
    assert_eq!(roles("--num-worker=160").last(), Some(&main));
    // With a GPU there is none, and none can be had.
    assert_eq!(roles("--num-worker=2 --device-map=-1,0"), [main, main]);
    let e = config_of("--device-map=-1,0 --express-workers=1").unwrap_err();
    for words in ["--express-workers 1", "--device-map", "cuda:0"] {
        assert!(e.message().contains(words), "{e}");
    }
    config_of("--device-map=-1,0 --express-workers=0").unwrap();
    let e = config_of("--num-worker=100 --express-workers=61").unwrap_err();
    assert!(
        e.message()
            .contains("--num-worker 100 and --express-workers 61 are 161 together"),
        "{e}"
    );
}

/// What is in force reads back from the environment, where an empty one is not set, and what is printed from a file.
#[test]
fn the_settings_in_force_read_back_as_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = text(dir.path());
    let mut names: Vec<String> = flags().into_iter().map(|(id, _)| id).collect();
    names.retain(|id| id != "config");
    names.sort();
    let mut typed: Vec<String> = names
        .iter()
        .map(|id| format!("--{id}={}", sample(id, &path)))
        .collect();
    typed.push("--preload=another".to_owned());
    for typed in [typed, Vec::new()] {
        let config = from(&typed, &[]).unwrap();
        let settings = config.settings();
        assert_eq!(settings.keys().cloned().collect::<Vec<_>>(), names);
        let variables: Vec<(String, String)> = settings
            .into_iter()
            .map(|(name, value)| (format!("MDM_{}", name.to_uppercase()), value))
            .collect();
        let variables: Vec<(&str, String)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        assert_eq!(from(&[], &variables).unwrap(), config);
        // ... and from a file.
        let file = format!("{path}/printed.toml");
        std::fs::write(&file, config.to_toml()).unwrap();
        assert_eq!(from(&[format!("--config={file}")], &[]).unwrap(), config);
    }
}

#[test]
fn the_settings_in_force_are_toml_whatever_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let odd = format!("{}/a \"b\" 'c' # = \\ ü", text(dir.path()));
    std::fs::create_dir(&odd).unwrap();
    let typed = [
        format!("--run-script-dir={odd}"),
        format!("--allow-path={odd}"),
        format!("--logger={odd}/007"),
        "--preload=a:b".to_owned(),
        "--preload=a\nb".to_owned(),
        "--zeromq-sock-tmp-dir=007".to_owned(),
        "--gpu-memory-fraction=1".to_owned(),
    ];
    let config = from(&typed, &[]).unwrap();
    let file = format!("{}/printed.toml", text(dir.path()));
    std::fs::write(&file, config.to_toml()).unwrap();
    assert_eq!(from(&[format!("--config={file}")], &[]).unwrap(), config);
}

#[test]
fn a_program_can_start_from_flags_whatever_the_environment_is() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = dir.path().join("a/b");
    let config = Config::parse_from([
        "--port=0".into(),
        "--port-out=0".into(),
        format!("--zeromq-sock-tmp-dir={}", sockets.display()),
    ])
    .unwrap();
    assert_eq!((config.port, config.port_out), (0, 0));
    assert!(sockets.is_dir());
    assert!(Config::parse_from(["--help"]).is_err());
}
