//! What the host of a virtual machine gave to others meanwhile: while that is much, no figure of the table holds.

/// Processor time of the whole machine so far, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// Until now; `None` where the system does not count it.
    pub fn now() -> Option<Ticks> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests got is in the first two already.
        let counted = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = counted
            .split_whitespace()
            .take(8)
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        Some(Ticks {
            all: ticks.iter().sum(),
            stolen: *ticks.get(7)?,
        })
    }

    /// The share of the time since then that the host kept from this machine, as text that follows a duration.
    pub fn stolen_since(then: Option<Ticks>) -> String {
        let (Some(then), Some(now)) = (then, Ticks::now()) else {
            return String::new();
        };
        let all = now.all.saturating_sub(then.all).max(1);
        let stolen = now.stolen.saturating_sub(then.stolen);
        format!(", {} % of it taken by the host", stolen * 100 / all)
    }
}
