//! What the system says of this process: its memory, processor time and descriptors.

use std::fs;

/// What the system says of this process; `None` for what it does not say. Reading it takes a few files of `/proc`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Processor time since it was started, of all threads, in the program and in the system.
    pub cpu_seconds: Option<f64>,
    /// Memory that is in use.
    pub resident_bytes: Option<u64>,
    /// Addresses that are in use.
    pub virtual_bytes: Option<u64>,
    /// Descriptors that are open.
    pub open_fds: Option<u64>,
    /// Most that it may open.
    pub max_fds: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When it was started, in seconds of Unix time.
    pub start_seconds: Option<f64>,
}

impl Process {
    /// As it is now.
    pub fn now() -> Process {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let system = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut process = Process::parse(
            &stat,
            &system,
            rustix::param::clock_ticks_per_second(),
            rustix::param::page_size() as u64,
        );
        // Reading them takes one more.
        let fds = fs::read_dir("/proc/self/fd").ok();
        process.open_fds = fds.map(|fds| (fds.count() as u64).saturating_sub(1));
        process.max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        process
    }

    /// From `/proc/self/stat` and `/proc/stat`: proc(5) says what their fields are.
    fn parse(stat: &str, system: &str, ticks_per_second: u64, page_bytes: u64) -> Process {
        // The name, which stands in brackets, may hold anything.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields: Vec<&str> = behind.split_whitespace().collect();
        // The first one behind the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second.max(1) as f64;
        let boot = system
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|seconds| seconds.trim().parse::<u64>().ok());
        Process {
            cpu_seconds: Option::zip(field(14), field(15))
                .map(|(user, kernel)| seconds(user + kernel)),
            threads: field(20),
            start_seconds: Option::zip(boot, field(22))
                .map(|(boot, ticks)| boot as f64 + seconds(ticks)),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * page_bytes),
            ..Process::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_behind_a_name_with_brackets_and_blanks_are_found() {
        let stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 7 0 1000 1048576 12 \
                    18446744073709551615 1 1 0 0 0";
        let process = Process::parse(stat, "cpu 1 2\nbtime 1700000000\nprocesses 5\n", 100, 4096);
        assert_eq!(process.cpu_seconds, Some(3.0));
        assert_eq!(process.threads, Some(7));
        assert_eq!(process.start_seconds, Some(1_700_000_010.0));
        assert_eq!(process.virtual_bytes, Some(1_048_576));
        assert_eq!(process.resident_bytes, Some(49_152));
        assert_eq!(Process::parse("", "", 100, 4096), Process::default());
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let process = Process::now();
        assert!(process.resident_bytes > Some(100_000));
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.threads >= Some(1));
        let before = process.open_fds;
        let files: Vec<_> = (0..5)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests open and close files at the same time.
        assert!(before > Some(0) && Process::now().open_fds > Some(files.len() as u64));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let started = process.start_seconds.unwrap();
        assert!(started > 1e9 && started < now.unwrap().as_secs_f64() + 5.0);
    }
}
