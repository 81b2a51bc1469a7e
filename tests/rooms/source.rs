//! Rust read as far as it takes to know its modules and the paths in them: no macro is expanded, and the few modules that
//! stand inside a file count as the file.

use std::collections::{BTreeMap, BTreeSet};

/// Texts by path below `src/`.
pub type Files = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// A name, `::`, or one other character.
    pub text: String,
    pub line: usize,
}

/// A module outside of tests.
pub struct Module {
    pub path: Vec<String>,
    pub file: String,
    pub tokens: Vec<Token>,
}

/// A path in the code, as it is from the crate's root, and where it stands.
#[derive(Debug)]
pub struct Import {
    pub to: Vec<String>,
    pub place: String,
}

/// The modules that are there without tests, found as the compiler finds them.
pub fn modules(files: &Files) -> Vec<Module> {
    let mut modules = Vec::new();
    let mut open = vec![(Vec::<String>::new(), "lib.rs".to_owned())];
    while let Some((path, file)) = open.pop() {
        let tokens = without_tests(tokens(&files[&file]));
        for name in declared(&tokens) {
            let child = [path.clone(), vec![name]].concat();
            let stem = child.join("/");
            let found = [format!("{stem}.rs"), format!("{stem}/mod.rs")]
                .into_iter()
                .find(|file| files.contains_key(file));
            let found =
                found.unwrap_or_else(|| panic!("{file} declares {stem}, which has no file"));
            open.push((child, found));
        }
        modules.push(Module { path, file, tokens });
    }
    modules
}

/// The names in `mod NAME;`.
fn declared(tokens: &[Token]) -> Vec<String> {
    let threes = tokens.windows(3);
    threes
        .filter(|three| three[0].text == "mod" && three[2].text == ";")
        .map(|three| three[1].text.clone())
        .collect()
}

/// Names, `::` and single characters; comments, texts and lifetimes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let text = match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
                None
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
                None
            }
            '"' => {
                i = after_text(&chars, i);
                None
            }
            'r' | 'b' | 'c' if raw_text(&chars, i).is_some() => {
                i = raw_text(&chars, i).unwrap();
                None
            }
            '\'' => {
                // A lifetime has no end of its own; a character has one behind it, or behind what is escaped.
                if at(i + 1) == '\\' {
                    i += 3;
                    while i < chars.len() && at(i) != '\'' {
                        i += 1;
                    }
                    i += 1;
                } else if at(i + 2) == '\'' {
                    i += 3;
                } else {
                    i += 1;
                    while is_name(at(i)) {
                        i += 1;
                    }
                }
                None
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                Some("::".to_owned())
            }
            c if is_name(c) => {
                while is_name(at(i)) {
                    i += 1;
                }
                Some(chars[start..i].iter().collect())
            }
            c => {
                i += 1;
                (!c.is_whitespace()).then(|| c.to_string())
            }
        };
        tokens.extend(text.map(|text| Token { text, line }));
        line += chars[start..i.min(chars.len())]
            .iter()
            .filter(|c| **c == '\n')
            .count();
    }
    tokens
}

/// Behind a text that begins at `i` with its quotation mark.
fn after_text(chars: &[char], i: usize) -> usize {
    let mut i = i + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Behind a text such as `r#"..."#` or `b"..."` that begins at `i`, if one does.
fn raw_text(chars: &[char], i: usize) -> Option<usize> {
    let before = i.checked_sub(1).map(|before| chars[before]);
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let letters = chars[i..]
        .iter()
        .take_while(|c| matches!(c, 'r' | 'b' | 'c'));
    let letters = letters.count();
    let raw = chars[i..i + letters].contains(&'r');
    let hashes = chars[i + letters..]
        .iter()
        .take_while(|c| **c == '#')
        .count();
    let quote = i + letters + hashes;
    if chars.get(quote) != Some(&'"') || letters > 2 || (hashes > 0 && !raw) {
        return None;
    }
    if !raw {
        return Some(after_text(chars, quote));
    }
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let found = chars[quote + 1..]
        .windows(end.len())
        .position(|some| some == end);
    Some(found.map_or(chars.len(), |found| quote + 1 + found + end.len()))
}

/// Leaves out what stands behind `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let attribute = &texts[i..];
        let of_tests = attribute.starts_with(&["#", "[", "cfg", "(", "test"])
            || attribute.starts_with(&["#", "[", "cfg", "(", "all", "(", "test"]);
        if of_tests {
            i = after_item(&texts, i);
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

/// Behind the item, variant or arm whose attributes begin at `i`.
fn after_item(texts: &[&str], mut i: usize) -> usize {
    let mut depth = 0i32;
    while texts.get(i) == Some(&"#") {
        loop {
            match texts.get(i) {
                Some(&"[") => depth += 1,
                Some(&"]") => depth -= 1,
                None => return i,
                _ => {}
            }
            i += 1;
            if depth == 0 && texts[i - 1] == "]" {
                break;
            }
        }
    }
    const ITEMS: [&str; 11] = [
        "pub", "use", "mod", "fn", "impl", "struct", "enum", "const", "static", "trait", "type",
    ];
    let is_item = texts.get(i).is_some_and(|text| ITEMS.contains(text));
    let mut is_use = false;
    while let Some(text) = texts.get(i) {
        is_use |= depth == 0 && *text == "use";
        match *text {
            "{" | "(" | "[" => depth += 1,
            // Of what is around it: the last variant or arm.
            "}" | ")" | "]" if depth == 0 => return i,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        i += 1;
        match *text {
            ";" if depth == 0 => return i,
            "," if depth == 0 && !is_item => return i,
            "}" if depth == 0 && !is_use => return i,
            _ => {}
        }
    }
    i
}

/// Every path that leads to another module, from the crate's root.
pub fn imports(module: &Module, children: &BTreeSet<Vec<String>>) -> Vec<Import> {
    let texts: Vec<&str> = module
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    let mut imports = Vec::new();
    for i in 0..texts.len() {
        let before = i.checked_sub(1).map(|before| texts[before]);
        if texts.get(i + 1) != Some(&"::") || matches!(before, Some("::" | "in")) {
            continue;
        }
        let start = match texts[i] {
            "crate" => Vec::new(),
            "self" => module.path.clone(),
            "super" => module.path[..module.path.len() - 1].to_vec(),
            name if before == Some("use") => {
                let child = [module.path.clone(), vec![name.to_owned()]].concat();
                match children.contains(&child) {
                    true => child,
                    false => continue,
                }
            }
            _ => continue,
        };
        let mut found = Vec::new();
        expand(&texts, i + 1, start, &mut found);
        imports.extend(found.into_iter().map(|(to, at)| Import {
            place: format!(
                "{}:{}: crate::{}",
                module.file,
                module.tokens[at].line,
                to.join("::")
            ),
            to,
        }));
    }
    imports
}

/// The paths of a tree such as `::a::{b, c::*}`, each with the token where it ends; returns what is behind the tree.
fn expand(
    texts: &[&str],
    mut i: usize,
    mut path: Vec<String>,
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let text = |i: usize| texts.get(i).copied().unwrap_or_default();
    while text(i) == "::" {
        match text(i + 1) {
            "{" => {
                i += 2;
                while text(i) != "}" && i < texts.len() {
                    if text(i) == "," {
                        i += 1;
                        continue;
                    }
                    let mut longer = path.clone();
                    if text(i) != "self" {
                        longer.push(text(i).to_owned());
                    }
                    i = expand(texts, i + 1, longer, found);
                    if text(i) == "as" {
                        i += 2;
                    }
                }
                return i + 1;
            }
            "super" => {
                path.pop();
                i += 2;
            }
            name if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push(name.to_owned());
                i += 2;
            }
            // All of them, or types in angle brackets.
            _ => break,
        }
    }
    found.push((path, i - 1));
    if text(i) == "::" { i + 2 } else { i }
}
