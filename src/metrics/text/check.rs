//! What `promtool check metrics` says of a text, and what a parser of Prometheus' text refuses.

use std::collections::{BTreeMap, BTreeSet};

/// One sample, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

struct Family {
    kind: String,
    samples: Vec<Sample>,
}

/// What is wrong with a text, in its order; nothing if it is good. The samples, if each line can be read.
pub(crate) fn check(text: &str) -> (Vec<Sample>, Vec<String>) {
    let mut wrong = Vec::new();
    let mut families: Vec<(String, Family)> = Vec::new();
    let mut helped: Option<String> = None;
    let mut seen = BTreeSet::new();
    if !text.ends_with('\n') {
        wrong.push("the last line does not end".to_owned());
    }
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            match help.split_once(' ') {
                Some((name, help)) if !help.trim().is_empty() => helped = Some(name.to_owned()),
                _ => wrong.push(format!("no help: {line}")),
            }
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = of.split_once(' ') else {
                wrong.push(format!("no type: {line}"));
                continue;
            };
            if helped.as_deref() != Some(name) {
                wrong.push(format!("{name} has a type and no help before it"));
            }
            if !seen.insert(name.to_owned()) {
                wrong.push(format!("{name} comes twice"));
            }
            families.push((
                name.to_owned(),
                Family {
                    kind: kind.to_owned(),
                    samples: Vec::new(),
                },
            ));
        } else if !line.is_empty() {
            match (read(line), families.last_mut()) {
                (Some(sample), Some((name, family))) if belongs(&sample, name, &family.kind) => {
                    family.samples.push(sample);
                }
                (Some(sample), _) => wrong.push(format!("{} is not below its type", sample.name)),
                (None, _) => wrong.push(format!("cannot be read: {line}")),
            }
        }
    }
    for (name, family) in &families {
        check_family(name, family, &mut wrong);
    }
    let samples = families.into_iter().flat_map(|(_, family)| family.samples);
    (samples.collect(), wrong)
}

fn belongs(sample: &Sample, family: &str, kind: &str) -> bool {
    matches!(
        (sample.name.strip_prefix(family), kind),
        (Some(""), "counter" | "gauge") | (Some("_bucket" | "_sum" | "_count"), "histogram")
    )
}

fn check_family(name: &str, family: &Family, wrong: &mut Vec<String>) {
    let mut say = |what: &str| wrong.push(format!("{name}: {what}"));
    if family.samples.is_empty() {
        say("no samples");
    }
    if !is_name(name) || name != name.to_lowercase() {
        say("a name is lower-case words");
    }
    match (name.ends_with("_total"), &*family.kind) {
        (false, "counter") => say("a counter ends in _total"),
        (true, kind) if kind != "counter" => say("only a counter ends in _total"),
        _ => {}
    }
    let words: Vec<&str> = name.split('_').collect();
    for word in &words {
        match *word {
            "counter" | "gauge" | "histogram" | "summary" | "metric" => {
                say("the type is not part of a name");
            }
            "s" | "sec" | "ms" | "us" | "ns" | "milliseconds" | "microseconds" | "minutes"
            | "hours" | "days" | "b" | "kb" | "mb" | "gb" | "kilobytes" | "megabytes"
            | "percent" => say("base units are seconds, bytes and ratios, in full"),
            _ => {}
        }
    }
    let before_total = words.iter().rev().find(|word| **word != "total");
    for unit in ["seconds", "bytes", "ratio"] {
        if words.contains(&unit) && before_total != Some(&unit) {
            say("the unit comes last");
        }
    }
    let reserved = ["bucket", "count", "sum", "info"];
    if family.kind != "gauge" && words.last().is_some_and(|last| reserved.contains(last)) {
        say("the last word is reserved");
    }
    let mut series = BTreeSet::new();
    for sample in &family.samples {
        if !series.insert(format!("{} {:?}", sample.name, sample.labels)) {
            say(&format!("twice {:?}", sample.labels));
        }
        for label in sample.labels.keys() {
            let own = label == "le" && family.kind == "histogram";
            if !is_name(label) || label.contains(':') || (label == "le" && !own) {
                say(&format!("label {label}"));
            }
        }
        let is_count = family.kind != "gauge" && !sample.name.ends_with("_sum");
        if is_count && (sample.value < 0.0 || !sample.value.is_finite()) {
            say("a count below 0");
        }
    }
    if family.kind == "histogram" {
        check_histogram(name, family, wrong);
    }
}

/// Of each set of labels: buckets that rise to +Inf, which is the count, and a sum.
fn check_histogram(name: &str, family: &Family, wrong: &mut Vec<String>) {
    let mut of: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        labels.remove("le");
        of.entry(format!("{labels:?}")).or_default().push(sample);
    }
    for (labels, samples) in of {
        let mut say = |what: &str| wrong.push(format!("{name}{labels}: {what}"));
        let value = |suffix: &str| {
            let mut of = samples
                .iter()
                .filter(|sample| sample.name == format!("{name}{suffix}"));
            (of.next().map(|sample| sample.value), of.next().is_some())
        };
        let (count, sum) = (value("_count"), value("_sum"));
        if count.1 || sum.1 || count.0.is_none() || sum.0.is_none() {
            say("one count and one sum");
        }
        let buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|sample| Some((number(sample.labels.get("le")?)?, sample.value)))
            .collect();
        if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
            say("buckets rise");
        }
        if buckets.last().map(|(bound, value)| (*bound, Some(*value)))
            != Some((f64::INFINITY, count.0))
        {
            say("the last bucket is +Inf, and is the count");
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.chars().all(is_part) && name.starts_with(|c: char| !c.is_ascii_digit())
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        // What Rust reads beyond that, Prometheus writes otherwise.
        text if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => text.parse().ok(),
        _ => None,
    }
}

/// `name{label="value",...} number`, with `\\`, `\"` and `\n` in values.
fn read(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(behind) = rest.strip_prefix('{') {
        rest = behind;
        loop {
            let (label, behind) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = behind.char_indices();
            let close = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        _ => return None,
                    }),
                    (_, c) => value.push(c),
                }
            };
            if labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = &behind[close + 1..];
            if let Some(behind) = rest.strip_prefix('}') {
                rest = behind;
                break;
            }
            rest = rest.strip_prefix(',')?;
        }
    }
    let value = number(rest.strip_prefix(' ')?)?;
    is_name(name).then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}
