//! Which room of the crate imports which: a circle between rooms is an error that names it, and what belongs to one room
//! alone is used nowhere else.
//!
//! A room is a module of the crate's root, and in `model/` each of [`INNER`] besides. What a room imports is read from
//! the files as they are: `use` lines and paths within the code, tests left out.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use source::{Files, Module, imports, modules};

/// Rooms inside a room. Their own room may import them, and they not what it has besides.
const INNER: [[&str; 2]; 3] = [
    ["model", "engine"],
    ["model", "find"],
    ["model", "interface"],
];

/// What each room imports, with the first place where it does.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

#[test]
fn no_room_imports_itself_through_another() {
    let modules = modules(&sources());
    let graph = graph(&modules);
    // Somebody has to read something for this to mean anything.
    assert!(modules.len() > 100, "{} modules", modules.len());
    for (room, other) in [
        ("pipeline", "schedule"),
        ("wire", "tensor"),
        ("model", "model/engine"),
        ("model/engine", "model/interface"),
    ] {
        assert!(graph[room].contains_key(other), "{room} imports {other}");
    }
    if let Some(circle) = circle(&graph) {
        panic!("a circle between rooms:\n{circle}");
    }
}

#[test]
fn the_engine_is_used_in_its_room_alone_and_devices_are_told_apart_in_one_file() {
    let modules = modules(&sources());
    let elsewhere = uses_of("ort", &modules);
    assert!(
        elsewhere
            .iter()
            .any(|place| place.starts_with("model/engine/"))
    );
    let elsewhere: Vec<&String> = elsewhere
        .iter()
        .filter(|place| !place.starts_with("model/engine/"))
        .collect();
    assert!(
        elsewhere.is_empty(),
        "`ort` outside of model/engine/: {elsewhere:?}"
    );
    let told_apart = uses_of("Cuda", &modules);
    assert!(!told_apart.is_empty());
    for place in told_apart {
        assert!(place.starts_with("model/engine/device.rs:"), "{place}");
    }
}

#[test]
fn a_circle_is_named_with_the_lines_that_make_it() {
    let files = made_up(&[
        (
            "lib.rs",
            "pub mod a;\nmod b;\nmod c;\n#[cfg(test)]\nmod mock;",
        ),
        ("a.rs", "mod deep;\nuse std::{fmt, io};"),
        ("a/deep.rs", "use crate::{\n    b::{self, One as Two},\n};"),
        ("b.rs", "fn f() -> u8 {\n    crate::c::number::<u8>()\n}"),
        ("c/mod.rs", "use super::a::Name;"),
    ]);
    let graph = graph(&modules(&files));
    let said = circle(&graph).expect("there is a circle");
    let expected = "a imports b (a/deep.rs:2: crate::b)\n\
                    b imports c (b.rs:2: crate::c::number)\n\
                    c imports a (c/mod.rs:1: crate::a::Name)";
    assert_eq!(said, expected);
}

#[test]
fn a_room_inside_a_room_is_one_of_its_own() {
    let files = |engine: &str| {
        made_up(&[
            ("lib.rs", "pub use model::Device; mod config; mod model;"),
            ("config.rs", "use crate::Device;"),
            (
                "model/mod.rs",
                "mod engine; mod interface; mod registry; pub use engine::Device;",
            ),
            ("model/interface.rs", ""),
            ("model/registry.rs", "use super::engine::Device;"),
            ("model/engine/mod.rs", "mod device; use device::Device;"),
            ("model/engine/device.rs", engine),
        ])
    };
    let none = files("use crate::model::interface::Model; use super::super::interface::Empty;");
    assert_eq!(circle(&graph(&modules(&none))), None);
    for (back, named) in [
        (
            "use crate::model::registry::Registry;",
            "model/engine imports model (",
        ),
        (
            "use super::super::Registry;",
            "model/engine imports model (",
        ),
        (
            "use crate::config::Config;",
            "model/engine imports config (",
        ),
    ] {
        let said = circle(&graph(&modules(&files(back)))).expect(back);
        assert!(said.contains(named), "{back}: {said}");
    }
}

#[test]
fn tests_comments_and_texts_import_nothing() {
    let files = made_up(&[
        ("lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod mock;"),
        (
            "a.rs",
            r###"
            //! See [`crate::b`].
            /* use crate::b::X; /* and */ use crate::b::Y; */
            pub(crate) struct A<'a>(&'a str, char);
            const TEXT: (&str, &str, char) = ("use crate::b \" ;", r#"crate::b::X"#, '"');
            #[cfg(test)]
            use crate::b::{One, Two};
            enum Kind {
                Plain,
                #[cfg(test)]
                Odd(crate::b::Three),
            }
            #[cfg(test)]
            mod tests;
            #[cfg(all(test, feature = "server"))]
            mod more {
                use crate::b::Four;
            }
            #[cfg(not(test))]
            use crate::c_of_lib;
            "###,
        ),
        ("a/tests.rs", "use crate::b::Five;"),
        ("b.rs", "use crate::a::A;"),
    ]);
    let graph = graph(&modules(&files));
    assert_eq!(graph.get("a"), None, "{graph:?}");
    assert!(graph["b"].contains_key("a"));
    let files = made_up(&[
        ("lib.rs", "mod a;"),
        ("a.rs", "use ort::Session;\n// ort::x\nfn f() { ort::y() }"),
    ]);
    assert_eq!(uses_of("ort", &modules(&files)), ["a.rs:1", "a.rs:3"]);
}

fn made_up(files: &[(&str, &str)]) -> Files {
    let own = |(path, text): &(&str, &str)| (path.to_string(), text.to_string());
    files.iter().map(own).collect()
}

/// The crate's own files.
fn sources() -> Files {
    fn add(files: &mut Files, root: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(files, root, &path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                files.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Files::new();
    add(&mut files, &root, &root);
    files
}

/// The room that a path leads to; `None` for the root itself.
fn room(path: &[String]) -> Option<String> {
    let inner = path
        .get(..2)
        .filter(|two| INNER.iter().any(|inner| inner == two));
    match inner {
        Some(inner) => Some(inner.join("/")),
        None => path.first().cloned(),
    }
}

fn graph(modules: &[Module]) -> Graph {
    let paths: BTreeSet<Vec<String>> = modules.iter().map(|module| module.path.clone()).collect();
    let root = modules.iter().filter(|module| module.path.is_empty());
    // What the root gives under its own name, as it is where it comes from.
    let given: BTreeMap<String, Vec<String>> = root
        .flat_map(|root| imports(root, &paths))
        .filter_map(|import| Some((import.to.last()?.clone(), import.to.clone())))
        .collect();
    let mut graph = Graph::new();
    for module in modules {
        let Some(from) = room(&module.path) else {
            continue;
        };
        for import in imports(module, &paths) {
            let first: Vec<String> = import.to.iter().take(1).cloned().collect();
            let to = match import.to.first() {
                Some(name) if !paths.contains(&first) => given.get(name),
                _ => Some(&import.to),
            };
            // A macro of the root's.
            let Some(to) = to.and_then(|to| room(to)) else {
                continue;
            };
            if to != from {
                let imported = graph.entry(from.clone()).or_default();
                imported.entry(to).or_insert(import.place);
            }
        }
    }
    graph
}

/// A circle, if there is one: who imports whom, and where.
fn circle(graph: &Graph) -> Option<String> {
    fn visit(
        graph: &Graph,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let room = way.last()?.clone();
        for next in graph.get(&room).into_iter().flat_map(BTreeMap::keys) {
            if let Some(start) = way.iter().position(|passed| passed == next) {
                return Some([&way[start..], std::slice::from_ref(next)].concat());
            }
            if !done.contains(next) {
                way.push(next.clone());
                if let Some(circle) = visit(graph, way, done) {
                    return Some(circle);
                }
                way.pop();
            }
        }
        done.insert(room);
        None
    }
    let mut done = BTreeSet::new();
    let circle = graph
        .keys()
        .find_map(|room| visit(graph, &mut vec![room.clone()], &mut done))?;
    let said = circle.windows(2).map(|two| {
        let place = &graph[&two[0]][&two[1]];
        format!("{} imports {} ({place})", two[0], two[1])
    });
    Some(said.collect::<Vec<_>>().join("\n"))
}

/// Where a name is used outside of tests: file and line.
fn uses_of(name: &str, modules: &[Module]) -> Vec<String> {
    let mut places = BTreeSet::new();
    for module in modules {
        let own = module.tokens.iter().filter(|token| token.text == name);
        places.extend(own.map(|token| (module.file.clone(), token.line)));
    }
    let places = places.into_iter();
    places
        .map(|(file, line)| format!("{file}:{line}"))
        .collect()
}
