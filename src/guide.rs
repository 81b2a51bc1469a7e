//! The guide: what a page of the README has no room for, a page for each subject.
//!
//! | page | what it tells |
//! |---|---|
//! | [`proxies`] | names and versions of models, how they are run, proxies, chains of stages |
//! | [`life`] | loading, reloading, warming, what leaves to make room |
//! | [`first_model`] | from `mdm-model new` to an answer in ten minutes: rows, sessions, errors, stages |
//! | [`plugins`] | models in Rust or C: how a server runs them |
//! | [`clients`] | the Rust client, `mdm-infer` and its files |
//! | [`python`] | the Python client: data, results, errors, threads, coroutines |
//! | [`doors`] | HTTP: what other programs ask, and what they are told |
//! | [`deployment`] | installing, settings, watching, stopping, what has to guard a server |
//! | [`tuning`] | what the settings do to speed, fairness and memory |
//! | [`status`] | `mdm-server-status`: the last seconds, models, workers; its JSON |
//! | [`metrics`] | what is counted, what to be woken for, health |
//! | [`benchmarking`] | measuring a server with `mdm-bench`: closed and open loops, what the columns mean |
//! | [`errors`] | what each error code means, and the limits |
//! | [`contributing`] | building, testing and benching MDM itself, and the habits |
//!
//! The flags are a table of their own, in [`crate::config`]; the protocol is in [`crate::wire`].

/// A page. Its file names others by their files, which is right where the repository is read; `links.md`, which stands
/// ahead of it, has the same names in the documentation's terms, and the first one counts.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = include_str!("guide/links.md")]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

page!(proxies, "guide/proxies.md");
page!(life, "guide/life.md");
page!(first_model, "guide/first_model.md");
page!(plugins, "guide/plugins.md");
page!(clients, "guide/clients.md");
page!(python, "guide/python.md");
page!(doors, "guide/doors.md");
page!(deployment, "guide/deployment.md");
page!(tuning, "guide/tuning.md");
page!(status, "guide/status.md");
page!(metrics, "guide/metrics.md");
page!(benchmarking, "guide/benchmarking.md");
page!(errors, "guide/errors.md");
page!(contributing, "guide/contributing.md");
